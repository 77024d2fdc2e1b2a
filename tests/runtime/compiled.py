# SPDX-License-Identifier: Apache-2.0
"""Run in a process that has libtpu (tools/slices.py): compiles for TPU slices what a run compiles
there, and prints the collectives of each program as JSON.

Parameters, batches, bank and gallery are shapes with the shardings that a run gives them.
"""

import json
import math

import jax
import jax.numpy as jnp

from cir_jax.bank import bank as banks
from cir_jax.bank import build, references
from cir_jax.data import packing
from cir_jax.retrieval import ranking
from cir_jax.runtime import encode, sharding
from cir_jax.runtime import mesh as meshes
from cir_jax.training import setup as setups
from cir_jax.training import state as states
from cir_jax.training import step
from tests import runs
from tools import slices
from tools.planning import hlo

# Devices, and those along "model".
SLICES = (("v5e:4x4", 1), ("v6e:4x4", 2), ("2xv5p:2x2x2", 1))
BATCH, TEXT, QUERIES = 32, 16, 64
# Far more than all else together, so that moving a part of a bank would stand out.
BANK, GALLERY = 2**24, 2**17


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
    fields = {"text": packed(mesh)}
    for name in ("reference_pixels", "target_pixels"):
        fields[name] = array((BATCH, side, side, 3), jnp.uint8, rows)
    ids = ("reference_id", "target_id", "text_id", "source_id", references.FIELDS["device"])
    fields |= dict.fromkeys(ids, array((BATCH,), jnp.int32, rows))
    held = None
    if setup.stage.needs_bank:
        everywhere = meshes.row_sharding(mesh)
        (per_row, width), each = setup.functions.target_shape, setup.functions.reference_shape
        shapes_of = (BANK * per_row, width), (BANK, math.prod(each))
        held = banks.Bank(*(array(p, jnp.float32, everywhere) for p in shapes_of), BANK - 5)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = (shapes["trained"], shapes["optimizer"], shapes["fixed"])
    return update, (*state, fields, held, array(key.shape, key.dtype, one)), setup


def packed(mesh):
    """Texts of a batch, as many tokens on each device."""
    shares, rows = mesh.shape[meshes.DATA], meshes.batch_sharding(mesh)
    each = BATCH // shares
    places = (array((shares, each * TEXT), jnp.int32, rows) for _ in range(3))
    end, order = array((shares, each), jnp.int32, rows), array((BATCH,), jnp.int32, rows)
    return packing.Packed(*places, end=end, order=order)


def encoding(mesh, setup):
    """(program, arguments) of a batch of the bank: targets and references of images."""
    functions = setup.functions
    places = sharding.parameter_shardings(functions, mesh)
    params = {p: array(x.shape, x.dtype, places[p]) for p, x in functions.abstract.items()}
    shape = (BATCH, functions.image_size, functions.image_size, 3)
    pixels = array(shape, jnp.uint8, meshes.batch_sharding(mesh))
    return encode._compiled(build._program(functions, "device"), mesh), (params, {"pixels": pixels})


def counting(mesh, setup):
    """(program, arguments) of the ranks of a block of queries."""
    one, width = meshes.replicated(mesh), setup.functions.target_shape[1]
    gallery = array((GALLERY, 1, width), jnp.float32, meshes.row_sharding(mesh))
    query, column = array((QUERIES, width), jnp.float32, one), array((QUERIES,), jnp.int32, one)
    return ranking._programs(mesh)[0], (query, column, column, gallery, GALLERY - 5)


def compiled(on, model):
    """The programs of a machine.

    {"shape" of the mesh; "slices"; "width": D; "reference": R x C; "trained": bytes on a device of
    the parameters that train in stage two, but for the token embedding; "programs": {name:
    {"collectives": [[kind, axes, times, bytes]], "whole": whether all that a host reads lies on
    every device}}}
    """
    mesh = meshes.make(model=model, devices=slices.devices(on))
    *first, setup = training(mesh, 1)
    *second, _ = training(mesh, 2)
    steps = {"stage one": first, "stage two": second}
    others = {"bank": encoding(mesh, setup), "ranks": counting(mesh, setup)}
    # Of a table of tokens the gradients of its rows in the batch cross devices.
    reduced = [x for path, x in second[1][0].items() if path != "text/token_embedding"]
    found = {
        "shape": mesh.devices.shape,
        "slices": len({getattr(d, "slice_index", 0) for d in mesh.devices.flat}),
        "width": setup.functions.target_shape[1],
        "reference": math.prod(setup.functions.reference_shape),
        "trained": sum(math.prod(x.sharding.shard_shape(x.shape)) * 4 for x in reduced),
        "programs": {},
    }
    for name, (program, arguments) in (steps | others).items():
        done = program.lower(*arguments).compile()
        listed, unknown = hlo.collectives(done.as_text(), mesh)
        assert not unknown, (name, unknown)
        read = done.output_shardings[2] if name in steps else done.output_shardings
        found["programs"][name] = {
            "collectives": [(c.kind, c.axes, c.times, c.bytes) for c in listed],
            "whole": all(x.is_fully_replicated for x in jax.tree.leaves(read)),
        }
    return found


if __name__ == "__main__":
    print(json.dumps({on: compiled(on, model) for on, model in SLICES}))
