# SPDX-License-Identifier: Apache-2.0
"""Every published model at its full size, both stages: the step of its config is traced and lowered
for eight devices. No memory is needed, and nothing is run."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import pytest

from cir_jax import config as configs
from cir_jax import contract as models
from cir_jax.bank import bank as banks
from cir_jax.bank import references
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.training import stage as stages
from cir_jax.training import step

ROWS = 25_136  # images of FashionIQ's training triplets
# config -> parameters: the published count, less what is not in our tree.
CONFIGS = {
    "clip_sum": 178_300_601,
    "clip_combiner": 178_300_601 + 59_003_521,
    "zero_shot": 427_616_513,
    # The text's copies of the token learner and the masks: here stage two makes them.
    "tgcir": 151_865_376 - 4_104 - 2_048,
    # The temperature, which is a leaf of the stage.
    "blip": 223_742_721 - 1,
    # The same, and two heads that composed retrieval does not run.
    "sprc": 1_172_624_574 - 1 - 622_651 - 1_538,
}


def described(shape, dtype, place):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def abstract_batch(stage, functions, config, mesh):
    """The batch of a step, as shapes; fields as in `cir_jax.data.pipeline.batches`."""
    place, size, side = meshes.batch_sharding(mesh), config.batch, functions.image_size
    ids = described((size,), jnp.int32, place)
    fields = {
        "text": described((size, 32), jnp.int32, place),
        "reference_pixels": described((size, side, side, 3), jnp.uint8, place),
        "target_pixels": described((size, side, side, 3), jnp.uint8, place),
        "reference_row": ids,
        "reference": described((size, *functions.reference_shape), ml_dtypes.bfloat16, place),
    }
    always = dict.fromkeys(("reference_id", "target_id", "text_id", "source_id"), ids)
    read = (*stage.fields, *([reference_field(config)] if stage.needs_bank else []))
    return always | {name: fields[name] for name in read}


def reference_field(config):
    """The batch field of the references of stage two; "auto" is taken for "device"."""
    return references.FIELDS.get(config.loss.references, "reference_row")


def abstract_bank(config, functions, mesh):
    """The bank of FashionIQ, as shapes; references only where the stage reads them from it."""
    place, rows = meshes.row_sharding(mesh), -(-ROWS // mesh.size) * mesh.size
    held = None
    if reference_field(config) == "reference_row":
        held = described((rows, math.prod(functions.reference_shape)), jnp.float32, place)
    per_row, width = functions.target_shape
    targets = described((rows * per_row, width), jnp.float32, place)
    return banks.Bank(targets, held, ROWS)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_step_is_lowered(name, number):
    config = configs.load(
        f"{name}:fashioniq,stage={number}",
        ["model.dtype=bfloat16", *(["loss.bank_block=1024"] if number == 2 else [])],
    )
    mesh = meshes.make(4, 2)
    functions = models.build(config.model)
    sizes = {p: x.size for p, x in functions.abstract.items()}
    assert sum(n for p, n in sizes.items() if functions.roles[p] != "statistic") == CONFIGS[name]
    stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
    places = sharding.parameter_shardings(functions, mesh)
    everywhere = meshes.replicated(mesh)
    fixed = {p: described(x.shape, x.dtype, places[p]) for p, x in functions.abstract.items()}
    paths = stages.trainable(stage, functions)
    extra = {p: described((), jnp.float32, everywhere) for p in stage.extra}
    trained = {p: {**fixed, **extra}[p] for p in paths}
    optimizer = optim.build(config.optim, paths, 1000)
    state = jax.eval_shape(optimizer.init, trained)
    bank = abstract_bank(config, functions, mesh) if stage.needs_bank else None
    batch = abstract_batch(stage, functions, config, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    update = step.make(stage, functions, optimizer, 1)
    traced = update.trace(trained, state, fixed, batch, bank, key)
    out, _, metrics = traced.lower().out_info
    assert {p: x.shape for p, x in out.items()} == {p: x.shape for p, x in trained.items()}
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32
    if stage.needs_bank:  # it is passed over in blocks: nothing has a value per query and row
        count, per_row = bank.targets.shape[0], functions.target_shape[0]
        rows = {count // (k * d) for k in (1, per_row) for d in (1, 8)}
        shapes = set(intermediates(traced.jaxpr.jaxpr))
        assert any(rows & set(shape) for shape in shapes)
        assert not [s for s in shapes if rows & set(s) and per_query(s, rows, functions)]


def per_query(shape, rows, functions):
    """Whether an array has more values for each bank row than the row's own scores."""
    if {functions.target_shape[1], functions.reference_shape[1]} & set(shape):
        return False  # rows of the bank themselves
    return math.prod(shape) // max(rows & set(shape)) > functions.target_shape[0]


def intermediates(jaxpr):
    """The shapes of all values in a program, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield from (x.aval.shape for x in equation.outvars if hasattr(x.aval, "shape"))
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from intermediates(inner)
