# SPDX-License-Identifier: Apache-2.0
"""Records of files larger than memory: JSON arrays, JSON lines, CSV, TSV, parquet, tar shards.

What a file holds is seen from its first bytes, never from its suffix, and each kind may be
gzip-compressed. Texts are encoded as `text_files` says. One record (parquet: one batch) is in
memory at a time. A record that cannot be parsed comes out as the text of what is wrong with it and
reading goes on; a file that ends too early raises, because a cut file must not pass for a smaller
data set.
"""

import csv
import glob
import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from cir_jax.data import text_files
from cir_jax.datasets.importing import json_stream, shards
from cir_jax.datasets.importing.json_stream import Found
from cir_jax.errors import UserError


def files(sources: Sequence[str | Path], patterns: Sequence[str]) -> list[Path]:
    """The files that `sources` name, in order, each once.

    Args:
      sources: files, glob patterns (`shards/**/*.jsonl`), or folders.
      patterns: file names that are looked for in a folder itself, not in folders below it.

    Raises:
      UserError: a source names no file.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            below = sorted({f for p in patterns for f in path.glob(p) if f.is_file()})
            if not below:
                raise UserError(
                    f"folder {path} holds no {' or '.join(patterns)}; name the files themselves"
                )
        else:
            hits = [path] if path.is_file() else sorted(glob.glob(str(source), recursive=True))
            below = [Path(f) for f in hits if Path(f).is_file()]
            if not below:
                raise UserError(f"no file {source}; give a file, a folder or a glob pattern")
        found.update(dict.fromkeys(below))
    return list(found)


def records(path: str | Path) -> Iterator[Found]:
    """("file:number", record) of every record; instead of a record, what is wrong with it.

    The number counts from 1: lines in JSON lines and CSV, records or rows otherwise.

    Raises:
      UserError: the file is empty, of no known kind, cut or damaged; the last good record is named.
    """
    last = "its beginning"
    path = Path(path)
    try:
        for last, record in _kind(path):
            yield last, record
    except UnicodeDecodeError:  # of UTF-16; of UTF-8 a record at a time is refused
        raise text_files.not_text(path, "utf-16", lambda: _binary(path)) from None
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.ReadError) as error:
        raise UserError(
            f"{path} is cut or damaged after {last} ({error}); fetch it again"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path} after {last}: {error}") from None


def _kind(path: Path) -> Iterator[Found]:
    with _binary(path) as stream:
        head = stream.read(4096)
    if head.startswith(b"PAR1"):
        return shards.parquet(path)
    if head[257:262] == b"ustar":
        return shards.tar(_binary(path), path)
    codec = text_files.encoding(head, path)
    start = head.decode(codec, "ignore").lstrip()
    if start.startswith("["):
        return json_stream.array(_text(path, codec, None), path)
    if start.startswith("{"):
        return json_stream.lines(_text(path, codec, None), path)
    if not start:
        raise UserError(f"{path} is empty; fetch it again")
    header = start.splitlines()[0]
    delimiter = max("\t,;", key=header.count)  # spreadsheets of many countries write ;
    if delimiter in header:
        return _csv(path, codec, delimiter)
    if path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        raise UserError(
            f"{path} is no table: its first line, {header[:40]!r}, is one column; separate several "
            "by commas, semicolons or tabs, with their names in the first line"
        )
    raise UserError(
        f"{path} is no JSON, JSON lines, CSV, parquet or tar file; it begins with {start[:40]!r}"
    )


def _binary(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


def _text(path: Path, codec: str, newline: str | None) -> io.TextIOWrapper:
    # Bytes that are not UTF-8 become lone surrogates, so one bad record does not end the file: it
    # is refused where it is parsed.
    errors = "strict" if codec.startswith("utf-16") else "surrogateescape"
    return io.TextIOWrapper(_binary(path), codec, errors, newline)


def _csv(path: Path, codec: str, delimiter: str) -> Iterator[Found]:
    line = ""

    def noted(numbered: tuple[int, str]) -> str:
        nonlocal line
        line = numbered[1]
        return line

    with _text(path, codec, "") as stream:
        texts = map(noted, text_files.numbered(stream, path))
        rows = csv.reader(texts, delimiter=delimiter, strict=True)
        columns = _header(rows, path)
        while True:
            where = f"{path}:{rows.line_num + 1}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                row, problem = [], f"no CSV ({error})"
            else:
                problem = f"{len(row or ())} columns, expected {len(columns)}"
            if row is None:
                return
            if len(row) == len(columns):
                wrong = next(filter(None, map(text_files.fault, row)), "")
                yield where, wrong or dict(zip(columns, row, strict=True))
            elif not line.endswith(("\n", "\r")) or "unexpected end" in problem:
                raise UserError(f"{where} ends too early: the file is cut; fetch it again")
            elif line.strip():
                yield where, problem


def _header(rows: Iterator[list[str]], path: Path) -> list[str]:
    """The names of the columns; of two equal ones, one would be lost."""
    try:
        columns = next(rows)
    except (csv.Error, StopIteration) as error:
        raise UserError(f"{path}:1 is no line of column names ({error}); correct it") from None
    wrong = next(filter(None, map(text_files.fault, columns)), "")
    if wrong:
        raise UserError(f"{path}:1: {wrong}; save the file as UTF-8")
    twice = next((c for c in columns if c and columns.count(c) > 1), None)
    if twice is not None:
        raise UserError(f"{path}:1 has two columns {twice!r}; rename one of them")
    return columns
