# SPDX-License-Identifier: Apache-2.0
"""Examines a data set before training: are the files there, complete, and can they be opened?

The annotation files are examined by the reader of the data set (`examine`, see
`cir_jax.datasets.reader`); the images are opened here, in the same way for every data set.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypedDict

from cir_jax.data import places
from cir_jax.data.inspection import UNUSUAL, Findings, inspect_images
from cir_jax.data.pixels import AUTO, NATURAL, RELEASED, Loading
from cir_jax.data.refusals import in_words, summary
from cir_jax.data.screening import scan
from cir_jax.data.unusable import BOX, DECODE, REASONS
from cir_jax.datasets import reader
from cir_jax.datasets.examination import Count, Examination

OUTSIDE = "named by a triplet but not by its split"
_CONTEXTS = {"clip": 77}  # as `cir_jax.data.tokens` has it, which is slow to import


class Report(TypedDict):
    """All that was found, as JSON.

    Keys:
      dataset, root: as they were given.
      counts: what was counted, beside the official numbers.
      images: kind of finding -> names of images, or of queries.
      unusable: name of an image -> its file, and why it cannot be used.
      size: counts below the official ones, as those of a part of the data set are.
      notes: what is worth knowing.
      problems: what would change results.
    """

    dataset: str
    root: str
    counts: list[Count]
    images: dict[str, list[str]]
    unusable: dict[str, dict[str, str]]
    notes: list[str]
    size: list[str]
    problems: list[str]


def examine(
    dataset: str,
    root: str | Path,
    categories: Sequence[str] = (),
    *,
    decode: bool = True,
    threads: int = 16,
    tokenizer: str = "clip",
    context: int = 0,
    allow_outside: bool = False,
    loading: str = AUTO,
    again: bool = False,
) -> Report:
    """Examines a data set.

    Args:
      dataset: name of its reader, or the path of a .py file that defines `examine`.
      root: its folder.
      categories: categories (of FashionIQ) or tasks (of GeneCIS); () for all.
      decode: open every image, which also finds pixel-identical ones.
      threads: images opened at a time.
      tokenizer: of the model, see `cir_jax.data.tokens`.
      context: its most tokens; 0 for its own.
      allow_outside: names may lead out of the folder, see `data.allow_outside`.
      loading: as `data.loading`; "auto" is what a run on these images takes by itself.
      again: open also images that were looked at before and have not changed since.

    Raises:
      UserError: there are no annotations at all, a file of them is malformed, or the reader
        defines no `examine`.
    """
    with places.anywhere() if allow_outside else nullcontext():
        found = reader.examine(dataset, root, categories)
    long = _over_context(found, tokenizer, context)
    if loading == AUTO:
        loading = (RELEASED if reader.is_published(dataset) else NATURAL).name
    opened = inspect_images(
        found.images, decode, threads, Loading(loading), root=str(root), again=again
    )
    if decode and found.parts:
        outside = scan(found.parts, DECODE, root=str(root), loading=Loading(loading))
        opened.problems |= {n: one for n, one in outside.items() if one.reason == BOX}
    return {
        "dataset": dataset,
        "root": str(root),
        "counts": found.counts,
        "images": {
            OUTSIDE: found.outside,
            **_by_kind(opened),
            "reference = target": [*found.same[0], *found.same[1]],
            "texts over the context": long,
        },
        "unusable": {
            name: {"file": one.file, "reason": one.reason, "why": one.why}
            for name, one in opened.problems.items()
        },
        "notes": [*found.notes, *_kept(opened)],
        "size": found.size,
        "problems": [*_in_records(found, tokenizer, long), *_problems(opened)],
    }


def _in_records(found: Examination, tokenizer: str, long: Sequence[str]) -> list[str]:
    """What is wrong with the annotations, the images aside; `long`: texts over the context."""
    problems = list(found.problems)
    if found.outside:
        problems.append(f"{len(found.outside):,} names in triplets are not in their split")
    if long:
        problems.append(
            f"{len(long):,} texts are over the context of the tokenizer {tokenizer}; shorten them, "
            "or set data.on_long=truncate"
        )
    if found.same[0]:
        problems.append(
            f"{len(found.same[0]):,} queries have one image as reference and target; where the "
            "reference is removed from the ranking, an evaluation stops at them"
        )
    return problems


def _by_kind(opened: Findings) -> dict[str, list[str]]:
    return {
        **{reason: opened.of(reason) for reason in REASONS},
        "pixel-identical groups": [" = ".join(names) for names in opened.duplicates],
        **{what: opened.unusual.get(what, []) for what in UNUSUAL},
    }


def lines(report: Report) -> list[dict[str, Any]]:
    """The findings one by one: "finding", "name", and whether a run "stops" at it by default.

    An image that cannot be used has "file", "reason" and "why" beside.
    """
    stopping = {OUTSIDE, *REASONS, "texts over the context"}
    found: list[dict[str, Any]] = [
        {"finding": kind, "name": name, "stops": kind in stopping}
        | report["unusable"].get(name if kind in stopping else "", {})
        for kind, names in report["images"].items()
        for name in names
    ]
    for kind, texts in (
        ("problem", report["problems"]), ("size", report["size"]), ("note", report["notes"])
    ):  # fmt: skip
        found += [{"finding": kind, "name": text, "stops": kind == "problem"} for text in texts]
    return found


def _over_context(found: Examination, name: str, context: int) -> list[str]:
    """ "query id (tokens)" of texts that a run would stop at."""
    # No tokenizer makes more tokens than bytes, so that most texts need none.
    fits = (context or _CONTEXTS.get(name, 0)) - 2
    texts = [
        (where, text) for where, text in found.texts if len(text.encode(errors="replace")) > fits
    ]
    if name in _CONTEXTS and not texts:
        return []
    from cir_jax.data import tokens  # slow to import

    tokenizer = tokens.load(name, context)
    if tokenizer.cuts:
        return []
    lengths = map(len, tokenizer.encode([text for _, text in texts]))
    return [
        f"{where} ({length} tokens, the limit is {tokenizer.context})"
        for (where, _), length in zip(texts, lengths, strict=True)
        if length > tokenizer.context
    ]


def _kept(opened: Findings) -> list[str]:
    if not opened.kept:
        return []
    return [
        f"{opened.kept:,} of {opened.images:,} images were looked at before and have not changed "
        "since; --look-again opens them all"
    ]


def _problems(opened: Findings) -> list[str]:
    bad = {name: one for name, one in opened.problems.items() if one.reason != BOX}
    boxes = len(opened.problems) - len(bad)
    problems = []
    if bad:
        reasons = in_words(summary(bad))
        problems.append(
            f"{len(bad):,} of {opened.images:,} images cannot be used ({reasons}); fetch them "
            "again, or set data.on_missing=drop. Deleting "
            "them from the split files instead would change the gallery and every recall"
        )
    if boxes:
        problems.append(
            f"{boxes:,} boxes of the annotations hold no pixel of their image; correct them, fetch "
            "the images again, or set data.on_missing=drop"
        )
    return problems
