# SPDX-License-Identifier: Apache-2.0
"""Weights of `gemma_embedding`: a folder of transformers' EmbeddingGemma2Model.

The audio encoder is not read, and what is written has none. After stage two the encoder of queries
is another than that of the index; the folder is then the model of queries, with the encoder of the
index beside it, in `index_text`. That one is a folder of transformers' EmbeddingGemma2TextModel.
"""

import json
from pathlib import Path
from typing import Any

from cir_jax.convert import inputs, sources
from cir_jax.convert.containers import safe_tensors
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source, read_json
from cir_jax.convert.tables import expand, tensors_of
from cir_jax.convert.transformers_files import json_bytes
from cir_jax.data import prompts, tokenizer_files
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.models.clip_sum.layouts import INDEX_TEXT
from cir_jax.models.gemma_embedding.model import encoder_of
from cir_jax.towers.gemma import encoder, huggingface, sizes, weight_rules
from cir_jax.towers.gemma.sizes import GemmaSize
from cir_jax.weight_rules import Rule

# Files that make the inputs of transformers' model, as they lie beside its weights.
PROCESSOR = (
    *("tokenizer.json", "tokenizer.model", *tokenizer_files.SETTINGS),
    *(huggingface.PROCESSOR, huggingface.PREPROCESSOR, "chat_template.jinja"),
)


def find_huggingface(source: Source) -> Found | None:
    """A folder of transformers' EmbeddingGemma2Model."""
    group = source.groups.get("", {})
    if weight_rules.MARK not in group:
        return None
    if "config.json" not in source.configs:
        raise UserError(
            f"{source.place} has the names of transformers' {huggingface.CLASS} but no config.json "
            "was given, which says its layers; give the folder that has both, not the file alone"
        )
    size = huggingface.size_of(source.configs["config.json"], source.folder)
    if source.place.is_dir():
        huggingface.check_images(source.folder, size)
    config: dict[str, Any] = {"tower": sizes.name_of(size)}
    came: dict[str, Any] = {}
    if ids := image_ids(source, size):
        config["image_ids"] = ids
        came = inputs.tokenizer(source.folder)

    def agrees(key: str, value: Any) -> bool:
        found = encoder.encoder(config["tower"])
        if key == "image_ids":
            start, end = found.around
            return (tuple(value) or (start, size.marks.image, end)) == ids
        # The side of the images is no property of the weights: positions are of each side.
        return sizes.find(value, size.vision.image) == size

    return Found("", config, agrees=agrees, inputs=came)


def image_ids(source: Source, size: GemmaSize) -> tuple[int, ...]:
    """What the tokenizer beside the weights makes of an image alone; () where there is none.

    Raises:
      UserError: it is the tokenizer of another model.
    """
    if not source.place.is_dir() or not tokenizer_files.vocabularies(source.folder):
        return ()
    rules = encoder.encoder(sizes.name_of(size)).rules
    tokenizer = tokenizer_files.load(str(source.folder), rules=rules)
    mark = tokenizer.backend.number(prompts.IMAGE)
    if mark != size.marks.image:
        raise UserError(
            f"{source.folder}: {prompts.IMAGE} is token {mark} of the tokenizer and "
            f"{size.marks.image} of config.json: one of them is of another model; fetch them again"
        )
    around = (tokenizer.start, mark, tokenizer.end)
    return tuple(one for one in around if one is not None)


def processor_files(source: Source, config: Any) -> list[Path]:
    """Tokenizer and processor files beside the weights."""
    if not source.place.is_dir():
        return []
    return [source.folder / name for name in PROCESSOR if (source.folder / name).is_file()]


