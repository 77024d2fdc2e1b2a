# SPDX-License-Identifier: Apache-2.0
"""Weights of `sprc`: the released runs of SPRC and of its second stage, and BLIP-2 to start from.

Stage one is {"epoch", "Blip2QformerCirAlignPrompt"}. `best.pt` of the second stage is {"epoch",
"state_dict"} with `blip_model.` before every name, and holds the Q-Former and the text projection
twice: those of stage one make prompts and targets (our index tree), their copies `Qformer_query`
and `text_proj_q` make the query. What only images need never trained in the copy, and is the same.

BLIP-2 itself comes from LAVIS in two files, `eva_vit_g.pth` and `blip2_pretrained.pth`, or from
transformers in one folder. Neither has prompts for stage one: they start at random.

Composed retrieval reads neither the head that predicts words nor the one that matches image and
text, and the temperature belongs to a stage: our model has none of them. An export names them for
those who load strictly. The temperature is what the run ended with, or as it came; the heads are
new, not trained: the first hands states on to the word table, to which it is tied, and the second
says nothing.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax import progress
from cir_jax.convert import sources
from cir_jax.convert.containers import safe_tensors, torch_writer
from cir_jax.convert.containers.tensors import Tensor, of
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source
from cir_jax.convert.tied import Copied
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.models.clip_sum import layouts as clip_sum
from cir_jax.towers.blip2 import huggingface, shapes, sizes, weight_rules
from cir_jax.towers.blip2.sizes import POSITIONS
from cir_jax.weight_rules import Ignored, Rule

STAGE_ONE = "Blip2QformerCirAlignPrompt"
PREFIX = "blip_model."
COPY = "Qformer_query"
EVA_MARK = "blocks.0.attn.q_bias"
HUGGINGFACE_MARK = "vision_model.embeddings.class_embedding"
TEMPERATURE = 0.07  # what the released code starts stage one with

IGNORED = (
    Ignored(r"(.*\.)?cls\.predictions\..*", "the head that predicts words"),
    Ignored(r"(.*\.)?itm_head\..*", "the head that says whether image and text match"),
    Ignored(r"(.*\.)?temp", "the temperature, which the config says"),
    Ignored(r".*\.position_ids", "the numbers 0, 1, 2 and so on"),
)
# eva_vit_g.pth is one block longer than what BLIP-2 reads of it, and has the end of a classifier.
EVA_END = Ignored(r"(blocks\.39|norm|fc_norm|head)\..*", "what follows the features of BLIP-2")
WORD_HEAD = Copied(
    r"(.*)bert\.embeddings\.word_embeddings\.weight", r"\1cls.predictions.decoder.weight"
)
IMAGE_SIDE = Copied(
    rf"({PREFIX}Qformer)(\.bert\.encoder\.layer\.\d+\."
    r"(?:crossattention|intermediate_query|output_query)\..*)",
    r"\1_query\2",
)


def find_spn(source: Source) -> Found | None:
    """`best.pt` of the second stage."""
    mark = PREFIX + shapes.WORDS.replace("Qformer", COPY)
    return _found(source, mark, PREFIX, data=clip_sum.PADDED)


def find_stage_one(source: Source) -> Found | None:
    """A run of SPRC, which is stage one here."""
    return _found(source, shapes.WORDS, "", (STAGE_ONE,), clip_sum.PADDED)


def find_lavis(source: Source) -> Found | None:
    """A BLIP-2 of LAVIS whose image encoder was fine-tuned, and so is in the file."""
    group = _group(source, shapes.CLASS, ("model", ""))
    return None if group is None else _found(source, shapes.WORDS, "", (group,))


def find_lavis_former(source: Source) -> Found | None:
    """The pretrained Q-Former of LAVIS, without the image encoder that it was trained on."""
    group = _group(source, shapes.WORDS, ("model", ""))
    if group is None or any(n.startswith("visual_encoder.") for n in source.groups[group]):
        return None
    tower = shapes.tower_of_former(source.groups[group], _where(source, group))
    return Found(group, {"tower": tower} if tower else {}, agrees=lambda key, value: True)


def find_eva(source: Source) -> Found | None:
    """The image encoder alone; which Q-Former goes with it is in another file."""
    group = _group(source, EVA_MARK, ("", "model", "module"))
    return None if group is None else Found(group, {})


def find_huggingface(source: Source) -> Found | None:
    """A folder of transformers' Blip2ForImageTextRetrieval."""
    tensors = source.groups.get("", {})
    if HUGGINGFACE_MARK not in tensors or "query_tokens" not in tensors:
        return None
    if "config.json" not in source.configs:
        raise UserError(
            f"{source.place} has the names of transformers' BLIP-2 but no config.json was given, "
            "which says its heads; give the folder that has both, not the file alone"
        )
    size = huggingface.size_of(source.configs["config.json"], source.folder)
    apart = huggingface.apart(tensors, source.place)
    return Found("", {"tower": sizes.name_of(size)}, tensors=apart)


def _found(
    source: Source,
    mark: str,
    prefix: str,
    groups: tuple[str, ...] = (),
    data: Mapping[str, Any] | None = None,
) -> Found | None:
    group = _group(source, mark, groups)
    if group is None:
        return None
    size = shapes.size_of(source.groups[group], prefix, _where(source, group))
    config = {"tower": sizes.name_of(size)}
    return Found(group, config, agrees=shapes.agrees(size), data=data or {})


def _group(source: Source, name: str, groups: tuple[str, ...] = ()) -> str | None:
    """Key of the first state dict that has a tensor called `name`."""
    chosen = (g for g in source.groups if not groups or g in groups)
    return next((g for g in chosen if name in source.groups[g]), None)


