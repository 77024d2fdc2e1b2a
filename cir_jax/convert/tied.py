# SPDX-License-Identifier: Apache-2.0
"""Tensors that a PyTorch file holds twice, because two modules share them.

`state_dict` saves a shared tensor under each of its names. We hold it once: on import the second
must say what the first says, and on export it is written again, so that PyTorch loads strictly.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cir_jax.convert.containers.tensors import Tensor
from cir_jax.errors import UserError

_LISTED = 3  # names that a message shows


@dataclass(frozen=True)
class Copied:
    r"""Tensors and the names of their copies, as `re.sub` has them.

    Attributes:
      first: regex of the name that a rule reads.
      second: the name of its copy, with `\1` for the first group.
    """

    first: str
    second: str


def names(copied: Iterable[Copied], tensors: Iterable[str]) -> dict[str, str]:
    """Name of each copy -> name of the tensor that it repeats."""
    copied, tensors = list(copied), list(tensors)
    return {
        found.expand(one.second): name
        for one in copied
        for name in tensors
        if (found := re.fullmatch(one.first, name))
    }


def check(copies: Mapping[str, str], tensors: Mapping[str, Tensor], where: str) -> None:
    """Compares the copies that a file holds with what they repeat; the values are read.

    Raises:
      UserError: some differ, so that it is not known which of the two the model is.
    """
    differ = [
        f"{copy} and {name}"
        for copy, name in copies.items()
        if copy in tensors and not _same(tensors[copy], tensors[name])
    ]
    if differ:
        more = f" and {len(differ) - _LISTED} more" if len(differ) > _LISTED else ""
        raise UserError(
            f"{where}: {', '.join(differ[:_LISTED])}{more} differ, but they are one tensor under "
            "two names in the PyTorch model; save the model again, from PyTorch"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    # Bytes, not values: numbers that are none are equal as well.
    return a.shape == b.shape and a.dtype == b.dtype and _bytes(a) == _bytes(b)


def _bytes(tensor: Tensor) -> bytes:
    return np.ascontiguousarray(tensor.read()).tobytes()
