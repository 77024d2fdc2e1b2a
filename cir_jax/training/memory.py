# SPDX-License-Identifier: Apache-2.0
"""What a run takes of the memory that is there, and what takes less where it is too little."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from cir_jax.data import kept_pixels
from cir_jax.files import gigabytes
from cir_jax.runtime import memory, optim
from cir_jax.towers import attention
from cir_jax.training import dry_run
from cir_jax.training import stage as stages
from cir_jax.training.setup import Data, Setup


def check(setup: Setup, data: Data) -> None:
    """Refuses a run whose parameters, moments and bank alone do not fit.

    Raises:
      OutOfMemory: with what would take less.
    """
    there = memory.of_device(setup.mesh.local_devices)
    parts = dry_run.memory(setup, data.steps, *dry_run.bank(data))
    needed = sum(parts.values())
    if 0 < there < needed:
        listed = ", ".join(f"{what} {gigabytes(size)}" for what, size in parts.items() if size)
        raise memory.OutOfMemory(
            f"this run needs {gigabytes(needed)} on each device before its first step ({listed}), "
            f"and there are {gigabytes(there)}. {advice(setup, data.place, resident=True)}"
        )


def told(setup: Setup, data: Data, program: Any) -> str:
    """The line before the first step: parameters, and memory against what there is.

    Args:
      setup: of the run.
      data: its triplets.
      program: the compiled step.

    Raises:
      OutOfMemory: the step does not fit into the host, which would end this process without a word.
    """
    abstract = {**setup.functions.abstract, **setup.functions.factors}
    trained = [p for p in stages.trainable(setup.stage, setup.functions) if p in abstract]
    total, own = optim.size(abstract), optim.size({p: abstract[p] for p in trained})
    device = setup.mesh.local_devices[0]
    needed, there = memory.of_program(program), memory.of_device(setup.mesh.local_devices)
    of = f"of {gigabytes(there)}" if there else "(how much there is, is not known)"
    line = (
        f"{total:,} parameters, {own:,} of them train; a step of {setup.config.batch:,} takes "
        f"{gigabytes(needed)} {of} on each {device.platform} device"
    )
    if device.platform == "cpu" and 0 < there < needed:
        raise memory.OutOfMemory(f"out of memory: {line}. {advice(setup, data.place)}")
    return line


@contextlib.contextmanager
def guard(setup: Setup, place: str = "", doing: str = "training") -> Iterator[None]:
    """A context in which running out of memory is an error that says what takes less.

    An error of the kernel of attention names its key there, too.

    Args:
      setup: of the run.
      place: where its references lie.
      doing: for the message.
    """
    kernel = attention.named(lambda: setup.config.model.attention)
    with kernel, memory.guard(doing, lambda: advice(setup, place)):
        yield


def reading(config: ConfigDict) -> Any:
    """A context like `guard` for what comes before there is a setup: reading triplets and images.

    Args:
      config: of the run.
    """
    return memory.guard("reading the data", lambda: _of_reading(config))


def _of_reading(config: ConfigDict) -> str:
    data = config.data
    choices = [f"a smaller data.threads (now {data.threads}): images that are decoded at a time"]
    if data.annotated != 0:
        now = "all" if data.annotated < 0 else f"{data.annotated:,}"
        choices.append(f"a smaller data.annotated (now {now}): triplets that are read")
    if data.generated:
        choices.append(f"fewer files in data.generated (now {len(data.generated)})")
    if data.unlabelled:
        now = f"{data.unlabelled_count:,}" if data.unlabelled_count else "all"
        choices.append(f"a smaller data.unlabelled_count (now {now})")
    return "What takes less: " + "; ".join(choices)


def advice(setup: Setup, place: str = "", *, resident: bool = False) -> str:
    """What takes less memory, with the present values; only what this run has.

    Args:
      setup: of the run.
      place: where its references lie.
      resident: leave out what only makes a step smaller.
    """
    choices = [] if resident else _of_a_step(setup)
    choices += _of_the_run(setup, place)
    return "What takes less: " + "; ".join(
        choices or ["a smaller model.tower, or devices with more memory"]
    )


def _of_a_step(setup: Setup) -> list[str]:
    config = setup.config
    choices = [f"a smaller batch (now batch={config.batch})"]
    if hasattr(setup.stage, "chunk"):
        few = _half(config.loss.chunk or config.batch)
        choices.append(
            f"loss.chunk={few} (now {config.loss.chunk}): encodes so many images at a time, with "
            "the same loss"
        )
    if config.model.remat != "layers":
        now = config.model.remat
        choices.append(f"model.remat=layers (now {now}): less memory for more computing")
    if _dtype(config) == "float32":
        choices.append("model.dtype=bfloat16 (now float32)")
    if setup.benchmark is not None or setup.stage.needs_bank:
        choices.append(f"a smaller eval.batch (now {config.eval.batch}) where images are encoded")
    return choices


def _of_the_run(setup: Setup, place: str) -> list[str]:
    config, choices = setup.config, []
    if jax.device_count() > 1 and not config.mesh.fsdp:
        choices.append("mesh.fsdp=true (now false): parameters are split over the devices")
    if setup.stage.needs_bank:
        if config.loss.bank_dtype == "float32":
            choices.append("loss.bank_dtype=bfloat16 (now float32)")
        if place == "device":
            choices.append(f"loss.references=disk (now {config.loss.references}, on the devices)")
    if setup.pixels.kind == kept_pixels.MEMORY:
        choices.append(
            f"data.pixels=disk or decode (now {config.data.pixels}, in memory): decoded images are "
            "kept elsewhere, or decoded anew"
        )
    return choices


def _half(number: int) -> int:
    """The largest divisor that is at most half: chunks split a batch."""
    return next((n for n in range(number // 2, 0, -1) if number % n == 0), 1)


def _dtype(config: ConfigDict) -> str:
    """What `model.dtype` comes to on these devices."""
    if config.model.dtype != "auto":
        return config.model.dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
