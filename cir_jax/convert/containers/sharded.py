# SPDX-License-Identifier: Apache-2.0
"""Weights in several files with an index: transformers' *.safetensors and pytorch_model-*.bin."""

import os
from collections.abc import Callable
from pathlib import Path

from cir_jax.convert.containers import file_kinds
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.data import json_files, text_files
from cir_jax.errors import UserError

_MOST = 100_000_000  # bytes of an index
Shard = tuple[dict[str, Tensor], dict[str, str]]


def read(
    index: str | os.PathLike, read_shard: Callable[[Path], Shard]
) -> tuple[dict[str, Tensor], dict[str, str], tuple[Path, ...]]:
    """The tensors an index lists, from the files beside it.

    Args:
      index: JSON with a "weight_map" of tensor name -> file name.
      read_shard: file -> (its tensors, its metadata).

    Returns:
      The tensors in the order of the index, the metadata of the files, and the files.

    Raises:
      UserError: the index is no such table or names a file outside its folder, a file is missing
        or lacks a tensor, or what `read_shard` finds.
    """
    metadata: dict[str, str] = {}
    files: dict[str, dict[str, Tensor]] = {}
    listed = _listed(index)
    for name, file in listed.items():
        # A plain name is the only one that cannot lead out of the folder.
        if type(file) is not str or file in ("", ".", "..") or set(file) & set("/\\\0"):
            raise UserError(
                f"{index} places {name!r} in {file!r}, which is no file name of its own folder; "
                "fetch the index again from a source you trust"
            )
        if file not in files:
            shard = Path(index).parent / file
            if not os.path.isfile(shard):  # False also for a name that no file can have
                raise UserError(
                    f"{index} lists {file}, which is not beside it; fetch that file too"
                )
            files[file], more = read_shard(shard)
            metadata |= more
        if name not in files[file]:
            raise UserError(
                f"{index} places {name!r} in {file}, which lacks it; fetch the index and its files "
                "again, all of one version"
            )
    shards = tuple(Path(index).parent / file for file in sorted(files))
    return {name: files[file][name] for name, file in listed.items()}, metadata, shards


def _listed(index: str | os.PathLike) -> dict[str, str]:
    read = file_kinds.guarded(index, lambda file: file.read(_MOST))
    codec = text_files.encoding(read[:4], Path(index))
    try:
        content = json_files.loads(read.decode(codec))
        if type(content) is not dict:
            raise ValueError(f"a {type(content).__name__}, not an object")
    except ValueError as error:
        raise UserError(f"{index} holds no sound JSON ({error}); fetch the file again") from None
    listed = content.get("weight_map")
    if type(listed) is not dict or not listed:
        raise UserError(f'{index} has no "weight_map" of tensor -> file; fetch it again')
    return listed
