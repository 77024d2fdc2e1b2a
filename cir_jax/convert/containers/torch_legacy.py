# SPDX-License-Identifier: Apache-2.0
"""Weights as torch.save wrote them before torch 1.6, read without torch and without running them.

Five pickles follow each other: a magic number, the version of the protocol, the byte order of the
machine, what was saved, and the keys of its storages; behind them, for each key, the number of
values (8 bytes, little-endian) and the values. The pickles are taken apart by `torch_pickle`, as
that of a zip archive is. Source: `_legacy_save` of torch/serialization.py.
"""

import mmap
import os
import struct
from typing import Any, BinaryIO

from cir_jax.convert.containers import file_kinds, torch_pickle
from cir_jax.convert.containers.tensors import DTYPES
from cir_jax.convert.containers.torch_zip import Archive
from cir_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_COUNT = struct.Struct("<q")


def looks_like(path: str | os.PathLike) -> bool:
    """Whether the first pickle is the magic number."""
    return MAGIC.to_bytes(10, "little") in file_kinds.head(path)[:16]


def parts(path: str | os.PathLike) -> tuple[Archive, Any, int]:
    """(where the values of each storage lie, what was saved, instructions of its pickle).

    Raises:
      UserError: the file is cut or damaged, asks for a name that no weights need, or was written
        on a machine of another byte order.
    """
    return file_kinds.guarded(path, lambda file: _parts(path, file))


def _parts(path: str | os.PathLike, file: BinaryIO) -> tuple[Archive, Any, int]:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        storages: dict[str, torch_pickle.Storage] = {}
        magic, protocol, system = (torch_pickle.load(data, path, False)[0] for _ in range(3))
        if (magic, protocol) != (MAGIC, PROTOCOL) or type(system) is not dict:
            raise _damaged(path, "it does not begin as torch.save writes it")
        if system.get("little_endian") is not True:
            raise UserError(
                f"{path} is not of a little-endian machine, and only those are read; save it again "
                "on one (x86 or ARM)"
            )
        root, count = torch_pickle.load(data, path, False, storages)
        keys, _ = torch_pickle.load(data, path, False)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise _damaged(path, "it lists no storages")
        if len(set(keys)) != len(keys) or storages.keys() != set(keys):
            raise _damaged(path, "its storages are not those that it lists")
        archive = Archive(path, len(data), {})
        for key in keys:
            start = data.tell() + _COUNT.size
            held = data.read(_COUNT.size)
            storage = storages[key]
            if len(held) < _COUNT.size or _COUNT.unpack(held)[0] != storage.count:
                raise _damaged(path, f"storage {key[:50]!r} has another number of values")
            # Of a type that is not read the width is not known: who asks for its tensor is told.
            if storage.dtype not in DTYPES:
                raise UserError(
                    f"{path} holds values of type {storage.dtype}, which is not read; load it with "
                    "torch and save its weights as tensors of float, int or bool"
                )
            size = storage.count * DTYPES[storage.dtype].itemsize
            if start + size > len(data):
                raise _damaged(path, f"storage {key[:50]!r} ends behind its {len(data)} bytes")
            archive.entries[f"data/{key}"] = (start, size)
            data.seek(start + size)
        return archive, root, count


def _damaged(path: str | os.PathLike, why: str) -> UserError:
    return UserError(f"{path} is cut or damaged: {why}; fetch the file again")
