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

from cir_jax.errors import UserError, nearest
from cir_jax.positives.scaling import features, journal, mine, windows
from cir_jax.positives.scaling.dedupe import Groups
from cir_jax.positives.scaling.images import Pool
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import progress

FILE = "pairs.jsonl"
METHODS = ("random", "window", "mined")


def run(
    config: Any, pool: Pool, groups: Groups, names: Sequence[str], workdir: Path
) -> list[dict[str, Any]]:
    """Pairs among `names`; also written to `pairs.jsonl`.

    Args:
      config: see configs/positives.py.
      pool: the images and their annotated triplets.
      groups: which images are the same.
      names: the images that stand for their groups and have a caption, in order.
      workdir: of the run.

    Returns:
      [{"reference", "target"}], with "rank" and "similarity" where there is a ranking.

    Raises:
      UserError: more is asked for than there is, or features are missing.
    """
    section, names = config.pair, list(names)
    _check(section, len(names))
    rng = random.Random(config.seed)
    if section.method == "mined":
        pairs = mine.confused(
            section.run, pool, groups, names, section.mined_top, section.per_image
        )
    else:
        pairs = _drawn(config, pool, groups, names, workdir, rng)
    if not pairs:
        raise UserError(
            "no pair: no image is the reference of an annotated triplet"
            if section.references_only
            else "no pair was found; draw by another pair.method"
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


def _check(section: Any, images: int) -> None:
    if section.method not in METHODS:
        raise UserError(
            f"pair.method={section.method!r} is unknown; there are: {', '.join(METHODS)}."
            f"{nearest(section.method, METHODS)}"
        )
    if section.per_image < 1 or section.keep < 0 or section.block < 1:
        raise UserError(
            f"pair.per_image={section.per_image}, pair.keep={section.keep}, pair.block="
            f"{section.block}: at least 1, 0 and 1"
        )
    if section.method == "mined" and not section.run:
        raise UserError("pair.method=mined needs pair.run, the folder of a trained run")
    if section.method != "window":
        return
    if bool(section.run) == bool(section.features):
        raise UserError(
            "pair.method=window needs features of the images: either pair.features, a .npy file, "
            "or pair.run, the folder of a trained run"
        )
    if len(section.window) != 2:
        raise UserError(f"pair.window={section.window}; give two ranks, from and to")
    low, high = section.window
    if not (0 <= low < (high or images) <= images):
        raise UserError(
            f"pair.window={low},{high} does not fit {images} images, whose ranks are 0 to "
            f"{images - 1}; the released windows are made for sets of 17,000 to 25,000"
        )


def _drawn(
    config: Any,
    pool: Pool,
    groups: Groups,
    names: list[str],
    workdir: Path,
    rng: random.Random,
) -> list[dict[str, Any]]:
    section = config.pair
    row_of = {name: row for row, name in enumerate(names)}
    excluded = _excluded(pool, groups, row_of) if section.exclude_known else {}
    wanted = pool.references() if section.references_only else row_of.keys()
    rows = [row for row, name in enumerate(names) if name in wanted]
    ranked = section.method == "window"
    low, high = (section.window[0], section.window[1] or len(names)) if ranked else (0, 0)
    places = []
    for row in rows:
        # As many more as may have to be passed over; none more where nothing is excluded, so that
        # the stream of draws is the released one.
        spare = len(excluded.get(row, ())) + (ranked and low == 0)
        count = high - low if ranked else len(names) - 1
        if section.per_image > count - spare:
            raise UserError(
                f"pair.per_image={section.per_image}, but image {names[row]!r} has only "
                f"{count - spare} candidates of {count}, {spare} excluded; use a smaller number "
                "or a wider window"
            )
        places.append(rng.sample(range(count), section.per_image + spare))
    if ranked:
        found = _at_ranks(config, names, pool, rows, [np.add(p, low) for p in places], workdir)
    else:
        found = [([j + (j >= row) for j in p], None) for row, p in zip(rows, places, strict=True)]
    pairs = []
    for row, place, (candidates, scores) in zip(rows, places, found, strict=True):
        passed = excluded.get(row, set()) | {row}
        kept = [i for i, other in enumerate(candidates) if int(other) not in passed]
        for i in kept[: section.per_image]:
            pair = {"reference": names[row], "target": names[int(candidates[i])]}
            if ranked:
                pair |= {"rank": low + place[i], "similarity": round(float(scores[i]), 4)}
            pairs.append(pair)
    progress.say(f"{len(pairs)} pairs of {len(rows)} references among {len(names)} images")
    return pairs


def _excluded(pool: Pool, groups: Groups, row_of: dict[str, int]) -> dict[int, set[int]]:
    """Row -> rows that annotators have already paired with it, under any of their names."""
    excluded: dict[int, set[int]] = {}
    for reference, target in pool.known():
        a, b = row_of.get(groups.first(reference)), row_of.get(groups.first(target))
        if a is not None and b is not None and a != b:
            excluded.setdefault(a, set()).add(b)
    return excluded


def _at_ranks(
    config: Any,
    names: list[str],
    pool: Pool,
    rows: list[int],
    ranks: list[np.ndarray],
    workdir: Path,
) -> list[tuple[np.ndarray, np.ndarray]]:
    section = config.pair
    if section.features:
        rows_of_images = features.of_file(section.features, section.feature_names, names)
    else:
        paths = [pool.paths[n] for n in names]
        rows_of_images = features.of_run(section.run, names, paths, workdir)
    mesh = meshes.make()
    return windows.at_ranks(
        rows_of_images, ranks, rows=np.asarray(rows, np.int32), mesh=mesh, block=section.block
    )
