# SPDX-License-Identifier: Apache-2.0
"""Weights in the safetensors format, alone or in shards with an index.

A file is the length of its header (8 bytes, little-endian), the header in JSON (name -> type, shape
and place of the bytes), and the values one after another. Values are read by the library of the
format, when `Tensor.read` is called; of numpy it knows bfloat16 once ml_dtypes is imported, and no
float8. The header is checked here first, because of two equal names the library takes the last one,
and of a wrong header it seldom says which tensor and never which sizes. It writes only what is all
in memory, so `write` is ours as well.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from cir_jax.convert.containers import file_kinds, sharded, spans
from cir_jax.convert.containers.tensors import DTYPES, Tensor
from cir_jax.data import json_files
from cir_jax.errors import UserError

# What the format calls each type.
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_TYPES = {theirs: ours for ours, theirs in _NAMES.items()}
# The limit of the format itself.
_MOST_HEADER = 100_000_000
_LENGTH = struct.Struct("<Q")
_MOST_AXES = 32
_METADATA = "__metadata__"


def looks_like(path: str | os.PathLike) -> bool:
    """Whether the content starts with a length and a JSON object, as this format does."""
    start = file_kinds.head(path)
    if len(start) < _LENGTH.size + 1 or start[_LENGTH.size :][:1] != b"{":
        return False
    return _LENGTH.unpack_from(start)[0] <= _MOST_HEADER


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, none of them read yet, and its metadata.

    Raises:
      UserError: no such file, a cut or damaged one, or a tensor whose type is not in
        `tensors.DTYPES` (it is named).
    """
    if not looks_like(path):
        raise file_kinds.explain(path, "a safetensors file")
    entries, size = file_kinds.guarded(path, partial(_header, path))
    metadata = entries.pop(_METADATA, {})
    if type(metadata) is not dict or not all(type(v) is str for v in metadata.values()):
        raise UserError(f"{path}: its {_METADATA} is no table of texts; write the file anew")
    for name, entry in entries.items():
        _check_entry(path, name, entry)
    _check_cover(path, entries, size)
    _opened(path, lambda file: file.metadata())  # its own checks, before anything is read
    tensors = {
        name: Tensor(tuple(entry["shape"]), _TYPES[entry["dtype"]], partial(_values, path, name))
        for name, entry in entries.items()
    }
    return tensors, metadata


def read_sharded(index: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that model.safetensors.index.json lists, and the metadata of the files.

    Raises:
      UserError: see `sharded.read`, and `read`.
    """
    tensors, metadata, _ = sharded.read(Path(index), read)
    return tensors, metadata


def write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a file, one tensor in memory at a time.

    Args:
      file: open for writing; it need not be seekable.
      tensors: in the order in which the header is to list them. Values are placed widest type
        first, so that each starts at a multiple of its width.
      metadata: {"format": "pt"} for files that transformers is to read.
    """
    order = sorted(tensors, key=lambda name: -DTYPES[tensors[name].dtype].itemsize)
    places, end = {}, 0
    for name in order:
        places[name] = [end, end + tensors[name].nbytes]
        end += tensors[name].nbytes
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": places[name],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(_LENGTH.pack(len(text)))
    file.write(text)
    for name in order:
        file.write(spans.raw(tensors[name]))


def _header(path: str | os.PathLike, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """(what the header lists, bytes of the values behind it) of an open file."""
    length = _LENGTH.unpack(file.read(_LENGTH.size))[0]
    size = os.fstat(file.fileno()).st_size - length - _LENGTH.size
    if size < 0:
        raise UserError(f"{path} is cut within its header; fetch the file again")
    return _json(path, file.read(length)), size


def _opened(path: str | os.PathLike, work: Callable[[Any], Any]) -> Any:
    """What `work` returns for the file that the library has opened.

    It maps the file, and what was read of a mapping stays in memory while it is open: so a file is
    opened for each tensor, and never for all of them.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return work(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the file again") from None


def _values(path: str | os.PathLike, name: str) -> np.ndarray:
    """The values of a tensor, at an address where jax takes them without another copy."""
    values = _opened(path, lambda file: file.get_tensor(name))
    aligned = spans.empty(values.shape, values.dtype)
    aligned[...] = values
    return aligned


def _json(path: str | os.PathLike, text: bytes) -> dict[str, Any]:
    """A JSON object; one that has a key twice has no meaning that readers agree on."""
    try:
        content = json_files.loads(text.decode())
        if type(content) is not dict:
            raise ValueError(f"a {type(content).__name__}, not an object")
    except ValueError as error:
        raise UserError(f"{path} holds no sound JSON ({error}); fetch the file again") from None
    return content


def _check_entry(path: str | os.PathLike, name: str, entry: Any) -> None:
    """Raises UserError unless type, shape and place of a tensor are sound and agree."""
    where = f"{path}: tensor {name[:200]!r}"
    entry = entry if type(entry) is dict else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    shape_given = type(shape) is list and len(shape) <= _MOST_AXES
    if not shape_given or type(offsets) is not list or len(offsets) != 2:
        raise UserError(f"{where} has no shape or no place in the file; fetch the file again")
    if not all(type(n) is int and 0 <= n < 1 << 60 for n in (*shape, *offsets)):
        raise UserError(f"{where} has a size that is no count; fetch the file again")
    if type(dtype) is not str or dtype not in _TYPES:
        raise UserError(
            f"{where} has type {str(dtype)[:50]!r}, and only {', '.join(_TYPES)} are read; convert "
            "it to one of them with the tool that wrote it"
        )
    have, need = offsets[1] - offsets[0], math.prod(shape) * DTYPES[_TYPES[dtype]].itemsize
    if have != need:
        raise UserError(
            f"{where} takes {have} bytes, and its shape {tuple(shape)} of {dtype} needs {need}; "
            "fetch the file again"
        )


def _check_cover(path: str | os.PathLike, entries: Mapping[str, Any], size: int) -> None:
    """The tensors follow each other without gap or overlap, up to the end of the file."""
    end = 0
    for (start, stop), name in sorted((entry["data_offsets"], n) for n, entry in entries.items()):
        if start != end:
            raise UserError(
                f"{path}: tensor {name[:200]!r} starts at byte {start} of the values and the one "
                f"before it ends at {end}; fetch the file again"
            )
        end = stop
    if end != size:
        raise UserError(
            f"{path} has {size} bytes of values and its header lists {end}: it is "
            f"{'cut' if size < end else 'not what was written'}; fetch the file again"
        )
