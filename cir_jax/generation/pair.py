# SPDX-License-Identifier: Apache-2.0
"""Step three: which image is to be found from which, as (reference, target) pairs.

Every image is a reference once (or `per_image` times), paired with a random other image, or with
one in a window of its similarity ranking. The windows of arXiv 2404.11317 begin at rank 10,000:
unlike images make texts that tell much. The draws are those of the released generator: one stream
of Python's `random`, one `sample` per reference in the order of the images, and a last `sample` for
`keep`, so that with its captions, its ranks and its seed its triplets come out.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.data.annotations import image_name, read_lines
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError, nearest
from cir_jax.files import gigabytes
from cir_jax.generation import excluded, hard_negatives, journal
from cir_jax.generation.dedupe import Groups
from cir_jax.generation.images import Pool
from cir_jax.generation.trained import OpenRun, no_run

FILE = "pairs.jsonl"


def run(
    config: ConfigDict,
    pool: Pool,
    groups: Groups,
    names: Sequence[str],
    workdir: Path,
    open_run: OpenRun = no_run,
) -> list[dict[str, Any]]:
    """Pairs among `names`; also written to `pairs.jsonl`.

    Args:
      config: see configs/positives.py.
      pool: the images and their annotated triplets.
      groups: which images are the same.
      names: the images that stand for their groups and have a caption, in order.
      workdir: of the run.
      open_run: opens `pair.run`, where a trained model is asked.

    Returns:
      [{"reference", "target"}], with "rank" and "similarity" where there is a ranking.

    Raises:
      UserError: more is asked for than there is, or features are missing.
    """
    check_pair(config)
    section, names = config.pair, list(names)
    gone = excluded.read(section.excluded, pool, groups)
    rng = random.Random(config.seed)
    if section.method == "mined":
        pairs = hard_negatives.mine(
            section.run, pool, groups, names, section.mined_top, section.per_image, open_run
        )
    elif section.method == "file":
        pairs = _of_file(section.file, pool, groups, names, workdir)
    else:
        pairs = _drawn(config, pool, groups, names, gone, workdir, rng, open_run)
    if gone and pairs and not (pairs := excluded.without(pairs, gone)):
        raise UserError(
            f"pair.excluded={section.excluded} leaves no pair; give other pairs, or leave it out"
        )
    if not pairs:
        raise UserError(
            f"no pair was mined: every target is ahead of the first {section.mined_top} wrong "
            "images, or the images there are known targets; raise pair.mined_top, or use another "
            "pair.method"
        )
    if section.keep > len(pairs):
        raise UserError(
            f"pair.keep={section.keep} of {len(pairs)} pairs; use 0 for all of them, or a larger "
            "pair.per_image"
        )
    if section.keep:
        pairs = rng.sample(pairs, section.keep)
    journal.write_lines(workdir / FILE, pairs)
    return pairs


def check_place(file: str, workdir: Path) -> None:
    """Raises UserError if `pair.file` is a file that is written over."""
    if file and Path(file).resolve() == (workdir / FILE).resolve():
        raise UserError(f"pair.file={file} is written by this run; give it another name")


def check_pair(config: ConfigDict) -> None:
    """Raises UserError for settings of `pair` that do not go together."""
    section = config.pair
    for key, methods in (
        ("features", ("window",)), ("feature_names", ("window",)), ("run", ("window", "mined")),
        ("window", ("window",)), ("file", ("file",)),
    ):  # fmt: skip
        if section[key] and section.method not in methods:
            raise UserError(
                f"pair.{key} is set, but pair.method={section.method} would not look at it; set "
                f"pair.method={' or '.join(methods)}"
            )
    if section.method == "mined" and not section.run:
        raise UserError("pair.method=mined needs pair.run, the folder of a trained run")
    if section.method == "file" and not section.file:
        raise UserError("pair.method=file needs pair.file, JSON lines with reference and target")
    if section.method == "window":
        _check_window(section)


def _check_window(section: ConfigDict) -> None:
    if bool(section.run) == bool(section.features):
        raise UserError(
            "pair.method=window needs features of the images: either pair.features, a .npy file, "
            "or pair.run, the folder of a trained run"
        )
    if section.feature_names and not section.features:
        raise UserError("pair.feature_names needs pair.features, the .npy file of its rows")
    window = tuple(section.window)
    if len(window) != 2 or not all(isinstance(rank, int) for rank in window):
        raise UserError(f"pair.window={window}; give two ranks, from and to, e.g. 100,200")


def _drawn(
    config: ConfigDict,
    pool: Pool,
    groups: Groups,
    names: list[str],
    gone: excluded.Pairs,
    workdir: Path,
    rng: random.Random,
    open_run: OpenRun,
) -> list[dict[str, Any]]:
    section = config.pair
    row_of = {name: row for row, name in enumerate(names)}
    passed_over = _excluded(pool, groups, row_of) if section.exclude_known else {}
    for one, other in gone:
        if one in row_of and other in row_of:
            passed_over.setdefault(row_of[one], set()).add(row_of[other])
    wanted = pool.references() if section.references_only else row_of.keys()
    rows = [row for row, name in enumerate(names) if name in wanted]
    if not rows:
        raise UserError("no pair: no image is the reference of an annotated triplet")
    ranked = section.method == "window"
    low, high = _window(section, len(names)) if ranked else (1, len(names))
    places = []
    for row in rows:
        # As many more as may have to be passed over; none more where nothing is excluded, so that
        # the stream of draws is the released one.
        spare = len(passed_over.get(row, ())) + (low == 0)
        most = high - low
        _check_enough(section, names[row], most - (low == 0), most)
        places.append(rng.sample(range(most), min(section.per_image + spare, most)))
    found: list[tuple[Any, Any]]
    if ranked:
        ranks = [np.add(p, low) for p in places]
        found = _at_ranks(config, names, pool, rows, ranks, workdir, open_run)
    else:
        found = [([j + (j >= row) for j in p], None) for row, p in zip(rows, places, strict=True)]
    pairs = []
    for row, place, (candidates, scores) in zip(rows, places, found, strict=True):
        passed = passed_over.get(row, set()) | {row}
        kept = [i for i, other in enumerate(candidates) if int(other) not in passed]
        _check_enough(section, names[row], len(kept), high - low)
        for i in kept[: section.per_image]:
            pair: dict[str, Any] = {"reference": names[row], "target": names[int(candidates[i])]}
            if ranked:
                pair |= {"rank": low + place[i], "similarity": round(float(scores[i]), 4)}
            pairs.append(pair)
    progress.say(f"{len(pairs)} pairs of {len(rows)} references among {len(names)} images")
    return pairs


def _of_file(
    file: str, pool: Pool, groups: Groups, names: list[str], workdir: Path
) -> list[dict[str, Any]]:
    """The pairs of a file, between images that stand for their groups; the rest of a record stays.

    Raises:
      UserError: a record names no image of the set, or pairs an image with itself; no pair is left.
    """
    check_place(file, workdir)
    known, captioned = NamedFiles(pool.paths), set(names)
    pairs, without = [], 0
    for where, record in read_lines(file):
        written = [image_name(record, key, where) for key in ("reference", "target")]
        both = [groups.first(known.name(name, where)) for name in written]
        lost = next((w for w, n in zip(written, both, strict=True) if n not in pool.paths), None)
        if lost is not None:
            raise UserError(
                f"{where}: image {lost!r} is not among the {len(pool.paths)} images;"
                f"{nearest(lost, pool.paths)}"
            )
        if both[0] == both[1]:
            raise UserError(f"{where} pairs image {written[0]!r} with itself or a duplicate")
        if not captioned.issuperset(both):
            without += 1
            continue
        pairs.append({**record, "reference": both[0], "target": both[1]})
    if not pairs:
        raise UserError(f"pair.file={file} holds no pair of images that have a caption")
    left = f"; {without} left out, an image has no caption" if without else ""
    progress.say(f"{len(pairs)} pairs of {file}{left}")
    return pairs


def _window(section: ConfigDict, images: int) -> tuple[int, int]:
    low, high = section.window
    if not (0 <= low < (high or images) <= images):
        raise UserError(
            f"pair.window={low},{high} does not fit {images} images, whose ranks are 0 to "
            f"{images - 1}; the released windows are made for sets of 17,000 to 25,000. Set, e.g., "
            f"pair.window={images // 2},0 for the less similar half"
        )
    return low, high or images


def _check_enough(section: ConfigDict, name: str, left: int, candidates: int) -> None:
    if section.per_image > left:
        raise UserError(
            f"pair.per_image={section.per_image}, but image {name!r} has only {left} of "
            f"{candidates} candidates left: itself, targets that annotators gave it and images "
            "that pair.excluded names are none. Use a smaller number, a wider window, or "
            "pair.exclude_known=False"
        )


def _excluded(pool: Pool, groups: Groups, row_of: dict[str, int]) -> dict[int, set[int]]:
    """Row -> rows that annotators have already paired with it, under any of their names."""
    found: dict[int, set[int]] = {}
    for reference, target in pool.known():
        a, b = row_of.get(groups.first(reference)), row_of.get(groups.first(target))
        if a is not None and b is not None and a != b:
            found.setdefault(a, set()).add(b)
    return found


def _at_ranks(
    config: ConfigDict,
    names: list[str],
    pool: Pool,
    rows: list[int],
    ranks: list[np.ndarray],
    workdir: Path,
    open_run: OpenRun,
) -> list[tuple[np.ndarray, np.ndarray]]:
    # jax and Orbax, which no other pair.method needs.
    import jax

    from cir_jax.generation import features, similarity
    from cir_jax.runtime import memory
    from cir_jax.runtime import mesh as meshes

    section = config.pair
    if section.features:
        rows_of_images = features.from_file(section.features, section.feature_names, names)
    else:
        paths = [pool.paths[n] for n in names]
        rows_of_images = features.from_run(section.run, names, paths, workdir, open_run)
    # One process makes the pairs, also on a host of a TPU slice, where jax knows all its devices.
    mesh = meshes.make(devices=jax.local_devices())

    def advice() -> str:
        size = gigabytes(rows_of_images.nbytes)
        return (
            f"What takes less: a smaller pair.block (now {section.block}): rows of {len(names):,} "
            f"similarities at a time; narrower features (now {rows_of_images.shape[1]} wide: "
            f"{size} on each device)"
        )

    with memory.guard("ranking images by their similarity", advice):
        return similarity.at_ranks(
            rows_of_images, ranks, rows=np.asarray(rows, np.int32), mesh=mesh, block=section.block
        )
