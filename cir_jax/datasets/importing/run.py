# SPDX-License-Identifier: Apache-2.0
"""Runs an importer: a triplet set of another project in, one file of neutral JSON lines out.

Names are made relative to the folder of images; a triplet whose images are equal or missing is
refused, and so is one that was there before; every refusal is counted with its first example; the
file appears when it is complete. Memory does not grow with the number of triplets: records stream,
and what was seen is kept in a database beside the output (some 25 bytes per triplet, removed at the
end).
"""

import contextlib
import functools
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from cir_jax import progress
from cir_jax.data.annotations import SUFFIXES
from cir_jax.datasets import importer as contract
from cir_jax.datasets.importer import Refused
from cir_jax.datasets.importing import streams
from cir_jax.datasets.importing.shards import Packed
from cir_jax.datasets.importing.writer import Writer, open_writer
from cir_jax.errors import UserError, nearest

_FIELDS = ("reference", "target", "text", "texts", "id", "meta")  # of a converted record
_KNOWN_IMAGES = 1 << 16  # answers of the file system that are remembered
_CACHE = 64 << 10  # KiB of the database that are kept in memory


@dataclass
class Summary:
    """What came of an import.

    Attributes:
      files: number of files read.
      read: number of records read, the refused ones included.
      written: number of triplets written.
      refused: reason -> number of records.
      first: reason -> "file:number: detail" of the first of them.
    """

    files: int
    read: int = 0
    written: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def refuse(self, where: str, why: Refused) -> None:
        """Counts a refused record."""
        self.refused[why.reason] = self.refused.get(why.reason, 0) + 1
        self.first.setdefault(why.reason, f"{where}: {why.detail}")

    def lines(self) -> list[str]:
        """The summary for people, the most frequent reason first."""
        total = sum(self.refused.values())
        lines = [f"read {self.read:,} records of {self.files:,} files, "
                 f"wrote {self.written:,} triplets, refused {total:,}"]  # fmt: skip
        for reason, count in sorted(self.refused.items(), key=lambda item: -item[1]):
            lines.append(f"  {reason}: {count:,}, first {self.first[reason]}")
        return lines


def run(
    importer: ModuleType | str,
    sources: Sequence[str | Path],
    out: str | Path,
    images: str | Path | None = None,
    suffix: str = "",
    strip: str = "",
    source: str = "",
    options: Mapping[str, str] | None = None,
    limit: int | None = None,
    refused: str | Path | None = None,
    overwrite: bool = False,
) -> Summary:
    """Imports triplets into `out`.

    Args:
      importer: name of a format, path of a Python file, or a module that `contract` describes.
      sources: files, folders or glob patterns.
      out: the JSON lines to write.
      images: folder of the images; a triplet whose images are not below it is refused.
      suffix: appended to names without the suffix of an image, e.g. ".jpg" or "/frame.jpg".
      strip: beginning that is taken off the names that have it, e.g. "/data/cc3m/".
      source: the `source` of every triplet; "" = the importer's name.
      options: further arguments of the importer's `convert`.
      limit: stop after so many triplets.
      refused: JSON lines of all refused records, with reasons.
      overwrite: replace files that are there.

    Raises:
      UserError: bad arguments, a file that cannot be read to its end or written, no triplet in it.
        An `out` that was there before is then as it was.
    """
    module = contract.load(importer) if isinstance(importer, str) else importer
    name = Path(module.__file__ or importer).stem
    convert = functools.partial(module.convert, **_checked(options or {}, module, name))
    files = _files(sources, module, [p for p in (out, refused) if p], limit)
    folder = Path(out).parent
    finish = _Finish(strip, suffix, source or name, images, folder)
    summary, example = Summary(len(files)), None
    listing = open_writer(refused, overwrite, keep=True) if refused else contextlib.nullcontext()
    with open_writer(out, overwrite) as target, listing as rejects, _Seen.open(folder) as seen:
        for where, record in progress.bar(_records(module, files), title=name):
            summary.read += 1
            try:
                if isinstance(record, str):
                    raise Refused(contract.MALFORMED, record)
                example = example or record
                _write(target, finish(convert(record), where), seen)
                summary.written += 1
            except Refused as why:
                summary.refuse(where, why)
                if rejects:
                    said = {"where": where, "reason": why.reason, "detail": why.detail}
                    rejects.write(said | {"record": record}, anything=True)
            if summary.written == limit:
                break
        if not summary.written:
            raise _nothing(module, name, summary, example)
    return summary


def _files(
    sources: Sequence[str | Path], module: ModuleType, written: Sequence, limit: int | None
) -> list[Path]:
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected at least 1")
    files = streams.files(sources, getattr(module, "PATTERNS", ("*",)))
    if len({Path(path).resolve() for path in written}) < len(written):
        raise UserError(f"{written[0]} is both the output and the list of refused records")
    for path in written:
        if Path(path).resolve() in {f.resolve() for f in files}:
            raise UserError(f"{path} is a source and cannot be written; name another file")
    return files


def _checked(options: Mapping[str, str], module: ModuleType, name: str) -> Mapping[str, str]:
    known = getattr(module, "OPTIONS", {})
    for option in options:
        if option not in known:
            takes = f"it takes: {', '.join(known)}" if known else "it takes none"
            raise UserError(f"{name} has no option {option!r}; {takes}.{nearest(option, known)}")
    return options


