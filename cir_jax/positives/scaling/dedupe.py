# SPDX-License-Identifier: Apache-2.0
"""Step one: which images are the same image.

Two images are duplicates if they decode to the same size and the same RGB pixels, as in the
released code, which compares every pair with all images in memory; a hash of the pixels finds the
same groups in one pass, and only hashes are kept. As an option, near duplicates: perceptual hashes
that differ in a few bits, whatever the size and the file format.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import xxhash
from PIL import Image

from cir_jax.data.pixels import open_image
from cir_jax.errors import UserError
from cir_jax.positives.annotations import read_json
from cir_jax.positives.scaling import journal
from cir_jax.positives.scaling.images import Pool
from cir_jax.runtime import progress

HASHES, GROUPS, TABLE = "hashes.jsonl", "same_image_list.json", "optimized_images.json"
UNREADABLE = "unreadable.jsonl"
BITS = 128  # of a perceptual hash
_TASK = 16  # images a thread is given at a time
_ROWS = 512  # perceptual hashes compared with all others at a time


@dataclass(frozen=True)
class Groups:
    """Which images are the same.

    Attributes:
      members: groups of names in the order of their first member, singletons included.
      of: name -> number of its group.
    """

    members: tuple[tuple[str, ...], ...]
    of: dict[str, int]

    @classmethod
    def make(cls, members: Sequence[Sequence[str]]) -> "Groups":
        """From groups of names."""
        of = {name: number for number, group in enumerate(members) for name in group}
        return cls(tuple(map(tuple, members)), of)

    def first(self, name: str) -> str:
        """The image that stands for `name`; itself if it is in no group."""
        return self.members[self.of[name]][0] if name in self.of else name


def run(config: Any, pool: Pool, workdir: Path) -> tuple[Pool, Groups]:
    """Finds duplicates; writes `same_image_list.json` and `optimized_images.json`.

    Args:
      config: see configs/positives.py.
      pool: the images.
      workdir: where `hashes.jsonl` notes what has been looked at: a run that was stopped goes on
        behind it, and only files that changed are looked at again.

    Returns:
      The readable images, and their groups.

    Raises:
      UserError: images cannot be read (unless they may be dropped), or the file of groups lacks
        some.
    """
    near = config.dedupe.near
    if not -1 <= near < BITS // 2:
        raise UserError(f"dedupe.near={near}; use -1 for off, or 0 to {BITS // 2 - 1} bits")
    if config.data.on_missing not in ("error", "drop"):
        raise UserError(f"data.on_missing={config.data.on_missing!r} is unknown; use error or drop")
    if config.dedupe.optimized:
        groups = read_table(config.dedupe.optimized, pool.paths)
        return pool, groups
    found = look(pool.paths, workdir / HASHES, near >= 0, config.data.threads)
    pool = _readable(pool, found, config.data.on_missing, workdir)
    names = list(pool.paths)
    groups = [[name] for name in names]
    if config.dedupe.exact:
        groups = _equal(names, [found[n]["pixels"] for n in names])
    if near >= 0:
        groups = join_near(groups, {n: bytes.fromhex(found[n]["look"]) for n in names}, near)
    made = Groups.make(groups)
    write(workdir, pool.paths, made)
    return pool, made


def look(
    paths: Mapping[str, Any], file: str | Path, perceptual: bool = False, threads: int = 16
) -> dict[str, dict[str, Any]]:
    """name -> {"pixels": hash, "look": perceptual hash} or {"problem": why it cannot be read}.

    Images are decoded as a stream: as many are in memory as there are threads.

    Args:
      paths: name -> file.
      file: the journal of earlier looks.
      perceptual: also make perceptual hashes.
      threads: images decoded at a time.
    """
    found: dict[str, dict[str, Any]] = {}
    with journal.Journal(file, sync_every=4096) as done:
        for record in done.records():
            name = record["image"]
            fresh = name in paths and record.get("file") == _stamp(paths[name])
            if fresh and "problem" not in record and (record.get("look") or not perceptual):
                found[name] = {key: record[key] for key in ("pixels", "look") if key in record}
        todo = [(name, path) for name, path in paths.items() if name not in found]
        with progress.counter(len(todo), "comparing images") as bar:
            for records in _looked_at(todo, perceptual, threads):
                done.add(*records)
                for record in records:
                    kept = ("pixels", "look", "problem")
                    found[record["image"]] = {key: record[key] for key in kept if key in record}
                bar.update(len(records))
    return found


def pixel_hash(image: Image.Image) -> str:
    """Hash of the size and the RGB pixels of an image (128 bits in hexadecimal).

    XXH3 over Pillow's own memory: two per cent of the time of decoding, where a copy of the pixels
    and a cryptographic hash would take half of it.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    digest = xxhash.xxh3_128(f"{image.width} {image.height} ".encode())
    try:
        digest.update(pyarrow.array(image).buffers()[-1])
    except ValueError:  # a large image lies in several pieces; the same bytes, copied
        digest.update(image.tobytes("raw", "RGBX"))
    return digest.hexdigest()


