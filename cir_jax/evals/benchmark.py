# SPDX-License-Identifier: Apache-2.0
"""What benchmarks share: a ranking task (queries and their gallery), its checks, and the result.

A benchmark reads its data when it is built, so what is missing is reported before anything trains.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cir_jax import progress
from cir_jax.data.pixels import Crop
from cir_jax.data.triplets import Triplet
from cir_jax.errors import UserError, nearest
from cir_jax.evals.example import SHOWN, Example, Hit
from cir_jax.retrieval.retriever import Retriever


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Attributes:
      scores: metric -> per cent.
      selection: the metric that selects the best checkpoint.
      protocol: everything that makes two numbers comparable; JSON.
      examples: queries spread evenly over the benchmark.
    """

    scores: dict[str, float]
    selection: str
    protocol: dict[str, Any]
    examples: list[Example] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The selection score."""
        return self.scores[self.selection]


class Benchmark(Protocol):
    """What `build(config)` of a plug-in returns. Its data is read and checked when it is built."""

    def run(self, retriever: Retriever) -> Result:
        """Ranks every query and scores the rankings."""
        ...


@dataclass(frozen=True)
class Task:
    """Queries that are ranked against one gallery.

    Attributes:
      title: names it in messages, e.g. "FashionIQ dress".
      triplets: Q queries.
      references: Q files.
      names, paths: G gallery images.
      target, reference: [Q] gallery rows, -1 for one that is unknown or not in the gallery.
      missing: gallery images left out because their file is missing.
      dropped: queries left out because their reference, target or another answer is missing.
    """

    title: str
    triplets: tuple[Triplet, ...]
    references: tuple[Any, ...]
    names: tuple[str, ...]
    paths: tuple[Any, ...]
    target: np.ndarray
    reference: np.ndarray
    missing: int = 0
    dropped: int = 0

    def protocol(self) -> dict[str, Any]:
        """Sizes, and a hash of the gallery's names that does not depend on their order."""
        digest = hashlib.sha256("\n".join(sorted(self.names)).encode()).hexdigest()[:12]
        counts = {"gallery": len(self.names), "hash": digest, "queries": len(self.triplets)}
        left_out = {"missing_images": self.missing, "dropped_queries": self.dropped}
        return counts | (left_out if self.missing or self.dropped else {})


def root(config: Any) -> str:
    """Where the data of the benchmark lies: `eval.root`, or `data.root` if that is empty."""
    return config.eval.root or config.data.root


def task(
    title: str,
    triplets: Sequence[Triplet],
    files: Mapping[str, Any],
    gallery: tuple[Sequence[str], Mapping[str, Any]],
    *,
    on_missing: str = "error",
    removed: bool = True,
) -> Task:
    """Numbers queries and gallery, and checks them.

    Args:
      title: names the task in messages.
      triplets: the queries.
      files: image name -> file, for references.
      gallery: names in order, and the file of each.
      on_missing: "error", or "drop": leave missing images and queries that need them out, and say
        so. The numbers are then not comparable with anybody's.
      removed: whether references will be removed from the ranking.

    Raises:
      UserError: an image is missing, a target is not in the gallery or is its own reference, no
        query is left, or `on_missing` is unknown.
    """
    if on_missing not in ("error", "drop"):
        hint = nearest(on_missing, ("error", "drop"))
        raise UserError(f"eval.on_missing={on_missing!r} is unknown; use error or drop.{hint}")
    names = list(dict.fromkeys(gallery[0]))
    files = {**files, **gallery[1]}
    wanted = dict.fromkeys([*names, *(t.reference for t in triplets)])
    lost = {n for n in wanted if not _exists(files.get(n, ""))}
    if lost and on_missing == "error":
        first = next(n for n in wanted if n in lost)
        raise UserError(
            f"{title}: {len(lost)} of {len(wanted)} images are missing, {files.get(first, first)} "
            "the first; fetch them (`cir-jax doctor` lists them), or set eval.on_missing=drop and "
            "get numbers that compare with nobody's"
        )
    kept = [t for t in triplets if not lost & {t.reference, t.target, *t.truths}]
    names = [n for n in names if n not in lost]
    row_of = {n: row for row, n in enumerate(names)}
    _check(title, kept, row_of, removed)
    missing = len({*gallery[0]} & lost)
    if lost:
        progress.say(
            f"warning: {title}: {missing} gallery images are missing and "
            f"{len(triplets) - len(kept)} queries are left out; the numbers are not comparable"
        )
    return Task(
        title=title,
        triplets=tuple(kept),
        references=tuple(files[t.reference] for t in kept),
        names=tuple(names),
        paths=tuple(files[n] for n in names),
        target=np.asarray([row_of.get(t.target, -1) for t in kept], np.int32),
        reference=np.asarray([row_of.get(t.reference, -1) for t in kept], np.int32),
        missing=missing,
        dropped=len(triplets) - len(kept),
    )