def _where(source: Source, group: str) -> str:
    return f"{source.place}{group and f' ({group})'}"


def spn_rules(config: Any) -> list[Rule]:
    """The query tree: what makes a query is the copy."""
    return weight_rules.lavis(PREFIX, COPY, "text_proj_q")


def spn_index_rules(config: Any) -> list[Rule]:
    """What the index tree has of the same: that of stage one."""
    return weight_rules.lavis_query(PREFIX)


def lavis_rules(config: Any) -> list[Rule]:
    """BLIP-2 as LAVIS trains it, without prompts."""
    return [rule for rule in weight_rules.lavis() if rule.path != "prompt_tokens"]


def former_rules(config: Any) -> list[Rule]:
    """The same without the image encoder."""
    return [rule for rule in lavis_rules(config) if not rule.path.startswith("visual/")]


def heads(prefix: str, tensors: Mapping[str, Tensor], kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """What our model has none of, see the module docstring; `kept` are scalars of the source."""
    width = tensors[prefix + "query_tokens"].shape[-1]
    found: dict[str, Tensor] = {}
    ends = ("bert.embeddings.word_embeddings.weight", "cls.predictions", "bert.embeddings")
    for words in [name for name in tensors if name.endswith(ends[0])]:
        head, embeddings = (words.removesuffix(ends[0]) + end for end in ends[1:])
        count = tensors[words].shape[0]
        found |= {
            f"{head}.transform.dense.weight": of(np.eye(width, dtype=np.float32)),
            f"{head}.transform.dense.bias": _zeros(width),
            f"{head}.transform.LayerNorm.weight": of(np.ones(width, np.float32)),
            f"{head}.transform.LayerNorm.bias": _zeros(width),
            f"{head}.bias": _zeros(count),
            f"{head}.decoder.bias": _zeros(count),
            f"{embeddings}.position_ids": of(np.arange(POSITIONS)[None]),
        }
    temperature = np.float32(kept.get(f"{prefix}temp", TEMPERATURE))
    return found | match_head(prefix, width) | {f"{prefix}temp": of(temperature)}


def match_head(prefix: str, width: int) -> dict[str, Tensor]:
    """The head that says whether image and text match, untrained: it always says the same."""
    return {
        f"{prefix}itm_head.weight": _zeros(2, width),
        f"{prefix}itm_head.bias": _zeros(2),
    }


def _zeros(*shape: int) -> Tensor:
    return of(np.zeros(shape, np.float32))


def write_state_dict(
    key: str, place: Path, tensors: dict[str, Tensor], written: Written
) -> list[Path]:
    """{"epoch", key: tensors} as .pt; a temperature that the run ended with is put in."""
    clip_sum.check_name(place, key)
    if written.temperature:
        name = "temp" if key == STAGE_ONE else f"{PREFIX}temp"
        tensors = tensors | {name: of(np.float32(written.temperature))}
    with whole(place) as file:
        torch_writer.write(file, {"epoch": written.epoch, key: tensors})
    return [place]


def write_huggingface(place: Path, tensors: dict[str, Tensor], written: Written) -> list[Path]:
    """A folder that `Blip2ForImageTextRetrieval.from_pretrained` loads, without a processor."""
    size = sizes.find(written.config.tower)
    there = [n for n in sources.WEIGHTS[1:] if (place / n).exists()]
    if there:
        raise UserError(
            f"{place} holds {', '.join(there)} of an earlier export or another project, and would "
            "be read as a mixture of both; give another folder, or delete that"
        )
    progress.say(f"{place}: transformers' BLIP-2 has no prompts of stage one; they are left out")
    with whole(place / "model.safetensors") as file:
        safe_tensors.write(file, huggingface.together(tensors), {"format": "pt"})
    with whole(place / "config.json") as file:
        content = json.dumps(huggingface.config_of(size), indent=2) + "\n"
        file.write(content.encode())
    return [place / "config.json", place / "model.safetensors"]


_LAVIS: dict[str, Any] = {"ignored": IGNORED, "copied": (WORD_HEAD,)}
LAYOUTS = (
    Layout(
        "spn",
        "best.pt of the released runs of the second stage, {epoch, state_dict}",
        find_spn,
        spn_rules,
        index_rules=spn_index_rules,
        ignored=IGNORED,
        copied=(WORD_HEAD, IMAGE_SIDE),
        write=partial(write_state_dict, "state_dict"),
        extra=partial(heads, PREFIX),
    ),
    Layout(
        "sprc",
        f"a released run of SPRC, {{epoch, {STAGE_ONE}}}",
        find_stage_one,
        lambda config: weight_rules.lavis(),
        write=partial(write_state_dict, STAGE_ONE),
        extra=partial(heads, ""),
        **_LAVIS,
    ),
    Layout(
        "lavis",
        "a BLIP-2 of LAVIS with its image encoder, {model}",
        find_lavis,
        lavis_rules,
        **_LAVIS,
    ),
    Layout(
        "lavis_former",
        "the pretrained Q-Former of LAVIS, {model}",
        find_lavis_former,
        former_rules,
        part=True,
        **_LAVIS,
    ),
    Layout(
        "eva",
        "the image encoder of BLIP-2 alone",
        find_eva,
        lambda config: weight_rules.eva(),
        ignored=(EVA_END,),
        part=True,
    ),
    Layout(
        "huggingface",
        f"a folder of transformers' {huggingface.ARCHITECTURE}",
        find_huggingface,
        lambda config: weight_rules.huggingface(),
        ignored=IGNORED,
        write=write_huggingface,
        extra=lambda tensors, kept: match_head("", tensors["query_tokens"].shape[-1]),
    ),
)
