# SPDX-License-Identifier: Apache-2.0
"""LaSCo (arXiv 2303.09429): 389,305 triplets of COCO images, made from VQA 2.0.

    [{"qid": int, "query-image": [id, path], "query-text": text, "target-image": [id, path]}]

One JSON list per split, lasco_train.json and lasco_val.json (README of levymsn/LaSCo). Paths are
relative to the folder that holds COCO's train2014/ and val2014/. Of a folder, only the training
split is taken.
"""

from collections.abc import Mapping
from typing import Any

from cir_jax.datasets import importer

HELP = "LaSCo: qid, query-image, query-text, target-image"
PATTERNS = ("lasco_train.json", "lasco_train.json.gz")
KEYS = (("query-image", "target-image"),)


def convert(record: Mapping[str, Any]) -> dict[str, Any]:
    """The neutral record of one query."""
    reference, reference_id = _image(record, "query-image", importer.NO_REFERENCE)
    target, target_id = _image(record, "target-image", importer.NO_TARGET)
    texts = importer.texts(record, "query-text")
    meta = {"reference_id": reference_id, "target_id": target_id}
    return importer.neutral(reference, target, texts, meta, str(record.get("qid", "")))


def _image(record: Mapping[str, Any], key: str, reason: str) -> tuple[str, Any]:
    """(path, id) of an image."""
    pair = record.get(key)
    if isinstance(pair, list) and len(pair) == 2:
        return importer.image({key: pair[1]}, key, reason), pair[0]
    importer.image(record, key, reason)
    raise importer.Refused(importer.MALFORMED, f"{key!r} is {pair!r}, expected [id, path]")
