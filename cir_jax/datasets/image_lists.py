# SPDX-License-Identifier: Apache-2.0
"""Files that list images and their captions: titles, alt texts, crawled sets, earlier captions.

    .jsonl  one object per line           .json  a list of objects, or {name: caption}
    .csv .tsv  with a header              .tar   shards of NAME.jpg + NAME.txt or NAME.json

Which key says what is found by its name, in any case ("Alt Text" is alt_text); `text_field` names
the one of the text where it is another (a dot goes one level down). Of a record with several names,
such as an id and a file, the one that is an image of the set counts. All but shards may be
compressed by gzip. `cir_jax.datasets.captions` makes captions of them.
"""

import glob
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from cir_jax.data import annotations, json_files, text_files
from cir_jax.datasets import shards
from cir_jax.datasets.importing import streams
from cir_jax.datasets.importing.shards import Packed
from cir_jax.errors import UserError

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".tar")
NAME_KEYS = (
    "image_id", "image_name", "url", "image", "file_name", "filename", "name", "image_path", "path",
    "file",
)  # fmt: skip
PATH_KEYS = ("image_path", "path", "file_name", "filename", "image", "name", "file")
TEXT_KEYS = ("caption", "captions", "caption.en", "title", "alt_text", "alt", "text", "description")


@dataclass(frozen=True)
class Entry:
    """One image of a list.

    Attributes:
      name: of the image.
      names: all that it may be called, `name` first.
      path: its file, or an image in a shard; "" if the record gives none.
      record: as it was read.
      where: names the record in messages.
      fields: the record by plain keys, see `plain`.
    """

    name: str
    names: tuple[str, ...]
    path: Any
    record: dict[str, Any]
    where: str
    fields: dict[str, Any]

    def texts(self, key: str = "", as_written: bool = False) -> tuple[str, ...]:
        """Its captions that are not blank; () if it has none.

        Args:
          key: of the text, see the module; "" tries what is usual.
          as_written: with the spaces around them, and "captions" before "caption".

        Raises:
          UserError: there is no such key, or a text is none.
        """
        if key:
            text = _walk(self.fields, plain(key), _walk(self.record, key))
            if text is None:
                raise UserError(f"{self.where} has no {key!r}; it has: {', '.join(self.record)}")
        else:
            usual = ("captions", *TEXT_KEYS) if as_written else TEXT_KEYS
            found = (t for k in usual if (t := _walk(self.fields, k)) is not None)
            text = next((t for t in found if not isinstance(t, str) or t.strip()), None)
        if text is None or text == []:
            return ()
        texts = annotations.not_empty(text, self.where, blank=True)
        return tuple(t if as_written else t.strip() for t in texts if t.strip())

    def has_text_key(self) -> bool:
        """Whether the record has one of the usual keys of a text, filled in or not."""
        return not self.fields.keys().isdisjoint(TEXT_KEYS)


@lru_cache(maxsize=1 << 12)
def plain(key: str) -> str:
    """A key in the form in which keys are compared: "Alt Text" and "alt-text" are alt_text."""
    return re.sub(r"[\s-]+", "_", key.strip().lower())


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
                f"{name} is no file, and no folder with {', '.join(SUFFIXES)} files in it; correct "
                "the path"
            )
        found += fitting
    for name in found:
        if _kind(Path(name)) not in SUFFIXES:
            raise UserError(f"{name} is none of {', '.join(SUFFIXES)}; convert it to .jsonl")
    return list(dict.fromkeys(found))


def _refuse(problem: str) -> NoReturn:
    raise UserError(f"{problem}; correct that record, or take it out")


def entries(
    files: Sequence[str | Path], root: str = "", wrong: Callable[[str], object] = _refuse
) -> Iterator[Entry]:
    """The records of all files, one in memory at a time (but for {name: caption}).

    Args:
      files: see `expand`.
      root: folder that paths are relative to; each file's own if "".
      wrong: is told of each record that cannot be parsed or has no name, which is left out; raises
        UserError by default.

    Raises:
      UserError: a file that is cut or of another kind.
    """
    for file in map(Path, files):
        base = Path(root) if root else file.parent
        for where, record in _records(file):
            if isinstance(record, str):
                wrong(f"{where}: {record}")
            elif _kind(file) == ".tar":
                yield from _packed(where, record)
            else:
                found = _entry(where, record, base)
                if isinstance(found, str) and _kind(file) in (".csv", ".tsv"):
                    _check_header(file, record)
                if isinstance(found, str):
                    wrong(found)
                else:
                    yield found


def _entry(where: str, record: dict[str, Any], base: Path) -> Entry | str:
    """The entry of a record, or what is wrong with it."""
    record = {key.strip(): value for key, value in record.items()}
    fields = {plain(key): value for key, value in record.items()}
    if len(fields) < len(record):
        twice = next(k for k in record if sum(plain(k) == plain(x) for x in record) > 1)
        return f"{where} has the key {twice!r} twice, written differently"
    named = (_walk(fields, k) for k in NAME_KEYS)
    names = tuple(str(n) for n in named if type(n) in (str, int) and n != "")
    if not names:
        return (
            f"{where} names no image; it has: {', '.join(record)}, and one of "
            f"{', '.join(NAME_KEYS)} is expected"
        )
    try:
        annotations.image_names({"image": list(names)}, "image", where)
    except UserError as error:
        return str(error)
    paths = (_walk(fields, k) for k in PATH_KEYS)
    path = next((str(base / p) for p in paths if isinstance(p, str) and p), "")
    return Entry(names[0], names, path, record, where, fields)


def _check_header(file: Path, record: dict[str, Any]) -> None:
    """Raises UserError if no column of a table is that of the images: it has no header, say."""
    columns = {plain(key): None for key in record}
    if all(_walk(columns, key, "") == "" for key in NAME_KEYS):
        raise UserError(
            f"{file}:1: none of the columns {', '.join(map(repr, record))} names the images "
            f"({', '.join(NAME_KEYS)}); write the names of the columns in the first line, or "
            "rename the one of the images"
        )


def _kind(file: Path) -> str:
    """Suffix of a file, that of compression left out."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _records(file: Path) -> Iterator[streams.Found]:
    if _kind(file) == ".json" and text_files.start(file, packed=True).startswith("{"):
        if not _has_lines(file):
            for name, text in annotations.read_json(file, dict, packed=True).items():
                yield f"{file}: {name}", {"image": name, "caption": text}
            return
    yield from streams.records(file)


def _has_lines(file: Path) -> bool:
    """Whether a file that begins with { holds records line by line, and not {name: caption}."""
    try:
        content = json_files.loads(text_files.read(file, packed=True))
    except json.JSONDecodeError as error:
        return error.msg == "Extra data"
    except ValueError:
        return False
    keys = {plain(key) for key in content}
    return not keys.isdisjoint(NAME_KEYS) and not keys.isdisjoint(TEXT_KEYS)  # one record


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
    fields = {plain(key): value for key, value in record.items()}
    place = shards.place(f"{image.shard}@{image.span}")
    yield Entry(name, (name,), place, record, where, fields)


def _walk(record: Any, key: str, default: Any = None) -> Any:
    """`record[key]`, or, where there is none and the key has dots, one level down at each."""
    if isinstance(record, dict) and key in record:
        return record[key]
    first, dot, rest = key.partition(".")
    if dot and isinstance(record, dict) and first in record:
        return _walk(record[first], rest, default)
    return default
