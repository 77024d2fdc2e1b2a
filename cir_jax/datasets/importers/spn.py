# SPDX-License-Identifier: Apache-2.0
"""The generated triplets that were released with the method (arXiv 2404.11317).

A JSON list in one of three layouts:

    FashionIQ      cap.extend_{tag}[_llm].train.json
                   candidate, target (ids without suffix), captions (list), caption1, caption2
    CIRR           cap.rc2.train.extend_{tag}[_llm].json
                   reference, target_hard (names), caption (list), caption1, caption2; `pairid` 0
                   and `img_set` are placeholders
    out of domain  cap.cc*.train.json, cap.rc2.train.cc*.json
                   reference, target (paths), reference_name, target_name (urls), captions

Texts are used as they are written: `captions` may hold one twice where a template was too long.
`llm_caption`, in files with _llm, is a text that a language model wrote from both captions.
The authors' annotations have the same layouts; of a folder they are not taken.
"""

from collections.abc import Mapping
from typing import Any

from cir_jax.datasets import importer
from cir_jax.errors import UserError

HELP = "generated triplets released with the method: FashionIQ, CIRR and CC layouts"
PATTERNS = tuple(
    pattern + packed
    for pattern in ("cap.extend_*.train.json", "cap.rc2.train.extend_*.json",
                    "cap.cc*.train.json", "cap.rc2.train.cc*.json")
    for packed in ("", ".gz")
)  # fmt: skip
KEYS = (
    ("candidate", "target", "captions"),
    ("reference", "target_hard", "caption"),
    ("reference", "target", "captions"),
)
OPTIONS = {"text": "captions (default: the template texts), llm (llm_caption), or both"}


def convert(record: Mapping[str, Any], text: str = "captions") -> dict[str, Any]:
    """The neutral record of one triplet.

    Raises:
      UserError: `text` is none of the three.
    """
    if text not in ("captions", "llm", "both"):
        raise UserError(f"text is {text!r}, expected captions, llm or both")
    first = "candidate" if "candidate" in record else "reference"
    second = "target_hard" if "target_hard" in record else "target"
    reference = importer.image(record, first, importer.NO_REFERENCE)
    target = importer.image(record, second, importer.NO_TARGET)
    texts = importer.texts(record, "captions", "caption") if text != "llm" else []
    if text != "captions":
        texts += importer.texts(record, "llm_caption")
    kept = ("caption1", "caption2", "reference_name", "target_name")
    meta = {key: record.get(key) for key in kept}
    if text == "captions":
        meta["llm_caption"] = record.get("llm_caption")
    return importer.neutral(reference, target, texts, meta)
