# SPDX-License-Identifier: Apache-2.0
"""Examines a data set before training: are the files there, complete, and can they be opened?

The annotation files are examined by the reader of the data set (`examine`, see
`cir_jax.datasets.reader`); the images are opened here, in the same way for every data set.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from cir_jax.data.inspection import Findings, inspect_images
from cir_jax.data.pixels import NATURAL, RELEASED
from cir_jax.datasets import reader
from cir_jax.datasets.examination import Count


class Report(TypedDict):
    """All that was found, as JSON.

    Keys:
      dataset, root: as they were given.
      counts: what was counted, beside the official numbers.
      images: kind of finding -> names of images.
      notes: what is worth knowing.
      problems: what would change results.
    """

    dataset: str
    root: str
    counts: list[Count]
    images: dict[str, list[str]]
    notes: list[str]
    problems: list[str]


def examine(
    dataset: str,
    root: str | Path,
    categories: Sequence[str] = (),
    *,
    decode: bool = True,
    threads: int = 16,
) -> Report:
    """Examines a data set.

    Args:
      dataset: name of its reader, or the path of a .py file that defines `examine`.
      root: its folder.
      categories: categories (of FashionIQ) or tasks (of GeneCIS); () for all.
      decode: open every image, which also finds pixel-identical ones.
      threads: images opened at a time.

    Raises:
      UserError: there are no annotations at all, a file of them is malformed, or the reader
        defines no `examine`.
    """
    found = reader.examine(dataset, root, categories)
    problems = list(found.problems)
    if found.outside:
        problems.append(f"{len(found.outside):,} names in triplets are not in their split")
    # As a run on these images opens them.
    loading = RELEASED if reader.is_published(dataset) else NATURAL
    opened = inspect_images(found.images, decode, threads, loading)
    return {
        "dataset": dataset,
        "root": str(root),
        "counts": found.counts,
        "images": {"named by a triplet but not by its split": found.outside, **_by_kind(opened)},
        "notes": found.notes,
        "problems": problems + _problems(opened),
    }


def _by_kind(opened: Findings) -> dict[str, list[str]]:
    return {
        "missing": opened.missing,
        "empty (0 bytes)": opened.empty,
        "undecodable": opened.undecodable,
        "pixel-identical groups": [" = ".join(names) for names in opened.duplicates],
    }


def _problems(opened: Findings) -> list[str]:
    bad = len(opened.unusable())
    if not bad:
        return []
    return [
        f"{bad:,} of {opened.images:,} images cannot be used; fetch them again. Deleting "
        "them from the split files instead would change the gallery and every recall"
    ]
