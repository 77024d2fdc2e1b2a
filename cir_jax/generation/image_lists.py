# SPDX-License-Identifier: Apache-2.0
"""Files that list images and their captions: titles, alt texts, crawled sets, earlier captions.

    .jsonl  one object per line           .json  a list of objects, or {name: caption}
    .csv .tsv  with a header              .tar   shards of NAME.jpg + NAME.txt or NAME.json

Which key says what is found by its name; `text_field` names the one of the text where it is
another (a dot goes one level down). Of a record with several names, such as an id and a file, the
one that is an image of the set counts. All but shards may be compressed by gzip.
"""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax.data import annotations, places
from cir_jax.datasets import shards
from cir_jax.datasets.importing import streams
from cir_jax.datasets.importing.shards import Packed
from cir_jax.errors import UserError

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".tar")
NAME_KEYS = (
    "image_id", "image_name", "url", "image", "file_name", "filename", "name", "image_path", "path",
)  # fmt: skip
PATH_KEYS = ("image_path", "path", "file_name", "filename", "image", "name")
TEXT_KEYS = ("caption", "captions", "caption.en", "title", "alt_text", "alt", "text")


@dataclass(frozen=True)
class Entry:
    """One image of a list.

    Attributes:
      name: of the image.
      names: all that it may be called, `name` first.
      path: its file, or an image in a shard; "" if the record gives none.
      record: as it was read.
      where: names the record in messages.
    """

    name: str
    names: tuple[str, ...]
    path: Any
    record: dict[str, Any]
    where: str

    def texts(self, key: str = "") -> tuple[str, ...]:
        """Its captions; () if it has none.

        Args:
          key: of the text, see the module; "" tries what is usual.

        Raises:
          UserError: there is no such key, or a text is none.
        """
        if key:
            text = _walk(self.record, key)
            if text is None:
                raise UserError(f"{self.where} has no {key!r}; it has: {', '.join(self.record)}")
        else:
            found = (t for k in TEXT_KEYS if (t := _walk(self.record, k)) is not None)
            text = next((t for t in found if not isinstance(t, str) or t.strip()), None)
        if text is None or text == []:
            return ()
        texts = annotations.not_empty(text, self.where, blank=True)
        return tuple(t.strip() for t in texts if t.strip())


def expand(files: Sequence[str]) -> list[str]:
    """The files that names, patterns and folders mean, sorted within each.

    Of a folder, NAME_stats.json beside a shard NAME.tar is left out.

    Raises:
      UserError: one means no file, or a file of another kind.
    """
    found: list[str] = []
    for name in files:
        if Path(name).is_dir():
            fitting = sorted(str(p) for p in Path(name).iterdir() if _kind(p) in SUFFIXES)
            # img2dataset writes statistics beside each shard.
            statistics = {f.removesuffix(".tar") + "_stats.json" for f in fitting}
            fitting = [f for f in fitting if f not in statistics]
        else:
            fitting = [name] if Path(name).is_file() else sorted(glob.glob(name))
        fitting = [f for f in fitting if Path(f).is_file()]
        if not fitting:
            raise UserError(
                f"{name} is no file, and no folder with {', '.join(SUFFIXES)} files in it"
            )
        found += fitting
    for name in found:
        if _kind(Path(name)) not in SUFFIXES:
            raise UserError(f"{name} is none of {', '.join(SUFFIXES)}; convert it to .jsonl")
    return list(dict.fromkeys(found))


def entries(files: Sequence[str], root: str = "", files_wanted: bool = True) -> Iterator[Entry]:
    """The records of all files, one in memory at a time (but for {name: caption}).

    Args:
      files: see `expand`.
      root: folder that paths are relative to; each file's own if "".
      files_wanted: the images will be opened, so their paths must be files within the roots; else
        `path` is as it was written.

    Raises:
      UserError: a record that cannot be parsed or has no name, a file that is cut, or a path that
        leads out of the roots.
    """
    # Of all files: a shard and its list may lie in two folders that keys name.
    written = places.Written(places.roots(root, *{str(Path(f).parent) for f in files}))
    for file in map(Path, files):
        base = Path(root) if root else file.parent
        for where, record in _records(file):
            if isinstance(record, str):
                raise UserError(f"{where}: {record}; correct that record, or take it out")
            if _kind(file) == ".tar":
                yield from _packed(where, record)
                continue
            record = {key.strip(): value for key, value in record.items()}
            named = (_walk(record, k) for k in NAME_KEYS)
            names = tuple(str(n) for n in named if isinstance(n, str | int) and n != "")
            if not names:
                raise UserError(
                    f"{where} names no image; it has: {', '.join(record)}, and one of "
                    f"{', '.join(NAME_KEYS)} is expected"
                )
            paths = (_walk(record, k) for k in PATH_KEYS)
            path = next((p for p in paths if isinstance(p, str) and p), "")
            if path and files_wanted:
                path = written.file(base, path, where)
            yield Entry(names[0], names, path, record, where)


def _kind(file: Path) -> str:
    """Suffix of a file, that of compression left out."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _records(file: Path) -> Iterator[streams.Found]:
    if file.suffix.lower() == ".json":
        with file.open("rb") as content:
            start = content.read(4096)
        if start.decode("utf-8-sig", "replace").lstrip().startswith("{"):
            for name, text in annotations.read_json(file, dict).items():
                yield f"{file}: {name}", {"image": name, "caption": text}
            return
    yield from streams.records(file)


def _packed(where: str, sample: dict[str, Any]) -> Iterator[Entry]:
    """The image of a sample of a shard; nothing if it has none."""
    images = [v for k, v in sample.items() if f".{k}".lower().endswith(annotations.SUFFIXES)]
    if not images:
        return
    if len(images) > 1:
        raise UserError(
            f"{where} holds {len(images)} images ({', '.join(images)}); a sample is all files "
            "with one name up to the first dot, and has one image. Rename them"
        )
    (image,) = images
    if not isinstance(image, Packed):
        raise UserError(f"{where} is in a compressed shard, where no image is found; unpack it")
    record = sample.get("json", {})
    if not isinstance(record, dict):
        raise UserError(f"{where}: the .json of {image} is no JSON object; correct it")
    if "txt" in sample:
        record = record | {"text": sample["txt"]}
    folder, slash, file = image.partition("/")[2].rpartition("/")
    name = folder + slash + file.partition(".")[0]
    yield Entry(name, (name,), shards.place(f"{image.shard}@{image.span}"), record, where)


def _walk(record: Any, key: str) -> Any:
    """`record[key]`, or, where there is none and the key has dots, one level down at each."""
    if isinstance(record, dict) and key in record:
        return record[key]
    first, dot, rest = key.partition(".")
    if dot and isinstance(record, dict) and first in record:
        return _walk(record[first], rest)
    return None
