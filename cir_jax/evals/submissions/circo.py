# SPDX-License-Identifier: Apache-2.0
"""The file that the CIRCO test server takes, checked before it is written.

circo_submission_{name}.json: query number -> the numbers of the best 50 images, best first:
{"0": [9761, ...], ..., "799": [...]}. Every query of the split, no image twice. Source: the
description of the file by the authors of CIRCO.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax import files
from cir_jax.errors import UserError

COUNT = 50  # images per query


@dataclass(frozen=True)
class Predictions:
    """What a model answers to every query of a split.

    Attributes:
      best: query number, as text -> numbers of the best images, best first.
      gallery: numbers of all images.
    """

    best: Mapping[str, Sequence[int]]
    gallery: Sequence[int]


def write(folder: str | Path, name: str, predictions: Predictions) -> Path:
    """Checks the file and writes it to `folder`; nothing is written if it is wrong.

    Raises:
      UserError: see `check`.
    """
    path = Path(folder) / f"circo_submission_{name}.json"
    content = {number: list(predictions.best[number]) for number in predictions.best}
    check(content, list(predictions.best), predictions.gallery, str(path))
    files.put(path, json.dumps(content).encode())
    return path


def check(
    content: Mapping[str, Any],
    asked: Sequence[str],
    gallery: Sequence[int],
    where: str = "submission",
) -> None:
    """Refuses what the server would refuse, or would score as zero without an error.

    Args:
      content: the object of a file.
      asked: numbers of all queries of the split, as text.
      gallery: numbers of all images.
      where: names the file in messages.

    Raises:
      UserError: a query missing or unknown, a wrong number of images, something that is no whole
        number, an image twice, or one that is no candidate.
    """
    answered, wanted = set(content), set(asked)
    for what, numbers in (("lacks", wanted - answered), ("has unknown", answered - wanted)):
        if numbers:
            first = ", ".join(sorted(numbers, key=lambda n: (len(n), n))[:3])
            raise UserError(
                f"{where} {what} {len(numbers)} of {len(wanted)} queries: {first}; make the file "
                "from the split it is for"
            )
    known = set(gallery)
    expected = min(COUNT, len(known))
    for number in asked:
        _check_images(content[number], known, expected, f"{where} query {number}")


def _check_images(images: Any, known: set[int], expected: int, where: str) -> None:
    if not isinstance(images, list) or len(images) != expected:
        count = len(images) if isinstance(images, list) else images
        raise UserError(f"{where} has {count} images, expected a list of {expected}")
    strange = [n for n in images if type(n) is not int]
    if strange:
        raise UserError(f"{where} names {strange[0]!r}; images are whole numbers, without quotes")
    if len(set(images)) != len(images):
        twice = next(n for i, n in enumerate(images) if n in images[:i])
        raise UserError(f"{where} names {twice} more than once; each image counts once")
    unknown = [n for n in images if n not in known]
    if unknown:
        raise UserError(
            f"{where} names {unknown[0]}, which is not among the {len(known):,} images; make the "
            "file from the data set it is for"
        )
