# SPDX-License-Identifier: Apache-2.0
"""The step of a run as the trainer builds it, of shapes instead of arrays.

Nothing is read but the config: `training.setup` and `training.state` put the run together on the
devices of a machine that is elsewhere, and `training.step` makes its update.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax.bank import bank as banks
from cir_jax.bank import references
from cir_jax.data import tokens
from cir_jax.errors import UserError
from cir_jax.losses import in_bank
from cir_jax.runtime import mesh as meshes
from cir_jax.training import setup as setups
from cir_jax.training import state as states
from cir_jax.training import step
from cir_jax.training.setup import Setup
from tools.planning import datasets
from tools.planning.chips import Chip
from tools.planning.datasets import Counts

EXCLUDED = 8  # other targets of the same query that `loss.exclude_positives` makes room for


@dataclass(frozen=True)
class Program:
    """One step, and what it is a part of.

    Attributes:
      setup: of the run.
      counts: of its data.
      place: where references lie, see `cir_jax.bank.references`; "" without a bank.
      references: their number.
      text: length of the texts in tokens.
      steps: of the whole run.
      update: as `training.step.make` gives it.
      arguments: of `update`, as shapes with shardings.
    """

    setup: Setup
    counts: Counts
    place: str
    references: int
    text: int
    steps: int
    update: jax.stages.Wrapped
    arguments: tuple[Any, ...]


def load(spec: str, changes: list[str]) -> ConfigDict:
    """The config of a run on an accelerator.

    Raises:
      UserError: it is no config of training, or what `config.load` finds.
    """
    config = configs.load(spec, changes)
    if "stage" not in config:
        raise UserError(
            f"--config {spec} makes triplets and trains nothing; plan a run that trains"
        )
    if config.model.dtype == "auto":  # of this machine that would be float32
        config = configs.override(config, ["model.dtype=bfloat16"])
    return setups.resolve(config)


def build(config: ConfigDict, mesh: Mesh, chip: Chip, counts: Counts, text: int = 0) -> Program:
    """The step of a run.

    Args:
      config: as `load` gives it.
      mesh: of the machine.
      chip: its devices.
      counts: of the data.
      text: tokens of the longest text of a batch; 0 is the assumed one.

    Raises:
      UserError: values that do not go together, or a batch of more triplets than there are.
    """
    setup = setups.assemble(config, mesh)
    if config.batch > counts.triplets:
        raise UserError(
            f"batch {config.batch} is larger than the {counts.triplets} triplets; use a smaller one"
        )
    steps = config.steps or config.epochs * (counts.triplets // config.batch)
    number, place = 0, ""
    if setup.stage.needs_bank:
        by_text = setup.functions.per_triplet and config.loss.reference_text == "per_triplet"
        number = counts.triplets * counts.texts if by_text else counts.references
        place = _place(setup, number, chip)
    length = text_length(setup, text)
    shapes, optimizer = states.abstract(setup, steps)
    places = jax.tree.map(lambda x: x.sharding, (shapes["trained"], shapes["optimizer"]))
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        *(shapes["trained"], shapes["optimizer"], shapes["fixed"]),
        _batch(setup, place, length),
        _bank(setup, place, counts.images, number),
        _put(key.shape, key.dtype, meshes.replicated(mesh)),
    )
    update = step.make(setup.stage, setup.functions, optimizer, 1, places)
    return Program(setup, counts, place, number, length, steps, update, arguments)


def on_one_device(program: Program, chip: Chip) -> Program:
    """The share of one device as a program of its own: its rows of the batch, its rows of the bank.

    What is left out are the values that a device has of other devices' rows: queries and targets of
    the whole batch, [B, D].
    """
    setup, counts = program.setup, program.counts
    data, size = setup.mesh.shape[meshes.DATA], setup.mesh.size
    config = setup.config.copy_and_resolve_references()
    with config.unlocked():
        config.batch //= data
        config.steps = program.steps
        config.mesh.data = config.mesh.model = 1
        if "fsdp" in config.mesh:
            config.mesh.fsdp = False
        if "chunk" in config.loss:
            config.loss.chunk //= data
        if program.place:
            config.loss.references = program.place
            config.loss.bank_block = block(setup)
    own = dataclasses.replace(
        counts,
        images=-(-counts.images // size),
        references=-(-program.references // size),
    )
    return build(config, meshes.make(1, 1, jax.devices()[:1]), chip, own, program.text)


def block(setup: Setup) -> int:
    """Rows of a block of the bank loss on a device of the machine."""
    config, (_, width) = setup.config, setup.functions.target_shape
    return config.loss.bank_block or in_bank.block_size(config.batch, width, setup.mesh)


def text_length(setup: Setup, wanted: int) -> int:
    """Tokens of the texts of a batch, padded: where a run packs them (`data.pack_texts`), a plan
    counts more of them than it computes."""
    inputs, config = setup.functions.inputs, setup.config
    context = inputs.tokenizer.context
    if not inputs.cut_padding:
        return context
    longest = min(wanted or datasets.TEXT, context)
    return tokens.fit(longest, context, config.data.text_lengths)


def _place(setup: Setup, rows: int, chip: Chip) -> str:
    """As `references.choose_place`, for a chip that is not here."""
    place = setup.config.loss.references
    if place != "auto":
        return place
    values = rows
    for size in setup.functions.reference_shape:
        values *= size
    allowed = min(references.BUDGET, chip.memory / 4)
    return "device" if values * references.BYTES["device"] / setup.mesh.size <= allowed else "disk"


def _batch(setup: Setup, place: str, text: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of a batch, as `cir_jax.data.pipeline.batches` gives them."""
    size, side, loss = setup.config.batch, setup.functions.image_size, setup.config.loss
    excluded = 0
    if "exclude_id" in setup.stage.fields:
        excluded = loss.exclude_reference + EXCLUDED * loss.exclude_positives
    shapes = {
        "text": ((size, text), jnp.int32),
        "reference_pixels": ((size, side, side, 3), jnp.uint8),
        "target_pixels": ((size, side, side, 3), jnp.uint8),
        "reference_row": ((size,), jnp.int32),
        "reference": ((size, *setup.functions.reference_shape), jnp.bfloat16),
        "exclude_id": ((size, excluded), jnp.int32),
    }
    ids = dict.fromkeys(("reference_id", "target_id", "text_id", "source_id"), ((size,), jnp.int32))
    extra = (references.FIELDS[place],) if place else ()
    read = ids | {name: shapes[name] for name in (*setup.stage.fields, *extra)}
    rows = meshes.batch_sharding(setup.mesh)
    return {name: _put(shape, dtype, rows) for name, (shape, dtype) in read.items()}


def _bank(setup: Setup, place: str, images: int, references: int) -> Any:
    """The bank on the devices, as `cir_jax.bank.bank.place` puts it there; None without one."""
    if not place:
        return None
    rows, devices = meshes.row_sharding(setup.mesh), setup.mesh.size
    (per_row, width), each = setup.functions.target_shape, setup.functions.reference_shape

    def filled(number: int, per_row: int, width: int, dtype: Any) -> Any:
        return _put((-(-number // devices) * devices * per_row, width), dtype, rows)

    kind, held = jnp.dtype(setup.config.loss.bank_dtype), None
    if place == "device":
        held = filled(references, 1, math.prod(each), jnp.float32)
    return banks.Bank(filled(images, per_row, width, kind), held, images)


def _put(shape: tuple[int, ...], dtype: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)
