# SPDX-License-Identifier: Apache-2.0
"""Banks of runs whose folder is on a mounted bucket: read on the disk of each host.

A bank grows by rows and is read by rows; a bucket takes whole files, and each read is a request. So
a bank is built on the disk of each host, a copy is kept in the bucket, and a host without one (a
new one, after a pre-emption) takes that copy, checks it and encodes nothing.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from cir_jax import files, progress
from cir_jax.bank import files as bank_files
from cir_jax.errors import UserError
from cir_jax.runtime import storage


def is_mirrored(folder: str | Path) -> bool:
    """Whether a bank that is kept in this folder is used on the disk of each host."""
    return storage.is_bucket(folder)


def of(folder: str | Path) -> Path:
    """The folder on this host's disk that stands for one in a bucket."""
    place = str(Path(folder).absolute())
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    return files.cache() / "banks" / name


def fill(mirror: Path, kept: Path, made_of: dict[str, str], arrays: bank_files.Arrays) -> None:
    """Copies the bank that is kept in a bucket to this host's disk, if there is one.

    Args:
      mirror: on the disk, without a bank.
      kept: in the bucket.
      made_of, arrays: see `cir_jax.bank.files.load`.

    Raises:
      UserError: the bank there was made of something else, is damaged, or there is no room for it.
    """
    if bank_files.load(kept, made_of, arrays) is None:
        return
    progress.say(f"copying the bank in {kept} to {mirror}")
    copying = mirror.with_name(f"{mirror.name}.copying")
    shutil.rmtree(copying, ignore_errors=True)
    try:
        for file in _files(kept, arrays):
            _copy(file, copying / file.name)
        rows = bank_files.load(copying, made_of, arrays) or {}
        for found in rows.values():
            bank_files.check(found, [(0, len(found))])
        for file in _files(copying, arrays):  # the record last
            file.replace(mirror / file.name)
    except UserError as error:
        raise UserError(f"{error} (that is a copy of {kept})") from None
    finally:
        shutil.rmtree(copying, ignore_errors=True)


def keep(mirror: Path, kept: Path, arrays: bank_files.Arrays) -> None:
    """Copies the bank on this host's disk to a bucket that has none. Says so if that fails.

    Args:
      mirror: on the disk, with a bank.
      kept: in the bucket.
      arrays: their names.
    """
    if (kept / bank_files.RECORD).is_file():
        return
    try:
        for file in _files(mirror, arrays):  # the record last: without it there is no bank
            _copy(file, kept / file.name)
    except UserError as error:
        progress.say(
            f"warning: the bank could not be kept in {kept}, so a host that does not have it "
            f"encodes it again: {error}"
        )


def _files(folder: Path, names: Mapping[str, object]) -> list[Path]:
    """The files of a bank that is whole, its record last."""
    found = [folder / f"{name}.npy" for name in names]
    record = json.loads((folder / bank_files.RECORD).read_bytes())
    if "checksums" in record:  # banks of before there were any have no sums
        found += [folder / f"{name}.sums" for name in names]
    return [*found, folder / bank_files.RECORD]


def _copy(source: Path, target: Path) -> None:
    """Straight to its name: in a bucket a file is there when it is closed, and a rename copies."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as read, target.open("wb") as written:
            shutil.copyfileobj(read, written, 16 << 20)
            written.flush()
            os.fsync(written.fileno())
    except OSError as error:
        raise files.full(target, error, source.stat().st_size) from None
