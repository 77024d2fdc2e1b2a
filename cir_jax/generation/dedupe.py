# SPDX-License-Identifier: Apache-2.0
"""Step one: which images are the same image.

Two images are duplicates if they decode to the same size and the same RGB pixels, as in the
released code, which compares every pair with all images in memory; a hash of the pixels finds the
same groups in one pass, and of an image only its hash is kept. As an option, near duplicates:
perceptual hashes that differ in a few bits, whatever the size and the file format.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.data.annotations import read_json
from cir_jax.data.refusals import LIST, in_words, summary
from cir_jax.data.screening import Screen
from cir_jax.data.unusable import Problem
from cir_jax.errors import UserError
from cir_jax.generation import images, journal
from cir_jax.generation.image_hashes import ImageHashes, hash_images
from cir_jax.generation.images import Pool
from cir_jax.generation.near_duplicates import join_near_duplicates

HASHES, GROUPS, TABLE = "hashes.jsonl", "same_image_list.json", "optimized_images.json"
_LIST_OF_BEFORE = "unreadable.jsonl"  # of earlier versions, without the reasons


@dataclass(frozen=True)
class Groups:
    """Which images are the same.

    Attributes:
      members: groups of names, singletons included; the first member stands for its group. Groups
        are in the order of their first members, or of the file they come from.
      of: name -> number of its group.
      pixels: name -> hash of what it shows, as far as images were looked at.
    """

    members: tuple[tuple[str, ...], ...]
    of: dict[str, int]
    pixels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, members: Sequence[Sequence[str]]) -> "Groups":
        """From groups of names."""
        of = {name: number for number, group in enumerate(members) for name in group}
        return cls(tuple(map(tuple, members)), of)

    def first(self, name: str) -> str:
        """The image that stands for `name`; itself if it is in no group."""
        return self.members[self.of[name]][0] if name in self.of else name


def check_dedupe(config: ConfigDict) -> None:
    """Raises UserError for settings of `dedupe` that do not go together."""
    near = config.dedupe.near
    if config.dedupe.optimized and near >= 0:
        raise UserError(
            f"dedupe.near={near} compares images, and dedupe.optimized={config.dedupe.optimized} "
            "says that none are; set one of them"
        )


def run(config: ConfigDict, pool: Pool, workdir: Path) -> tuple[Pool, Groups]:
    """Finds duplicates; writes `same_image_list.json` and `optimized_images.json`.

    Args:
      config: see configs/positives.py.
      pool: the images.
      workdir: where `hashes.jsonl` notes what has been looked at: a run that was stopped goes on
        behind it, and only files that changed are looked at again.

    Returns:
      The images that can be used, and their groups.

    Raises:
      UserError: images cannot be used (unless they may be dropped), or the file of groups lacks
        some.
    """
    check_dedupe(config)
    if config.dedupe.optimized:
        made = read_groups(config.dedupe.optimized, pool.paths)
        write_groups(workdir, pool.paths, made)
        return pool, made
    hashes = hash_images(
        *(pool.paths, workdir / HASHES, config.dedupe.near >= 0, config.data.threads),
        images.loading_of(config),
    )
    return grouped(config, pool, hashes, workdir)


def grouped(
    config: ConfigDict, pool: Pool, hashes: ImageHashes, workdir: Path
) -> tuple[Pool, Groups]:
    """As `run`, of images that are hashed."""
    pool = _without(pool, judged(config, pool.paths, hashes, workdir), workdir)
    groups = [[name] for name in pool.paths]
    if config.dedupe.exact:
        groups = _equal(pool.paths, hashes.pixels)
    if config.dedupe.near >= 0:
        groups = join_near_duplicates(groups, hashes.perceptual, config.dedupe.near)
    made = replace(Groups.make(groups), pixels=hashes.pixels)
    write_groups(workdir, pool.paths, made)
    return pool, made


def judged(
    config: ConfigDict, paths: Mapping[str, Any], hashes: ImageHashes, workdir: Path
) -> dict[str, Problem]:
    """Those of some hashed images that cannot be used; they are listed in `workdir`.

    Raises:
      UserError: there are some, and they may not be dropped.
    """
    return _screen(config, workdir).judged(paths, hashes.problems)


def write_groups(workdir: Path, paths: Mapping[str, Any], groups: Groups) -> None:
    """Writes both files of the released project."""
    number = {name: i for i, name in enumerate(paths)}
    ids = (sorted(number[name] for name in group) for group in groups.members)
    journal.write_json(workdir / GROUPS, sorted(ids, key=itemgetter(0)))
    firsts = [group[0] for group in groups.members]
    table = [firsts, [str(paths[n]) for n in firsts], groups.of]
    journal.write_json(workdir / TABLE, table)


def read_groups(file: str | Path, paths: Mapping[str, Any]) -> Groups:
    """Groups of the images of `paths` from an `optimized_images.json` or a `same_image_list.json`.

    The second holds numbers in the order of `paths`, so it must be about the very same images.

    Raises:
      UserError: another kind of file, or an image is not in it.
    """
    content = read_json(file)
    if content and all(isinstance(group, list) for group in content):
        return _numbered(content, list(paths), file)
    lists = len(content) == 3 and isinstance(content[0], list) and isinstance(content[2], dict)
    if not lists or not content[2]:
        raise UserError(
            f"{file} is no optimized_images.json: expected [names, paths, name -> id], not empty"
        )
    wrong = next((n for n, number in content[2].items() if type(number) is not int), None)
    if wrong is not None:
        raise UserError(f"{file}: the id of image {wrong!r} is {content[2][wrong]!r}, no number")
    lost = [n for n in paths if n not in content[2]]
    if lost:
        raise UserError(
            f"{file} lacks {len(lost)} of {len(paths)} images, {lost[0]!r} the first; set "
            "dedupe.optimized to nothing, so that the images are compared"
        )
    members: dict[int, list[str]] = {}
    for name in paths:
        members.setdefault(content[2][name], []).append(name)
    if not all(isinstance(name, str) for name in content[0]):
        raise UserError(f"{file}: its first list is none of image names; make the file anew")
    # The file's numbers are the order of its images, and its names stand for their groups.
    firsts = set(content[0])
    return Groups.make([sorted(members[n], key=lambda n: n not in firsts) for n in sorted(members)])


def _numbered(content: list[list[Any]], names: list[str], file: str | Path) -> Groups:
    """Groups of image numbers."""
    numbers = [number for group in content for number in group]
    if not all(type(n) is int for n in numbers) or sorted(numbers) != list(range(len(names))):
        raise UserError(
            f"{file} groups {len(numbers)} numbers, and there are {len(names)} images, each of "
            "which must be in one group; set dedupe.optimized to nothing, so that the images are "
            "compared"
        )
    return Groups.make([[names[n] for n in group] for group in content if group])


def _equal(names: Iterable[str], pixels: Mapping[str, str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(pixels[name], []).append(name)
    return list(groups.values())


def usable(config: ConfigDict, pool: Pool, groups: Groups, workdir: Path) -> tuple[Pool, Groups]:
    """Pool and groups without images that cannot be used, where `run` took groups from a file.

    Args:
      config: see configs/positives.py.
      pool: the images.
      groups: which are the same.
      workdir: where the list is written.

    Raises:
      UserError: images cannot be used (unless they may be dropped).
    """
    bad = _screen(config, workdir).unusable(pool.paths, decode=True)
    kept = _without(pool, bad, workdir)
    if bad:
        groups = Groups.make(
            [left for group in groups.members if (left := [n for n in group if n not in bad])]
        )
        write_groups(workdir, kept.paths, groups)
    return kept, groups


def _screen(config: ConfigDict, workdir: Path) -> Screen:
    return Screen(
        config.data.on_missing,
        root=config.data.root,
        folder=str(workdir),
        threads=config.data.threads,
        loading=images.loading_of(config),
    )


def _without(pool: Pool, bad: Mapping[str, Problem], workdir: Path) -> Pool:
    """The pool without images that cannot be used.

    Raises:
      UserError: fewer than two are left.
    """
    (workdir / _LIST_OF_BEFORE).unlink(missing_ok=True)
    if not bad:
        return pool
    told = (
        f"{len(bad):,} of {len(pool.paths):,} images cannot be used ({in_words(summary(bad))}), "
        f"all listed in {workdir / LIST}"
    )
    if len(pool.paths) - len(bad) < 2:
        raise UserError(f"{told}; pairs need two that can. Fetch them again")
    progress.say(f"warning: {told}; they are left out")
    return pool.without(bad)
