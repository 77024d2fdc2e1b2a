# SPDX-License-Identifier: Apache-2.0
"""Weights of `clip_combiner`: a CLIP from one file, and the Combiner of CLIP4Cir from another.

The published Combiners are {"epoch", "Combiner"}; the fine-tuned CLIP that each belongs to is a
file of its own. Either can also come alone: a CLIP to train a new Combiner on.
"""

import dataclasses
from pathlib import Path

from cir_jax.convert.containers import torch_writer
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source
from cir_jax.files import whole
from cir_jax.models import clip_sum
from cir_jax.models.clip_sum import layouts
from cir_jax.weight_rules import Rule, dense

KEY = "Combiner"
# Published name -> ours.
LAYERS = {
    "text_projection_layer": "text_projection",
    "image_projection_layer": "image_projection",
    "combiner_layer": "combine",
    "output_layer": "output",
    "dynamic_scalar.0": "gate1",
    "dynamic_scalar.3": "gate2",
}


def find(source: Source) -> Found | None:
    """A Combiner; which CLIP it belongs to is not in its file, only the width of its features."""
    group = source.groups.get(KEY, {})
    return Found(KEY, {}, data=layouts.PADDED) if "dynamic_scalar.0.weight" in group else None


def rules() -> list[Rule]:
    """The rules of the Combiner."""
    found = []
    for theirs, ours in LAYERS.items():
        found += dense(theirs, f"combiner/{ours}")
    return found


def write(place: Path, tensors: dict[str, Tensor], written: Written) -> list[Path]:
    """{"epoch", "Combiner": tensors} as .pt."""
    layouts.check_name(place, KEY)
    with whole(place) as file:
        torch_writer.write(file, {"epoch": written.epoch, KEY: tensors})
    return [place]


LAYOUTS = (
    Layout(
        "combiner",
        "the Combiner of CLIP4Cir, {epoch, Combiner}",
        find,
        lambda config: rules(),
        write=write,
        part=True,
    ),
    *(dataclasses.replace(layout, part=True) for layout in clip_sum.LAYOUTS),
)