def huggingface_index(source: Source) -> tuple[Source, list[Rule]] | None:
    """The encoder of the index, which an export of stage two left beside the model."""
    folder = source.folder / INDEX_TEXT
    if not source.place.is_dir() or not folder.is_dir():
        return None
    opened = sources.open_source(folder)
    kinds = opened.configs.get("config.json", {}).get("layer_types") or []
    if "full_attention" not in kinds:
        raise UserError(f"{folder} has no config.json that says its layers; export the run again")
    return opened, weight_rules.text(kinds.index("full_attention") + 1)


def write_huggingface(place: Path, tensors: dict[str, Tensor], written: Written) -> list[Path]:
    """A folder that `EmbeddingGemma2Model.from_pretrained` loads."""
    if "float16" in written.dtypes.values():
        raise UserError(
            f"{place}: transformers would compute in the float16 that is written, in which this "
            "model gives no numbers; write --dtype bfloat16 or float32"
        )
    size = encoder_of(written.config).size
    content = _processor(size, written.files)
    another = any(path.startswith("text/") for path in written.differ)
    _check_alone(place, another)
    types = set(written.dtypes.values()) if tensors.keys() <= written.dtypes.keys() else set()
    dtype = "bfloat16" if types == {"bfloat16"} else "float32"
    content["config.json"] = json_bytes(huggingface.config_of(size, dtype))
    with whole(place / "model.safetensors") as file:
        safe_tensors.write(file, tensors, {"format": "pt"})
    for name, what in content.items():
        with whole(place / name) as file:
            file.write(what)
    if another:
        _write_index(place / INDEX_TEXT, size, dtype, written)
    return sorted(p for p in place.rglob("*") if p.is_file())


def _write_index(folder: Path, size: GemmaSize, dtype: str, written: Written) -> None:
    text = {path: x for path, x in written.index.items() if path.startswith("text/")}
    table = expand(weight_rules.text(size.text.period), text)
    prefix = weight_rules.TEXT
    dtypes = {name.removeprefix(prefix): kind for name, kind in written.dtypes.items()}
    with whole(folder / "model.safetensors") as file:
        safe_tensors.write(file, tensors_of(table, text, dtypes), {"format": "pt"})
    with whole(folder / "config.json") as file:
        file.write(json_bytes(huggingface.text_config_of(size, dtype)))


def _processor(size: GemmaSize, files: tuple[Path, ...]) -> dict[str, bytes]:
    """Name -> content of the files beside the weights; images become squares of our side.

    Raises:
      UserError: no soft tokens that the processor may be told give squares of that side.
    """
    content = {path.name: path.read_bytes() for path in files if path.name in PROCESSOR}
    budget, told = huggingface.budget_of(size), False
    for name in (huggingface.PROCESSOR, huggingface.PREPROCESSOR):
        if name in content:
            held = read_json(next(path for path in files if path.name == name))
            inner = held.get("image_processor", held)
            if isinstance(inner, dict) and "max_soft_tokens" in inner:
                inner["max_soft_tokens"], told = budget, True
                content[name] = (json.dumps(held, indent=2) + "\n").encode()
    if not told:
        content[huggingface.PREPROCESSOR] = json_bytes(huggingface.processor_of(size))
    return content


def _check_alone(folder: Path, another: bool) -> None:
    """Raises UserError if a folder has weights that would stay beside those that are written."""
    replaced = ("model.safetensors", *([INDEX_TEXT] if another else []))
    names = (*sources.WEIGHTS, INDEX_TEXT)
    there = [n for n in names if n not in replaced and (folder / n).exists()]
    if there:
        raise UserError(
            f"{folder} holds {', '.join(there)} of an earlier export or another project, and would "
            "be read as a mixture of both; give another folder, or delete that"
        )


LAYOUTS = (
    Layout(
        "huggingface",
        f"a folder of transformers' {huggingface.CLASS}",
        find_huggingface,
        lambda config: weight_rules.huggingface(encoder_of(config).size),
        ignored=(weight_rules.AUDIO,),
        write=write_huggingface,
        two_trees=True,
        index=huggingface_index,
        files=processor_files,
    ),
)
