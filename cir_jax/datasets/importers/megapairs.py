# SPDX-License-Identifier: Apache-2.0
"""MegaPairs (arXiv 2412.14475): 26 million triplets of open-domain images with hard negatives.

    {"q_img": path, "q_text": [texts], "t_img": path, "hns": [paths]}

The fields are those of the dataset card (README of VectorSpaceLab/MegaPairs); records of the
released files that others quote say `q_texts`, so both are read. Paths are relative to the folder
of the images, `train-00100-to-00199/02280/022803773.jpg`. By the card, hns[0] is the query image
itself. It is no name of another image, so it is left out of `meta.hard_negatives` wherever it
stands, as is the target. How the files are split and whether they are compressed is not stated; any
that hold such records are read.
"""

from collections.abc import Mapping
from typing import Any

from cir_jax.datasets import importer

HELP = "MegaPairs: q_img, q_text(s), t_img, hns"
PATTERNS = ("*.jsonl", "*.jsonl.gz", "*.json", "*.json.gz", "*.parquet")
KEYS = (("q_img", "t_img"),)


def convert(record: Mapping[str, Any]) -> dict[str, Any]:
    """The neutral record of one entry."""
    reference = importer.image(record, "q_img", importer.NO_REFERENCE)
    target = importer.image(record, "t_img", importer.NO_TARGET)
    texts = importer.texts(record, "q_text", "q_texts")
    negatives = record.get("hns") or []
    if not isinstance(negatives, list) or not all(isinstance(n, str) and n for n in negatives):
        raise importer.Refused(importer.MALFORMED, f"'hns' is {negatives!r}, expected a list")
    others = [n for n in negatives if n not in (reference, target)]
    return importer.neutral(reference, target, texts, {"hard_negatives": others})