def perceptual_hash(image: Image.Image) -> bytes:
    """128 bits: whether brightness falls to the right, and downwards, on a grid of 8 x 8.

    Both directions of the difference hash, so that pictures with one bar of one direction differ.
    """
    grey = image.convert("RGB").convert("L")
    rows = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    columns = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    bits = np.concatenate([np.diff(rows, axis=1).ravel() < 0, np.diff(columns, axis=0).ravel() < 0])
    return np.packbits(bits).tobytes()


def join_near(
    groups: Sequence[Sequence[str]], looks: Mapping[str, bytes], distance: int
) -> list[list[str]]:
    """Joins groups whose first members' perceptual hashes differ in `distance` bits at most.

    Likeness is passed on: if a is near b and b near c, all three are one group. Pictures without
    any edge have an empty hash, which says nothing, and are joined with none.
    """
    firsts = [group[0] for group in groups]
    hashes = np.frombuffer(b"".join(looks[n] for n in firsts), np.uint64).reshape(len(firsts), 2)
    parent = list(range(len(firsts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    empty = ~hashes.any(axis=1)
    for start in progress.bar(range(0, len(firsts), _ROWS), title="near duplicates"):
        block = hashes[start : start + _ROWS]
        differing = np.bitwise_count(block[:, None, 0] ^ hashes[None, start:, 0])
        differing = differing + np.bitwise_count(block[:, None, 1] ^ hashes[None, start:, 1])
        near = (differing <= distance) & ~empty[start : start + _ROWS, None] & ~empty[None, start:]
        for i, j in np.argwhere(np.triu(near, 1)):
            a, b = root(start + int(i)), root(start + int(j))
            parent[max(a, b)] = min(a, b)
    joined: dict[int, list[str]] = {}
    for i, group in enumerate(groups):
        joined.setdefault(root(i), []).extend(group)
    return list(joined.values())


def write(workdir: Path, paths: Mapping[str, Any], groups: Groups) -> None:
    """Writes both files of the released project."""
    number = {name: i for i, name in enumerate(paths)}
    ids = [sorted(number[name] for name in group) for group in groups.members]
    journal.write_json(workdir / GROUPS, ids)
    firsts = [group[0] for group in groups.members]
    table = [firsts, [str(paths[n]) for n in firsts], groups.of]
    journal.write_json(workdir / TABLE, table)


def read_table(file: str | Path, paths: Mapping[str, Any]) -> Groups:
    """Groups of the images of `paths` from an `optimized_images.json`.

    Raises:
      UserError: another kind of file, or an image is not in it.
    """
    content = read_json(file)
    if len(content) != 3 or not isinstance(content[2], dict) or not content[2]:
        raise UserError(
            f"{file} is no optimized_images.json: expected [names, paths, name -> id], not empty"
        )
    lost = [n for n in paths if n not in content[2]]
    if lost:
        raise UserError(
            f"{file} lacks {len(lost)} of {len(paths)} images, {lost[0]!r} the first; set "
            "dedupe.optimized to nothing, so that the images are compared"
        )
    members: dict[int, list[str]] = {}
    for name in paths:
        members.setdefault(content[2][name], []).append(name)
    # The numbers of the file are the order of its images; ours follow from them.
    return Groups.make([members[n] for n in sorted(members)])


def _equal(names: Sequence[str], hashes: Sequence[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name, digest in zip(names, hashes, strict=True):
        groups.setdefault(digest, []).append(name)
    return list(groups.values())


def _readable(pool: Pool, found: dict, on_missing: str, workdir: Path) -> Pool:
    bad = {n: found[n]["problem"] for n in pool.paths if "problem" in found[n]}
    listed = workdir / UNREADABLE
    if not bad:
        listed.unlink(missing_ok=True)
        return pool
    journal.write_lines(listed, ({"image": n, "problem": why} for n, why in bad.items()))
    first = next(iter(bad.values()))
    if on_missing == "error":
        raise UserError(
            f"{len(bad)} of {len(pool.paths)} images cannot be read, listed in {listed}; the "
            f"first: {first}. Correct them, or set data.on_missing=drop"
        )
    progress.say(f"warning: {len(bad)} unreadable images left out, listed in {listed}")
    if len(pool.paths) - len(bad) < 2:
        raise UserError(f"{len(bad)} of {len(pool.paths)} images cannot be read; none are left")
    return pool.without(bad)


def _looked_at(
    todo: Sequence[tuple[str, Any]], perceptual: bool, threads: int
) -> Iterator[list[dict[str, Any]]]:
    """Records in the order of `todo`, some at a time, with two tasks per thread under way.

    A task is some images: a task of one would cost as much to hand out as a small image to decode.
    """

    def task(start: int) -> list[dict[str, Any]]:
        part = todo[start : start + _TASK]
        return [{"image": n, "file": _stamp(path), **_look(path, perceptual)} for n, path in part]

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


def _look(path: Any, perceptual: bool) -> dict[str, Any]:
    try:
        image = open_image(path)
    except UserError as error:
        return {"problem": str(error)}
    result = {"pixels": pixel_hash(image)}
    return result | ({"look": perceptual_hash(image).hex()} if perceptual else {})


def _stamp(path: Any) -> list[int]:
    """Size and time of a file: a picture that was replaced is looked at again."""
    if not isinstance(path, str):
        return []
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
