# SPDX-License-Identifier: Apache-2.0
"""Weights of `tgcir`: the runs of TG-CIR's own code and of the released stage two, or a CLIP.

Stage one is {"state_dict"}, with or without an epoch: one token learner and one table of masks
serve images and texts. The released stage two starts copies for the texts from them, whatever the
file has for texts, and then holds both, {"epoch", "state_dict"}: what the images have is the index
tree here, what the texts have the query tree. Both stages hold the ViT twice, as `clip.visual` and
as `image_backbone`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax import progress
from cir_jax.convert.containers.tensors import Tensor, of
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source
from cir_jax.convert.tied import Copied
from cir_jax.errors import UserError
from cir_jax.models import clip_sum as two_towers
from cir_jax.models.clip_sum import layouts as clip_sum
from cir_jax.towers import encoders
from cir_jax.towers.clip import sizes, weight_rules
from cir_jax.weight_rules import Ignored, Rule, dense

KEY = "state_dict"
CLIP = "backbone.clip."
MARK = "backbone.tokenlearn.tokenizers.0.conv.0.weight"
TEXT = "_text"  # after the names of what stage two copies for the texts
# Published name -> ours.
LINEARS = {
    "backbone.fc": "image_projection",
    "backbone.text_fc": "text_projection",
    "s_remain_map.0": "gate/fc1",
    "s_remain_map.2": "gate/fc2",
    "t_remain_map.0": "teacher_keep/fc1",
    "t_remain_map.2": "teacher_keep/fc2",
    "t_replace_map.0": "teacher_replace/fc1",
    "t_replace_map.2": "teacher_replace/fc2",
}
VIT_TWICE = Copied(r"backbone\.clip\.visual\.(.*)", r"backbone.image_backbone.\1")
LEARNED = "loss_T"
START = 10.0  # of LEARNED in TG-CIR's own code
INVERSE_TEMPERATURE = Ignored(
    LEARNED, "the learned inverse temperature of stage one, which is none of the model"
)
TEXT_COPIES = Ignored(
    r"backbone\.(tokenlearn|masks)_text\..*",
    "stage two starts the copies for texts from those for images",
)


def find(source: Source, stage: int) -> Found | None:
    """A run of that stage: what stage two left says its epoch and has the copies for texts."""
    group = source.groups.get(KEY, {})
    copies = f"backbone.masks{TEXT}.weight" in group and LEARNED not in group
    finished = "epoch" in source.values and copies
    if MARK not in group or finished != (stage == 2):
        return None
    where = f"{source.place} ({KEY})"
    size, context = weight_rules.openai_size(group, CLIP, "quick_gelu", where)
    _check_vit(size, where)
    config = {"tower": sizes.name_of(size), "context": weight_rules.context_key(context)}
    return Found(KEY, config, data={**clip_sum.CROPPED, "loading": "released"})


def find_clip(source: Source, of_clip: Callable[[Source], Found | None]) -> Found | None:
    """A CLIP to start from, which must have a ViT."""
    found = of_clip(source)
    if found is None:
        return None
    return found if encoders.find(found.config["tower"]).tokens else None


def rules(config: Any, copy: str = "") -> list[Rule]:
    """The rules of a whole run; `copy` is TEXT where the texts have copies of their own."""
    found = weight_rules.openai(sizes.find(config.tower), CLIP)
    for theirs, ours in LINEARS.items():
        found += dense(theirs, ours)
    return [*found, Rule("local_weight", "token_weights"), *shared(copy)]


def shared(copy: str = "") -> list[Rule]:
    """The rules of what images and texts share in stage one."""
    head = f"backbone.tokenlearn{copy}.tokenizers.{{head}}.conv.0"
    return [
        Rule(f"{head}.weight", "token_learner/kernel", ones=(0, 2)),
        Rule(f"{head}.bias", "token_learner/bias", ones=(0,)),
        Rule(f"backbone.masks{copy}.weight", "masks"),
    ]


def _check_vit(size: sizes.ClipSize, where: str) -> None:
    if not isinstance(size.vision, sizes.VisionTransformerSize):
        raise UserError(
            f"{where} is a TG-CIR with a ResNet, whose tokens are made otherwise; this project has "
            "the one with a ViT, which the published figures are of: give such a run"
        )


def told(tensors: Mapping[str, Tensor], config: Any, where: str) -> Mapping[str, Tensor]:
    """The same tensors; says so if a run of stage one has copies for texts that are others."""
    copies = [name for name in tensors if re.fullmatch(TEXT_COPIES.regex, name)]
    both = [(tensors[n], tensors.get(n.replace(TEXT, "", 1))) for n in copies]
    if any(b is not None and not np.array_equal(a.read(), b.read()) for a, b in both):
        progress.say(
            f"{where}: token learner and masks for texts are not those for images; as in the "
            "released code, a file of stage one gives those for images to both"
        )
    return tensors


def temperature(tensors: Mapping[str, Tensor], kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """The learned inverse temperature, as it came or as TG-CIR starts with it."""
    return {LEARNED: of(np.asarray([kept.get(LEARNED, START)], np.float32))}


def write(place: Path, tensors: dict[str, Tensor], written: Written) -> list[Path]:
    """Stage one as .pt; a temperature that the run ended with is put in."""
    if written.temperature:
        tensors = tensors | {LEARNED: of(np.asarray([1 / written.temperature], np.float32))}
    return WRITE(place, tensors, written)


WRITE = functools.partial(clip_sum.write_state_dict, KEY)
LAYOUTS = (
    Layout(
        "tgcir",
        "stage one of TG-CIR, {state_dict}",
        functools.partial(find, stage=1),
        rules,
        ignored=(INVERSE_TEMPERATURE, TEXT_COPIES),
        fitted=told,
        copied=(VIT_TWICE,),
        write=write,
        extra=temperature,
    ),
    Layout(
        "tgcir_spn",
        "best.pt of the released stage two of TG-CIR, {epoch, state_dict}",
        functools.partial(find, stage=2),
        functools.partial(rules, copy=TEXT),
        index_rules=lambda config: shared(),
        copied=(VIT_TWICE,),
        write=WRITE,
    ),
    *(
        dataclasses.replace(
            layout,
            part=True,
            # Under the names of whole models it would be taken for one.
            write=None if layout.name in ("clip4cir", "spn") else layout.write,
            find=functools.partial(find_clip, of_clip=layout.find),
        )
        for layout in two_towers.LAYOUTS
    ),
)
