# SPDX-License-Identifier: Apache-2.0
"""Weights of `clip_weighted`: every CLIP that `clip_sum` reads, to train a head on it.

The head is in files of ours alone, `--format safetensors`. An export in the layout of a CLIP is the
two towers, and says so.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from cir_jax import progress
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Layout, Written
from cir_jax.models import clip_sum

# Under these names a file is taken for a whole model, the plain sum.
WHOLE = ("clip4cir", "spn")
Write = Callable[[Path, dict[str, Tensor], Written], list[Path]]


def write_towers(
    write: Write, place: Path, tensors: dict[str, Tensor], written: Written
) -> list[Path]:
    """Writes the two towers, and says what is not among them."""
    files = write(place, tensors, written)
    progress.say(
        f"{place} holds the two towers of clip_weighted without the head that weighs them; "
        "--format safetensors holds all of it"
    )
    return files


def of_towers(layout: Layout) -> Layout:
    """A layout of `clip_sum`, of which a file lacks the head."""
    write: Write | None = None
    if layout.write and layout.name not in WHOLE:
        write = functools.partial(write_towers, layout.write)
    return dataclasses.replace(layout, part=True, write=write)


LAYOUTS = tuple(of_towers(layout) for layout in clip_sum.LAYOUTS)
