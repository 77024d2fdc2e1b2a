# SPDX-License-Identifier: Apache-2.0
"""Hashes of images: of their pixels, and perceptual ones of their shapes for near duplicates.

Images are decoded as a stream, once: a journal keeps what was found.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cir_jax import progress
from cir_jax.data import unusable
from cir_jax.data.inspection import pixel_hash
from cir_jax.data.pixels import RELEASED, Loading, open_image
from cir_jax.data.unusable import Problem
from cir_jax.errors import UserError
from cir_jax.generation import journal

_TASK = 16  # images a thread is given at a time
_LOADING = "loading"  # of a record: what the pixels were made by, where it is not "released"


@dataclass
class ImageHashes:
    """Hashes of some images.

    Attributes:
      pixels: name -> hash of the pixels.
      perceptual: name -> perceptual hash.
      problems: name -> why it cannot be used.
    """

    pixels: dict[str, str] = field(default_factory=dict)
    perceptual: dict[str, bytes] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)

    def add(self, record: Mapping[str, str], path: Any) -> None:
        """Takes in a record of the journal about the file `path`."""
        name = record["image"]
        if "problem" in record:
            self.problems[name] = Problem(str(path), record["reason"], record["problem"])
            return
        self.pixels[name] = record["pixels"]
        if "look" in record:
            self.perceptual[name] = bytes.fromhex(record["look"])

    def forget(self, name: str) -> None:
        """Drops what is known of an image."""
        self.pixels.pop(name, None)
        self.perceptual.pop(name, None)
        self.problems.pop(name, None)


def hash_images(
    paths: Mapping[str, Any],
    file: str | Path,
    perceptual: bool = False,
    threads: int = 16,
    loading: Loading = RELEASED,
) -> ImageHashes:
    """Hashes every image, or finds in the journal that this was done.

    Images are decoded as a stream: as many are in memory as there are threads.

    Args:
      paths: name -> file.
      file: the journal of earlier hashes.
      perceptual: also make perceptual hashes.
      threads: images decoded at a time.
      loading: how files become pictures; hashes of another one are not used.

    Raises:
      UserError: the journal is damaged, or cannot be written.
    """
    hashes = ImageHashes()
    with journal.Journal(file, sync_every=4096) as done:
        for where, record in done.records():
            if "problem" in record or (perceptual and "look" not in record):
                continue
            if record.get(_LOADING, RELEASED.fingerprint()) != loading.fingerprint():
                continue
            try:
                name = record["image"]
                if name in paths and record["file"] == _file_stamp(paths[name]):
                    hashes.add(record, paths[name])
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{where} is no record of an image; remove that line") from None
        todo = [(name, path) for name, path in paths.items() if name not in hashes.pixels]
        with progress.counter(len(todo), "comparing images") as bar:
            for records in _hashed_in_order(todo, perceptual, threads, loading):
                done.add(*records)
                for record in records:
                    hashes.add(record, paths[record["image"]])
                bar.update(len(records))
    return hashes


def gathered(
    paths: Mapping[str, Any],
    files: Sequence[Path],
    perceptual: bool,
    loading: Loading = RELEASED,
) -> ImageHashes:
    """The hashes in several journals that others have written, each of some of the images.

    They are taken for those of the files that lie here: places and times of copies may be others.

    Args:
      paths: name -> file.
      files: the journals.
      perceptual: with perceptual hashes.
      loading: how files become pictures; hashes of another one are not used.

    Raises:
      UserError: a journal is damaged, or an image is in none.
    """
    hashes = ImageHashes()
    stamps: dict[str, Any] = {}
    for where, record in (one for file in files for one in journal.read(file)):
        try:
            name, stamp = record["image"], record["file"]
            if record.get(_LOADING, RELEASED.fingerprint()) != loading.fingerprint():
                continue
            if name not in paths or (perceptual and not {"look", "problem"} & record.keys()):
                continue
            # A file that was replaced has several: the last counts, unless that is of another file
            # than the one that lies here again.
            if name in stamps and stamp != stamps[name] == _file_stamp(paths[name]):
                continue
            stamps[name] = stamp
            hashes.forget(name)
            hashes.add(record, paths[name])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{where} is no record of an image; remove that line") from None
    lost = [name for name in paths if name not in stamps]
    if lost:
        raise UserError(
            f"the journals of the workers lack {len(lost)} of {len(paths)} images, {lost[0]!r} the "
            "first; start the workers again"
        )
    # In the order of one process.
    hashes.pixels = {name: hashes.pixels[name] for name in paths if name in hashes.pixels}
    hashes.problems = {name: hashes.problems[name] for name in paths if name in hashes.problems}
    return hashes


def was_released(file: str | Path) -> bool:
    """Whether a journal was begun before there was a choice of loadings."""
    first = next(journal.read(file), None)
    return first is not None and _LOADING not in first[1]


def perceptual_hash(image: Image.Image) -> bytes:
    """128 bits: whether brightness falls to the right, and downwards, on a grid of 8 x 8.

    Both directions of the difference hash, so that pictures with one bar of one direction differ.
    """
    grey = image.convert("RGB").convert("L")
    rows = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    columns = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    bits = np.concatenate([np.diff(rows, axis=1).ravel() < 0, np.diff(columns, axis=0).ravel() < 0])
    return np.packbits(bits).tobytes()


def _hashed_in_order(
    todo: Sequence[tuple[str, Any]], perceptual: bool, threads: int, loading: Loading
) -> Iterator[list[dict[str, Any]]]:
    """Records in the order of `todo`, some at a time, with two tasks per thread under way.

    A task is some images: a task of one would cost as much to hand out as a small image to decode.
    """

    # Journals of before there was a loading, which were made as published runs open files, go on.
    said = {} if loading == RELEASED else {_LOADING: loading.fingerprint()}

    def task(start: int) -> list[dict[str, Any]]:
        part = todo[start : start + _TASK]
        return [
            {
                "image": n,
                "file": _file_stamp(path),
                **said,
                **_hash_image(path, perceptual, loading),
            }
            for n, path in part
        ]

    with ThreadPoolExecutor(threads) as workers:
        ahead: deque = deque()
        try:
            for start in range(0, len(todo), _TASK):
                ahead.append(workers.submit(task, start))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _hash_image(path: Any, perceptual: bool, loading: Loading) -> dict[str, str]:
    try:
        image = open_image(path, loading)
        result = {"pixels": pixel_hash(image)}
        return result | ({"look": perceptual_hash(image).hex()} if perceptual else {})
    except UserError as error:
        found = unusable.problem(unusable.source_of(path), error)
    except (OSError, ValueError) as error:  # a mode without a conversion to RGB; a damaged record
        no_pixels = UserError(f"has no RGB pixels ({error})")
        found = unusable.problem(unusable.source_of(path), no_pixels)
    return {"problem": found.why, "reason": found.reason}


def _file_stamp(path: Any) -> list[int]:
    """Tells a picture that was replaced: size and time of its file, and its place if it is packed.

    Of a folder of packed records, the time of the folder.
    """
    place = (getattr(path, key, None) for key in ("offset", "size", "number"))
    file = getattr(path, "shard", getattr(path, "folder", path))
    try:
        found = os.stat(file)
    except (OSError, TypeError):
        return []
    return [*(n for n in place if isinstance(n, int)), found.st_size, found.st_mtime_ns]
