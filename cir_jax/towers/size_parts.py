# SPDX-License-Identifier: Apache-2.0
"""What sizes of all families share: the inner width of an MLP in a name, heads that must divide."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from cir_jax.errors import UserError, nearest

P = TypeVar("P")


def short(part: P) -> P:
    """A part with an MLP of four times its width written as 0, so that equal sizes compare so."""
    same = getattr(part, "mlp", 0) == 4 * getattr(part, "width", 0)
    return dataclasses.replace(part, mlp=0) if same else part  # type: ignore[type-var]


def mlp(part: Any) -> str:
    """The inner width of the MLPs of a part as it stands in a name that is written out."""
    return f"-m{part.mlp}" if part.mlp else ""


def undivided(parts: Iterable[tuple[str, int, int]]) -> list[str]:
    """What is wrong with heads: of parts, each a name, a width and a number of heads."""
    return [
        f"{part} width {width} does not divide into {heads} heads"
        for part, width, heads in parts
        if heads < 1 or width < 1 or width % heads
    ]


def unknown(name: str, known: Collection[str], family: str, of: str = "") -> UserError:
    """The error for a name that is no size.

    Args:
      name: as it was given.
      known: names of sizes.
      family: folder of `cir_jax.towers`.
      of: " of ...", which models' towers these are.
    """
    return UserError(
        f"no tower {name!r}{of}; there are: {', '.join(known)}.{nearest(name, known)} A size of "
        f"your own is written out, as cir_jax/towers/{family}/sizes.py says"
    )
