# SPDX-License-Identifier: Apache-2.0
"""Our own layout: one safetensors file with our paths as names. Every model has it, yours too.

It holds the query tree, and under `index:` those leaves of the index tree that differ from it: the
text tower, after stage two.
"""

import json
from pathlib import Path
from typing import Any

from cir_jax.convert.containers import safe_tensors
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source
from cir_jax.convert.tables import expand, tensors_of
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.weight_rules import Ignored, Rule

KEY = "cir_jax"  # of the metadata: JSON, {"model": section of the config}
INDEX = "index:"
SIZE_KEYS = ("name", "tower", "context", "image_size")  # of the section: what shapes follow from


def find(source: Source) -> Found | None:
    """A file that `write` made."""
    if KEY not in source.metadata:
        return None
    try:
        model = json.loads(source.metadata[KEY])["model"]
        said = {key: model[key] for key in SIZE_KEYS}
        for key, kind in zip(SIZE_KEYS, (str, str, int, int), strict=True):
            if type(said[key]) is not kind:
                raise ValueError(f"{key}={said[key]!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{source.place} says that this project wrote it, but its metadata are damaged "
            f"({error!r}); export it again"
        ) from None

    def agrees(key: str, value: Any) -> bool:  # the file of a model may lie elsewhere today
        return key == "name" and Path(value).name == Path(said["name"]).name

    return Found("", said, agrees=agrees)


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
    metadata = {KEY: json.dumps({"model": written.config.to_dict()})}
    with whole(place) as file:
        safe_tensors.write(file, both, metadata)
    return [place]


LAYOUT = Layout(
    "safetensors",
    "a safetensors file of this project",
    find,
    rules=None,
    ignored=(Ignored(f"{INDEX}.*", "leaves of the index tree, which are read apart"),),
    write=write,
    index=index,
    two_trees=True,
)
