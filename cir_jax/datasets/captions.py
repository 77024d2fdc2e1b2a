# SPDX-License-Identifier: Apache-2.0
"""Image-caption pairs, the data of stage zero.

A JSON list of {"image_id", "image_path", "caption"}, as the released captioner writes it, or JSON
lines of {"image": path, "caption": text or "captions": [texts]}.
"""

from pathlib import Path
from typing import Any

from cir_jax.data import places
from cir_jax.data.annotations import either, field, image_name, not_empty, read_json, read_lines
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.errors import UserError

SOURCE = "captions"


def read(file: str | Path, images_root: str | Path = "") -> list[TripletSet]:
    """One set of pairs: triplets without a reference.

    Args:
      file: a .json or .jsonl file.
      images_root: folder that image paths are relative to; the file's own folder if "".

    Raises:
      UserError: the file is missing, malformed or empty.
    """
    file = Path(file)
    base = Path(images_root) if images_root else file.parent
    if file.suffix == ".jsonl":
        records = read_lines(file)
    else:
        records = ((f"{file} record {i}", r) for i, r in enumerate(read_json(file)))
    written = places.Written(places.roots(base))
    pairs: list[Triplet] = []
    paths: dict[str, str] = {}
    for where, record in records:
        name, path, texts = _pair(record, where)
        file_of = written.file(base, path, where)
        if paths.setdefault(name, file_of) != file_of and not _one_file(paths[name], file_of):
            raise UserError(
                f"{where}: image {name!r} is {file_of}, and {paths[name]} before; one name cannot "
                "be two images: rename one of them"
            )
        pairs.append(Triplet("", name, texts, texts[0], SOURCE, where.rsplit("/", 1)[-1]))
    if not pairs:
        raise UserError(f"{file} holds no caption; stage zero needs image-caption pairs")
    return [TripletSet(SOURCE, tuple(pairs), paths)]


def _pair(record: dict[str, Any], where: str) -> tuple[str, str, tuple[str, ...]]:
    path = image_name(record, either(record, "image_path", "image"), where)
    texts = not_empty(field(record, either(record, "captions", "caption"), where), where)
    return str(record.get("image_id", path)), path, texts


def _one_file(one: str, other: str) -> bool:
    identity = places.Identity()
    return identity.of(one) == identity.of(other)
