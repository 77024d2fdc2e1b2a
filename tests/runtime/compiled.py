# SPDX-License-Identifier: Apache-2.0
"""Run in a process that has libtpu (tools/slices.py): compiles what a run compiles for TPU slices,
and prints the collectives of each program as JSON."""

import json
import sys

import jax
import jax.numpy as jnp

from cir_jax.bank import bank as banks
from cir_jax.bank import build, references
from cir_jax.retrieval import ranking, retriever
from cir_jax.runtime import encode, sharding
from cir_jax.runtime import mesh as meshes
from cir_jax.training import setup as setups
from cir_jax.training import state as states
from cir_jax.training import step
from tests import runs
from tools import slices
from tools.planning import hlo

BATCH = 32
TEXT = 16
ROWS = 2**17  # of bank and gallery: far larger than anything else, so that moving it stands out
QUERIES = 64


def array(shape, dtype, place):
    """An array that is not there."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def training(mesh, stage):
    """(program, arguments) of a step, as `cir_jax.training.train` makes it."""
    config = runs.tiny(
        "unused", "unused", f"batch={BATCH}", "model.dtype=bfloat16", stage=stage, model="clip_sum"
    )
    setup = setups.assemble(config, mesh)
    shapes, optimizer = states.abstract(setup, 10)
    places = jax.tree.map(lambda x: x.sharding, (shapes["trained"], shapes["optimizer"]))
    update = step.make(setup.stage, setup.functions, optimizer, 2, places)
    rows, one = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    side = setup.functions.image_size
    fields = {"text": array((BATCH, TEXT), jnp.int32, rows)}
    for name in ("reference_pixels", "target_pixels"):
        fields[name] = array((BATCH, side, side, 3), jnp.uint8, rows)
    ids = ("reference_id", "target_id", "text_id", "source_id", references.FIELDS["device"])
    fields |= dict.fromkeys(ids, array((BATCH,), jnp.int32, rows))
    held = None
    if setup.stage.needs_bank:
        everywhere = meshes.row_sharding(mesh)
        parts = (setup.functions.target_shape, setup.functions.reference_shape)
        held = banks.Bank(*(array((ROWS, *p), jnp.float32, everywhere) for p in parts), ROWS - 5)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = (shapes["trained"], shapes["optimizer"], shapes["fixed"])
    return update, (*state, fields, held, array(key.shape, key.dtype, one)), setup


def encoding(mesh, setup):
    """Name -> (program, arguments) of what encodes: the bank, a gallery, queries."""
    functions, rows = setup.functions, meshes.batch_sharding(mesh)
    places = sharding.parameter_shardings(functions, mesh)
    params = {p: array(x.shape, x.dtype, places[p]) for p, x in functions.abstract.items()}
    pixels = array((BATCH, functions.image_size, functions.image_size, 3), jnp.uint8, rows)
    reference = array((BATCH, *functions.reference_shape), jnp.float32, rows)
    text = array((BATCH, TEXT), jnp.int32, rows)
    programs = retriever._programs(functions)
    found = {
        "bank": (build._program(functions, "device"), {"pixels": pixels}),
        "gallery": (programs.image, {"pixels": pixels}),
        "queries": (programs.compose, {"reference": reference, "text": text}),
    }
    return {n: (encode._compiled(f, mesh), (params, fields)) for n, (f, fields) in found.items()}


def counting(mesh, setup):
    """Name -> (program, arguments) of what ranks."""
    one, width = meshes.replicated(mesh), setup.functions.target_shape[1]
    gallery = array((ROWS, 1, width), jnp.float32, meshes.row_sharding(mesh))
    query = array((QUERIES, width), jnp.float32, one)
    column = array((QUERIES,), jnp.int32, one)
    count, top = ranking._programs(mesh)
    return {
        "ranks": (count, (query, column, column, gallery, ROWS - 5)),
        "top": (top, (query, column, gallery, ROWS - 5, 10)),
    }


def main(on, model):
    mesh = meshes.make(model=int(model), devices=slices.devices(on))
    *one, setup = training(mesh, 1)
    *two, _ = training(mesh, 2)
    programs = {"stage one": one, "stage two": two, **encoding(mesh, setup), **counting(mesh, setup)}
    found = {}
    for name, (program, arguments) in programs.items():
        import time; t=time.time()
        compiled = program.lower(*arguments).compile()
        listed, unknown = hlo.collectives(compiled.as_text(), mesh)
        found[name] = [(c.kind, c.axes, c.times, c.bytes) for c in listed]
        print(name, round(time.time()-t,1), *found[name], unknown, sep="\n   ", file=sys.stderr)
        if name.startswith("stage"):
            print("  not replicated metrics", [ (k,s) for k,s in compiled.output_shardings[2].items() if not s.is_fully_replicated], file=sys.stderr)
    return found


if __name__ == "__main__":
    print(json.dumps({" ".join(one.split(",")): main(*one.split(",")) for one in sys.argv[1:]}))
