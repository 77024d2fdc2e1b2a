# SPDX-License-Identifier: Apache-2.0
"""Running out of memory where a model is loaded, encodes and ranks: what takes less, in a sentence.

Each context is `cir_jax.runtime.memory.guard` with the advice of its place.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax.contract import Functions
from cir_jax.files import gigabytes
from cir_jax.runtime import memory, optim
from cir_jax.towers import attention

_HOST = "JAX_PLATFORMS=cpu, with which the memory of the host counts"


def loading(functions: Functions, mesh: Mesh) -> AbstractContextManager[None]:
    """For reading parameters and placing them on the devices.

    Args:
      functions: the model.
      mesh: the devices.
    """

    def advice() -> str:
        parameters = optim.size(functions.abstract)
        choices = [f"a smaller model.tower (this one has {parameters:,} parameters)"]
        return _less([*choices, *_split(functions, mesh), *_host(mesh)])

    return memory.guard("loading the parameters", advice)


@contextlib.contextmanager
def encoding(doing: str, functions: Functions, mesh: Mesh, key: str, batch: int) -> Iterator[None]:
    """For encoding images and composing queries; an error of the kernel of attention names its key.

    Args:
      doing: for the message.
      functions: the model.
      mesh: the devices.
      key: what messages call the batch.
      batch: images or queries at a time.
    """

    def advice() -> str:
        choices = [f"a smaller {key} (now {batch})"]
        if functions.config.dtype != "bfloat16":
            choices.append(f"model.dtype=bfloat16 (now {functions.config.dtype})")
        return _less([*choices, *_split(functions, mesh)])

    kernel = attention.named(lambda: functions.config.attention)
    with kernel, memory.guard(doing, advice):
        yield


def ranking(doing: str, gallery: Sequence[int], mesh: Mesh) -> AbstractContextManager[None]:
    """For holding the rows of a gallery, and ranking them.

    Args:
      doing: for the message.
      gallery: G, K and D of its rows, float32.
      mesh: the devices, each of which holds a share.
    """
    images, each, width = gallery
    size = gigabytes(4 * images * each * width)

    def advice() -> str:
        held = f"{images:,} x {each} x {width} floats, {size}"
        choices = [
            f"more devices, which share the gallery (now {mesh.size}; it has {held})",
            "a gallery of fewer images",
        ]
        return _less([*choices, *_host(mesh)])

    return memory.guard(doing, advice)


def evaluating(config: ConfigDict) -> AbstractContextManager[None]:
    """For all of an evaluation, where nothing within says what it was about.

    Args:
      config: of the evaluation.
    """

    def advice() -> str:
        choices = [
            f"a smaller data.threads (now {config.data.threads}): images decoded at a time",
            f"a smaller eval.batch (now {config.eval.batch})",
            "a host with more memory",
        ]
        return _less(choices)

    return memory.guard("evaluating", advice)


def _split(functions: Functions, mesh: Mesh) -> list[str]:
    if functions.fsdp is None and mesh.size > 1:
        return ["mesh.fsdp=true (now false): parameters are split over the devices"]
    return []


def _host(mesh: Mesh) -> list[str]:
    return [] if mesh.devices.flat[0].platform == "cpu" else [_HOST]


def _less(choices: Sequence[str]) -> str:
    return f"What takes less: {'; '.join(choices)}"