def encode(retriever: Retriever, one: Task) -> tuple[np.ndarray, np.ndarray]:
    """(queries [Q, D], gallery [G, K, D]) of a task."""
    gallery = retriever.encode_gallery(one.paths)
    query = retriever.encode_queries(
        one.references,
        [t.eval_text for t in one.triplets],
        lambda i: f"{one.title} query {one.triplets[i].query_id}",
    )
    return query, gallery


def examples(
    retriever: Retriever,
    one: Task,
    query: np.ndarray,
    gallery: np.ndarray,
    ranks: np.ndarray,
    removed: np.ndarray | None,
    count: int,
) -> list[Example]:
    """`count` queries, evenly spread, with their best candidates.

    Args:
      retriever, one, query, gallery: as above.
      ranks: [Q], 0 is best.
      removed: [Q] row that is no candidate; None for none.
      count: how many; all if there are fewer.
    """
    chosen = spread(len(one.triplets), count)
    k = min(SHOWN, len(one.names) - (removed is not None))
    if not len(chosen) or k < 1:
        return []
    gone = None if removed is None else removed[chosen]
    rows, scores = retriever.top(query[chosen], gallery, k, gone)
    return listed(one, chosen, rows, scores, ranks)


def spread(total: int, count: int) -> np.ndarray:
    """At most `count` numbers below `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))


def listed(
    one: Task,
    chosen: np.ndarray,
    rows: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    ranks: np.ndarray,
) -> list[Example]:
    """The queries `chosen` as examples.

    Args:
      one: the task.
      chosen: [C] numbers of queries.
      rows, scores: C times the best gallery rows of a query and their scores, best first.
      ranks: [Q] ranks of all targets.
    """
    found = []
    for i, best, values in zip(chosen, rows, scores, strict=True):
        triplet = one.triplets[i]
        hits = [
            Hit(one.names[r], one.paths[r], float(s)) for r, s in zip(best, values, strict=True)
        ]
        found.append(
            Example(
                query_id=triplet.query_id,
                text=triplet.eval_text,
                reference=one.references[i],
                target=one.paths[one.target[i]],
                target_name=triplet.target,
                rank=int(ranks[i]) + 1,
                results=tuple(hits),
                also=triplet.truths,
            )
        )
    return found


def _exists(file: Any) -> bool:
    """Whether a file is there; records of a data set that are no paths always are."""
    if isinstance(file, Crop):
        return _exists(file.source)
    return Path(file).is_file() if isinstance(file, str | Path) else True


def _check(
    title: str, triplets: Sequence[Triplet], row_of: Mapping[str, int], removed: bool
) -> None:
    if not triplets:
        raise UserError(
            f"{title}: no query is left; every query lacks an image. Fetch the images, or choose "
            "another split"
        )
    for t in triplets:
        if t.target and t.target not in row_of:
            raise UserError(
                f"{title} query {t.query_id}: target {t.target!r} is not among the {len(row_of)} "
                f"gallery images.{nearest(t.target, row_of)} Correct the annotations or the "
                "image list"
            )
        if removed and t.target == t.reference:
            raise UserError(
                f"{title} query {t.query_id}: target and reference are both {t.target!r}, and the "
                "reference is removed from the ranking; correct the record"
            )