def _records(module: ModuleType, files: Sequence[Path]) -> Iterator[streams.Found]:
    read: Callable = getattr(module, "records", streams.records)
    for path in files:
        yield from read(path)


class _Finish:
    """Makes a converted record a line of the output, or refuses it."""

    def __init__(self, strip: str, suffix: str, source: str, images: Any, folder: Path):
        self.strip, self.suffix, self.source, self.folder = strip, suffix, source, folder
        self.exists = None
        if images is not None:
            if not Path(images).is_dir():
                raise UserError(f"no folder of images {images}; name one that exists, or none")
            self.exists = functools.lru_cache(_KNOWN_IMAGES)(functools.partial(_exists, images))

    def __call__(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        for key in record:
            if key not in _FIELDS:
                raise UserError(
                    f"the importer gave a record with {key!r} ({where}); a neutral record has "
                    f"{', '.join(_FIELDS)}, and anything else under meta"
                )
        line = {
            "reference": self.name(record["reference"]),
            "target": self.name(record["target"]),
            **{key: value for key, value in record.items() if key.startswith("text")},
            "source": self.source,
            "id": str(record.get("id") or Path(where).name),
        }
        if line["reference"] == line["target"]:
            raise Refused(contract.SAME, repr(line["reference"]))
        for key in ("reference", "target"):
            if isinstance(record[key], Packed):
                line[f"{key}_path"] = record[key].place(self.folder)
            elif self.exists and not self.exists(line[key]):
                raise Refused(contract.MISSING, repr(line[key]))
        meta = dict(record.get("meta", {}))
        if "hard_negatives" in meta:
            meta["hard_negatives"] = [self.name(n) for n in meta["hard_negatives"]]
        return line | ({"meta": meta} if meta else {})

    def name(self, written: str) -> str:
        """The name as a path below the folder of images."""
        name = written.removeprefix(self.strip)
        while name.startswith("./"):
            name = name[2:]
        if not name or name.startswith("/") or "://" in name or ".." in name.split("/"):
            raise Refused(
                contract.MALFORMED,
                f"{written!r} is no path below a folder; take its beginning off (--strip)",
            )
        return name if name.lower().endswith(SUFFIXES) else name + self.suffix


def _exists(images: str | Path, name: str) -> bool:
    path = os.path.join(images, name)
    if name.lower().endswith(SUFFIXES):
        return os.path.isfile(path)
    return any(os.path.isfile(path + suffix) for suffix in SUFFIXES)


class _Seen:
    """A set of triplets on disk."""

    def __init__(self, path: Path):
        self.base = sqlite3.connect(path, isolation_level=None)
        # The file is thrown away, so nothing in it needs to survive anything.
        self.base.execute("pragma journal_mode=off")
        self.base.execute("pragma synchronous=off")
        self.base.execute(f"pragma cache_size=-{_CACHE}")
        self.base.execute("create table seen (triplet blob primary key) without rowid")
        self.base.execute("begin")

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator["_Seen"]:
        """A set in a file of `folder`, which is removed at the end."""
        with tempfile.TemporaryDirectory(dir=folder, prefix=".triplets-") as made:
            try:
                seen = cls(Path(made) / "seen.sqlite")
                with contextlib.closing(seen.base):
                    yield seen
            except sqlite3.Error as error:
                raise UserError(
                    f"cannot keep what was seen in {folder}: {error}; make room there"
                ) from None

    def add(self, triplet: Mapping[str, Any]) -> bool:
        """Adds a triplet; False if it was there."""
        parts = [triplet["reference"], triplet["target"], triplet.get("text", triplet.get("texts"))]
        key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
        cursor = self.base.execute("insert or ignore into seen values (?)", (key,))
        return cursor.rowcount == 1


def _write(target: Writer, triplet: dict[str, Any], seen: _Seen) -> None:
    if not seen.add(triplet):
        raise Refused(contract.DUPLICATE, f"{triplet['reference']!r} to {triplet['target']!r}")
    try:
        target.write(triplet)
    except UserError:
        raise
    except ValueError as error:
        raise Refused(contract.MALFORMED, f"it cannot be written as JSON ({error})") from None


def _nothing(module: ModuleType, name: str, summary: Summary, record: dict | None) -> UserError:
    """Why nothing was written, and which importer would fit."""
    if not summary.read:
        return UserError(f"the source holds no record; nothing to import as {name}")
    expected = " or ".join(", ".join(group) for group in getattr(module, "KEYS", ()))
    hint = f" {name} expects {expected}." if expected else ""
    if record and not _fits(record, module):
        fitting = [n for n in contract.names() if _fits(record, contract.load(n))]
        if fitting:
            hint += f" The records look like those of {' or '.join(fitting)}: try that format."
    first = f"not one record is a triplet, nothing was written.{hint}"
    return UserError("\n".join([first, *summary.lines()]))


def _fits(record: Mapping[str, Any], module: ModuleType) -> bool:
    return any(all(key in record for key in group) for group in getattr(module, "KEYS", ()))
