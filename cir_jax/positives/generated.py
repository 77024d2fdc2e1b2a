# SPDX-License-Identifier: Apache-2.0
"""Triplets made without annotators, in the files of the released project.

Their layouts share one reader: FashionIQ's (`candidate`, `target`, `captions`), CIRR's
(`reference`, `target_hard`, `caption`), and that of the out-of-domain set (`reference`, `target` as
paths). Texts are used as they are written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cir_jax.positives.annotations import field, not_empty, read_json
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
      UserError: a record lacks a field or a text; the file and the record are named.
    """
    file = Path(file) if Path(file).is_file() else Path(root) / file
    triplets, used = [], {}
    for number, record in enumerate(read_json(file)):
        where = f"{file} record {number}"
        reference = field(record, "candidate" if "candidate" in record else "reference", where)
        target = field(record, "target_hard" if "target_hard" in record else "target", where)
        for name in (reference, target):
            if name in paths:
                used[name] = paths[name]
            elif "reference_name" in record:  # out-of-domain: names are paths
                used[name] = str(Path(root) / name)
        if llm_captions:
            texts = (field(record, "llm_caption", where),)
        else:
            texts = field(record, "captions" if "captions" in record else "caption", where)
        texts = not_empty((texts,) if isinstance(texts, str) else texts, where)
        triplets.append(
            Triplet(reference, target, texts, texts[0], SOURCE, f"{file.name}/{number}")
        )
    return TripletSet(SOURCE, tuple(triplets), used)
