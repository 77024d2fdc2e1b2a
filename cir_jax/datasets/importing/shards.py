# SPDX-License-Identifier: Apache-2.0
"""Shards in which triplets lie beside their images: parquet tables and tar files (webdataset).

Images are neither decoded nor copied: a record names them, and where they lie in their shard.
"""

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cir_jax.data import json_files, text_files
from cir_jax.datasets.importing.json_stream import Found
from cir_jax.errors import UserError

_BATCH = 1024  # rows of a table in memory
_PARSED = (".json", ".txt")  # members that are read; of the others, the name


class Packed(str):
    """The name of an image in a shard, "shard/member".

    Attributes:
      shard: the .tar file.
      span: "OFFSET+SIZE" of its bytes.
    """

    shard: Path
    span: str

    def place(self, folder: Path) -> str:
        """`shard.tar@OFFSET+SIZE`; relative to `folder` if the shard is below it."""
        shard, folder = self.shard.resolve(), folder.resolve()
        below = shard.relative_to(folder) if shard.is_relative_to(folder) else shard
        return f"{below}@{self.span}"


def parquet(path: Path) -> Iterator[Found]:
    """("path:row", row) of a parquet file, the columns of bytes left out.

    Raises:
      UserError: the file is cut or damaged.
    """
    from pyarrow import ArrowException  # takes a second to import
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(path)
        columns = [c for f in table.schema_arrow for c in _readable(f)]
        number = 0
        for batch in table.iter_batches(_BATCH, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is cut or damaged ({error}); fetch it again") from None


def _readable(field: Any, above: str = "") -> list[str]:
    """Paths of the columns that hold no bytes: images in a table are never read."""
    from pyarrow import types

    name = above + field.name
    if types.is_struct(field.type):
        return [c for i in range(field.type.num_fields)
                for c in _readable(field.type.field(i), f"{name}.")]  # fmt: skip
    binary = types.is_binary(field.type) or types.is_large_binary(field.type)
    return [] if binary else [name]


def tar(stream: IO[bytes], path: Path) -> Iterator[Found]:
    """("path:sample", sample) of a shard: adjacent members with equal names up to the first dot.

    A member that is an image or another file stands for itself, as "shard/member". Where the shard
    is not compressed, the name knows its place.

    Raises:
      tarfile.ReadError: the shard is cut.
    """
    shard = path.name.removesuffix(".gz").removesuffix(".tar")
    number, key = 0, None
    sample: dict[str, Any] = {}
    with stream, tarfile.open(fileobj=stream, mode="r:") as members:
        for member in members:
            if not member.isfile():
                continue
            folder, _, file = member.name.rpartition("/")
            stem, _, kind = file.partition(".")
            if (folder, stem) != key:
                if sample:
                    number += 1
                    yield f"{path}:{number}", sample
                key, sample = (folder, stem), {}
            if f".{kind}".endswith(_PARSED):
                if member.size > text_files.LONGEST:
                    raise UserError(
                        f"{path}: {member.name} has {member.size:,} bytes, and the text of a "
                        f"sample has {text_files.LONGEST:,} at most; take it out"
                    )
                file_object = members.extractfile(member)
                assert file_object is not None  # it is a file
                sample[kind] = _parsed(file_object.read(), kind)
                continue
            sample[kind] = f"{shard}/{member.name.removeprefix('./')}"
            if not isinstance(stream, gzip.GzipFile):
                sample[kind] = packed = Packed(sample[kind])
                packed.shard, packed.span = path, f"{member.offset_data}+{member.size}"
        # tarfile takes a header that is cut or damaged for the end; the true end is a zero block.
        stream.seek(members.offset)
        if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end of the archive")
    if sample:
        yield f"{path}:{number + 1}", sample


def _parsed(content: bytes, kind: str) -> Any:
    try:
        codec = text_files.encoding(content[:4], kind)
        text = content.decode(codec, "surrogateescape" if codec != "utf-16" else "strict")
    except ValueError:  # another encoding: refused with the text
        text = content.decode("utf-8", "surrogateescape")
    if not kind.endswith("json"):
        return text.strip()
    try:
        return json_files.loads(text, printable=True)
    except ValueError:
        return None
