# SPDX-License-Identifier: Apache-2.0
"""Weights in the format of `torch.save`, written without torch.

A zip archive of stored entries; `torch_zip` beside this file says what they are. One tensor is in
memory at a time. The values of each start at a multiple of 64 bytes, where torch places them, so
that `torch.load(mmap=True)` can use them in place.
"""

import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from cir_jax.convert.containers import spans, torch_pickle
from cir_jax.convert.containers.tensors import Tensor

_ROOT = "archive"
_ALIGNMENT = 64
_LOCAL_HEADER = 30
_ZIP64_FIELD = 20  # what zipfile adds to the extra field of a large entry
_FIELD = struct.Struct("<HH")  # of an extra field: kind, bytes
# The kind torch gives to the extra field that only pads ("FB").
_PADDING = 0x4246
# From here on an entry gets 64-bit sizes. The zip format needs them from 4 GiB on. zipfile adds
# them by itself somewhat below 2 GiB, and its header would not have the length we count with.
_LARGE = 1 << 30
_STORAGES = {dtype: name.removeprefix("torch.") for name, dtype in torch_pickle.STORAGES.items()}


def write(file: BinaryIO, tree: Any) -> None:
    """Writes what `torch.load(path)` then returns.

    Args:
      file: open for writing at its start, and seekable.
      tree: dicts, lists, tuples, text, numbers, bool and None, with `Tensor` leaves, which are read
        one by one while they are written. A dict with a tensor in it becomes an OrderedDict, as
        state dicts are.

    Raises:
      TypeError: a value of another type.
    """
    tensors: list[Tensor] = []
    pickle = b"".join((b"\x80\x02", *_pickled(tree, tensors), b"."))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", memoryview(pickle))
        _add(archive, file, "byteorder", memoryview(b"little"))
        for number, tensor in enumerate(tensors):
            _add(archive, file, f"data/{number}", spans.raw(tensor))
        _add(archive, file, "version", memoryview(b"3\n"))


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: memoryview) -> None:
    """Adds an entry whose bytes start at a multiple of the alignment."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")
    info.file_size = content.nbytes
    large = content.nbytes >= _LARGE
    start = file.tell() + _LOCAL_HEADER + len(info.filename) + _FIELD.size
    padding = -(start + large * _ZIP64_FIELD) % _ALIGNMENT
    info.extra = _FIELD.pack(_PADDING, padding) + b"\0" * padding
    with archive.open(info, "w", force_zip64=large) as entry:
        entry.write(content)


def _pickled(value: Any, tensors: list[Tensor]) -> Iterator[bytes]:
    """Instructions of pickle protocol 2 that make a value; its tensors are added to the list."""
    if isinstance(value, Tensor):
        yield from _tensor(value, len(tensors))
        tensors.append(value)
    elif isinstance(value, Mapping):
        ordered = any(isinstance(one, Tensor) for one in value.values())
        yield b"ccollections\nOrderedDict\n)R(" if ordered else b"}("
        for key, one in value.items():
            yield from _pickled(key, tensors)
            yield from _pickled(one, tensors)
        yield b"u"
    elif isinstance(value, list | tuple):
        yield b"](" if isinstance(value, list) else b"("
        for one in value:
            yield from _pickled(one, tensors)
        yield b"e" if isinstance(value, list) else b"t"
    else:
        yield _scalar(value)


def _scalar(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(1 << 31) <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            data = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(data)) + data
    raise TypeError(f"a {type(value).__name__} cannot be written into a file of torch.save")


def _tensor(tensor: Tensor, number: int) -> Iterator[bytes]:
    """A contiguous tensor that fills storage `number`."""
    yield b"ctorch._utils\n_rebuild_tensor_v2\n("
    yield b"(" + _scalar("storage") + f"ctorch\n{_STORAGES[tensor.dtype]}\n".encode()
    yield _scalar(str(number)) + _scalar("cpu") + _scalar(math.prod(tensor.shape)) + b"tQ"
    yield _scalar(0)
    yield from _pickled(tensor.shape, [])
    # Strides of an axis of size 0 count it as 1, as torch does.
    lower = [math.prod(max(n, 1) for n in tensor.shape[i + 1 :]) for i in range(len(tensor.shape))]
    yield from _pickled(tuple(lower), [])
    # No gradient, no hooks.
    yield b"\x89ccollections\nOrderedDict\n)RtR"
