# SPDX-License-Identifier: Apache-2.0
"""The two files that the CIRR test server takes, checked before they are written.

recall_submission_{name}.json and recall_subset_submission_{name}.json: an object with "version",
"metric", and per pairid a list of image names, best first: 50 for recall, 3 of the query's subset
for recall_subset; at most 5 MB. The reference is never among them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax import files
from cir_jax.errors import UserError

VERSION = "rc2"
COUNTS = {"recall": 50, "recall_subset": 3}  # names per query
MOST_BYTES = 5 * 10**6


@dataclass(frozen=True)
class Predictions:
    """What a model answers to every query of the test split.

    Attributes:
      recall: pairid -> best names of the gallery, best first.
      recall_subset: pairid -> best names of the subset.
      references: pairid -> name of its reference.
      members: pairid -> names of its subset.
      gallery: names of the split.
    """

    recall: Mapping[str, Sequence[str]]
    recall_subset: Mapping[str, Sequence[str]]
    references: Mapping[str, str]
    members: Mapping[str, Sequence[str]]
    gallery: Sequence[str]


def write(folder: str | Path, name: str, predictions: Predictions) -> list[Path]:
    """Checks both files and writes them to `folder`; nothing is written if one is wrong.

    Raises:
      UserError: see `check`.
    """
    texts = {}
    for metric in COUNTS:
        answers = getattr(predictions, metric)
        content = {"version": VERSION, "metric": metric, **answers}
        path = Path(folder) / f"{metric}_submission_{name}.json"
        check(content, metric, predictions, str(path))
        texts[path] = json.dumps(content, sort_keys=True)
    for path, text in texts.items():
        files.put(path, text.encode())
    return list(texts)


def check(
    content: Mapping[str, Any], metric: str, predictions: Predictions, where: str = "submission"
) -> None:
    """Refuses what the server would refuse, or would score as zero without an error.

    Args:
      content: the object of a file.
      metric: "recall" or "recall_subset".
      predictions: for the queries, references, subsets and gallery it must answer.
      where: names the file in messages.

    Raises:
      UserError: a wrong header, a query missing or unknown, a wrong number of names, a name twice,
        the reference, a name that is no candidate, or more than 5 MB.
    """
    for key, value in (("version", VERSION), ("metric", metric)):
        if content.get(key) != value:
            raise UserError(f"{where}: {key!r} is {content.get(key)!r}, the server needs {value!r}")
    answered, asked = set(content) - {"version", "metric"}, set(predictions.references)
    for what, pairs in (("lacks", asked - answered), ("has unknown", answered - asked)):
        if pairs:
            first = ", ".join(sorted(pairs)[:3])
            raise UserError(
                f"{where} {what} {len(pairs)} of {len(asked)} pairids: {first}; make the files "
                "from the split they are for"
            )
    gallery = set(predictions.gallery)
    for pair in predictions.references:
        candidates = gallery if metric == "recall" else gallery & set(predictions.members[pair])
        candidates = candidates - {predictions.references[pair]}
        _check_names(content[pair], candidates, metric, predictions, f"{where} pair {pair}", pair)
    size = len(json.dumps(content, sort_keys=True).encode())
    if size > MOST_BYTES:
        raise UserError(
            f"{where} has {size:,} bytes, the server takes {MOST_BYTES:,}; shorten the names"
        )


def _check_names(
    names: Sequence[str],
    candidates: set[str],
    metric: str,
    predictions: Predictions,
    where: str,
    pair: str,
) -> None:
    expected = min(COUNTS[metric], len(candidates))
    if len(names) != expected:
        raise UserError(f"{where} has {len(names)} names, expected {expected} for {metric}")
    if predictions.references[pair] in names:
        raise UserError(
            f"{where} names its own reference {predictions.references[pair]!r}; remove it"
        )
    twice = {n for n in names if list(names).count(n) > 1}
    if twice:
        raise UserError(f"{where} names {min(twice)!r} more than once; each name counts once")
    strange = [n for n in names if n not in candidates]
    if strange:
        group = "gallery" if metric == "recall" else "query's subset"
        raise UserError(f"{where} names {strange[0]!r}, which is not in the {group}")
