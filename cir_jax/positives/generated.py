# SPDX-License-Identifier: Apache-2.0
"""Triplets made without annotators, in the files of the released project.

Their layouts share one reader: FashionIQ's (`candidate`, `target`, `captions`), CIRR's
(`reference`, `target_hard`, `caption`), and that of the out-of-domain set (`reference`, `target` as
paths). Texts are used as they are written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError
from cir_jax.positives.annotations import either, field, image_name, not_empty, read_json
from cir_jax.positives.triplets import Triplet, TripletSet

SOURCE = "generated"


def read(
    file: str | Path, paths: Mapping[str, Any], root: str | Path, llm_captions: bool = False
) -> TripletSet:
    """The triplets of one file.

    Args:
      file: the JSON file; relative to `root` if it does not exist as given.
      paths: image name -> file, of the data set the triplets extend.
      root: folder that image paths of the out-of-domain layout are relative to.
      llm_captions: use the record's `llm_caption` instead of its template texts.

    Raises:
      UserError: a record lacks a field or a text (the file and the record are named), or there is
        no record.
    """
    file = Path(file) if Path(file).is_file() else Path(root) / file
    triplets, used = [], {}
    for number, record in enumerate(read_json(file)):
        where = f"{file} record {number}"
        reference = image_name(record, either(record, "candidate", "reference"), where)
        target = image_name(record, either(record, "target_hard", "target"), where)
        for name in (reference, target):
            if name in paths:
                used[name] = paths[name]
            elif "reference_name" in record:  # out-of-domain: names are paths
                used[name] = str(Path(root) / name)
        key = "llm_caption" if llm_captions else either(record, "captions", "caption")
        texts = not_empty(field(record, key, where), where)
        triplets.append(
            Triplet(reference, target, texts, texts[0], SOURCE, f"{file.name}/{number}")
        )
    if not triplets:
        raise UserError(f"{file} holds no triplet; make it anew, or set data.generated to nothing")
    return TripletSet(SOURCE, tuple(triplets), used)
