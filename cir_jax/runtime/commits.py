# SPDX-License-Identifier: Apache-2.0
"""How a step of Orbax becomes whole: checksums of all of its files are written, then it is there.

Process 0 does so when all processes have written. Whoever is killed before leaves no step; a step
that is there has checksums. On a disk a rename makes the step appear. A bucket that is mounted has
no atomic rename (it copies and deletes file by file), so there a last file does, as Orbax does in a
bucket; steps made in either way are read in both.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.path import atomicity

from cir_jax.runtime import checksums

COMMITTED = atomicity.COMMIT_SUCCESS_FILE  # both ways write it, last
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a step that is to be renamed
_METADATA = "_CHECKPOINT_METADATA"  # of Orbax: when a step was begun and committed


def is_step(path: str | Path) -> bool:
    """Whether a folder is a step that was written to its end, be it damaged since."""
    name = Path(path).name
    return name.isascii() and name.isdigit() and _is_whole(path)


class _Checked(atomicity.TemporaryPathBase):
    """Writes the checksums of a step just before it appears. Items within a step have none."""

    _checkpoint_metadata_store: Any

    async def finalize(self) -> None:
        if self.get_final().name.isdigit():
            await self._write_metadata()
            about = {"orbax-checkpoint": ocp.__version__, "jax": jax.__version__}
            await asyncio.to_thread(checksums.write, Path(self.get()), about, (COMMITTED,))
        await super().finalize()

    async def _write_metadata(self) -> None:
        """What Orbax would change in its own file after the checksums were taken."""
        store = self._checkpoint_metadata_store
        self._checkpoint_metadata_store = None
        if store is None:
            return
        file = self.get() / _METADATA
        await asyncio.to_thread(store.wait_until_finished)
        await asyncio.to_thread(store.update, file_path=file, commit_timestamp_nsecs=time.time_ns())
        await asyncio.to_thread(store.wait_until_finished)


class Renamed(_Checked, atomicity.AtomicRenameTemporaryPath):
    """A step that appears by a rename."""

    @classmethod
    async def validate_final(cls, final_path: Path) -> None:
        await super().validate_final(final_path)
        if final_path.name.isdigit() and not _is_whole(final_path):
            raise atomicity.ValidationError(f"{final_path} was not written to its end")


class Marked(_Checked, atomicity.CommitFileTemporaryPath):
    """A step that appears by a file that is written last."""

    @classmethod
    async def validate(cls, temporary_path: Path) -> None:
        if temporary_path.name.isdigit() and _is_whole(temporary_path):
            raise atomicity.ValidationError(f"{temporary_path} was written to its end")
        await super().validate(temporary_path)

    @classmethod
    async def validate_final(cls, final_path: Path) -> None:
        if not _is_whole(final_path):
            raise atomicity.ValidationError(f"{final_path} was not written to its end")


def _is_whole(path: str | Path) -> bool:
    return (Path(path) / COMMITTED).is_file() or checksums.exists(path)
