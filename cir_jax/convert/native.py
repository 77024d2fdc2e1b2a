# SPDX-License-Identifier: Apache-2.0
"""Our own layout: one safetensors file with our paths as names. Every model has it, yours too.

It holds the query tree, and under `index:` those leaves of the index tree that differ from it: the
text tower, after stage two. Its metadata say which model of which size it is, and how images and
texts are made into what the model was trained with. Files of a tokenizer that came with the weights
are in it too, under `file:`, as tensors of bytes.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.convert import inputs
from cir_jax.convert.containers import safe_tensors
from cir_jax.convert.containers.tensors import Tensor, of
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source
from cir_jax.convert.tables import expand, tensors_of
from cir_jax.data import json_files, tokenizer_files
from cir_jax.data.tokenizer_files import PREFIX
from cir_jax.errors import UserError
from cir_jax.files import check_version, whole
from cir_jax.weight_rules import Ignored, Rule

VERSION = 1  # of what the metadata say, and of the names of the tensors
# Of the metadata: JSON, {"version", "model": section of the config, "data": some of its keys}.
KEY = "cir_jax"
INDEX = "index:"
GOLDEN = "cir_jax_golden"  # of the metadata: base64, see `cir_jax.retrieval.golden`
# Of the `model` section, what shapes follow from; of `data`, what images and texts are made by.
SIZE_KEYS = {"name": str, "tower": str, "context": int, "image_size": int}
INPUT_KEYS = {
    "pad": str, "target_ratio": float, "text_lengths": list, "on_long": str,
    "loading": str, "background": str, "resize": str,
}  # fmt: skip
# Of files that were written before there was the key.
_BEFORE = {"loading": "released", "background": "white", "resize": "pillow"}


def find(source: Source) -> Found | None:
    """A file that `write` made. Those of version 0.1.0 do not say how images are padded."""
    if KEY not in source.metadata:
        return None
    try:
        content = dict(json_files.loads(source.metadata[KEY]))
        check_version(content, VERSION, f"{source.place}")
        model = _typed(content["model"], SIZE_KEYS)
        came = _inputs(content["model"], source.place)
        data = said_of(content["data"]) if "data" in content else {}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{source.place} says that this project wrote it, but its metadata are damaged "
            f"({error!r}); export it again"
        ) from None

    def agrees(key: str, value: Any) -> bool:  # the file of a model may lie elsewhere today
        return key == "name" and Path(value).name == Path(model["name"]).name

    return Found("", model, agrees=agrees, data=data, inputs=came)


def _inputs(model: dict[str, Any], place: Path) -> dict[str, Any]:
    """What came with the weights; files of earlier versions had what the tower has."""
    found = {}
    for key, empty in inputs.KEYS.items():
        value = model.get(key, empty)
        value = tuple(value) if isinstance(value, list) else value
        if type(value) is not type(empty):
            raise ValueError(f"{key}={value!r}")
        found[key] = value
    # Where it lay once is nobody's business.
    return found | {inputs.TOKENIZER: str(place) if found[inputs.CONTENT] else ""}


def said_of(data: dict[str, Any]) -> dict[str, Any]:
    """How images and texts are made into inputs, as a file says it.

    Raises:
      ValueError, KeyError: it does not say that, or values are of another type.
    """
    return _typed({**_BEFORE, **data}, INPUT_KEYS)


def _typed(section: dict[str, Any], kinds: dict[str, type]) -> dict[str, Any]:
    """Those keys of a section, each of its type."""
    for key, kind in kinds.items():
        if type(section[key]) is not kind:
            raise ValueError(f"{key}={section[key]!r}")
    return {key: section[key] for key in kinds}


def index(source: Source) -> tuple[Source, list[Rule]] | None:
    """The leaves of the index tree that differ."""
    tensors = {
        name.removeprefix(INDEX): tensor
        for name, tensor in source.groups[""].items()
        if name.startswith(INDEX)
    }
    if not tensors:
        return None
    other = Source(source.place, source.container, {"": tensors})
    return other, [Rule(path, path) for path in tensors]


def write(place: Path, tensors: dict[str, Tensor], written: Written) -> list[Path]:
    """One .safetensors file."""
    if place.suffix != ".safetensors":
        raise UserError(
            f"{place}: this layout is a safetensors file; name it {place.stem}.safetensors"
        )
    differ = {path: written.index[path] for path in written.differ}
    table = expand([Rule(path, path) for path in differ], differ)
    index = tensors_of(table, differ, written.dtypes)
    both = tensors | {INDEX + path: tensor for path, tensor in index.items()}
    model = written.config.to_dict()
    if model.get(inputs.TOKENIZER):
        files = tokenizer_files.read(model[inputs.TOKENIZER])
        both |= {PREFIX + n: of(np.frombuffer(x, np.uint8)) for n, x in files.items()}
        del model[inputs.TOKENIZER]
    said = {key: value for key, value in model.items() if value or key not in inputs.KEYS}
    content = {"version": VERSION, "model": said}
    if written.data:
        data = {**_BEFORE, **written.data}
        content["data"] = {key: data[key] for key in INPUT_KEYS}
    metadata = {KEY: json.dumps(content)}
    if written.golden:
        metadata[GOLDEN] = base64.b64encode(written.golden).decode()
    with whole(place) as file:
        safe_tensors.write(file, both, metadata)
    return [place]


LAYOUT = Layout(
    "safetensors",
    "a safetensors file of this project",
    find,
    rules=None,
    ignored=(
        Ignored(f"{INDEX}.*", "leaves of the index tree, which are read apart"),
        Ignored(f"{PREFIX}.*", "files of the tokenizer"),
    ),
    write=write,
    index=index,
    two_trees=True,
)
