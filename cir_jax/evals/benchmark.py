# SPDX-License-Identifier: Apache-2.0
"""The contract of a benchmark, and what benchmarks share: ranking tasks and their checks.

A benchmark is a module of `cir_jax.evals.benchmarks`, or a .py file of yours, named by
`eval.benchmark`. It defines

    build(config)   the benchmark of a config, an object with `run(retriever)`, see `Benchmark`
    TEST_SPLIT      only if a server scores the answers to that split: `cir-jax submit` builds the
                    benchmark of this split and calls its `submit`, see `Submittable`
    NO_SERVER       instead of it, why there is none, as a clause

The data is read by `build`, so what is missing is reported before anything trains. What becomes of
images that cannot be used: `screens.of(config)`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

from cir_jax import plugins, progress
from cir_jax.data import kept_looks, places, refusals
from cir_jax.data.pixels import ImageFile
from cir_jax.data.screening import Screen
from cir_jax.data.triplets import Triplet
from cir_jax.data.unusable import Problem
from cir_jax.errors import ServerError, UserError, nearest
from cir_jax.evals import screens
from cir_jax.evals.example import SHOWN, Example, Hit
from cir_jax.evals.metrics import Means
from cir_jax.retrieval.retriever import Retriever

PACKAGE = "cir_jax.evals.benchmarks"
LEFT_OUT = "left_out"  # of a protocol: image -> why it cannot be used


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Attributes:
      scores: metric -> per cent.
      selection: the metric that selects the best checkpoint.
      protocol: every choice that two runs must share for their numbers to be comparable, as JSON;
        "benchmark" is its title. `Task.protocol` gives the sizes.
      examples: queries spread evenly over the benchmark.
      best, worst: queries whose target comes furthest ahead, and furthest behind.
      means: metrics that are means of others, see `cir_jax.evals.metrics`. All others are means
        over the queries of what `Answers.values` holds.
    """

    scores: dict[str, float]
    selection: str
    protocol: dict[str, Any]
    examples: list[Example] = field(default_factory=list)
    best: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)
    means: Means = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The score that selects the best checkpoint."""
        return self.scores[self.selection]


class Benchmark(Protocol):
    """What `build(config)` of a benchmark's module returns.

    One whose `run(retriever, kept=None)` appends to the list `kept` what each of its tasks
    answered, as `cir_jax.evals.answers.Answers`, can be saved query by query.
    """

    def run(self, retriever: Retriever) -> Result:
        """Ranks every query and scores the ranking. Every process calls it, with one result."""


@runtime_checkable
class Submittable(Protocol):
    """A benchmark with a split whose answers only a test server can score."""

    def submit(self, retriever: Retriever, folder: str | Path, name: str) -> list[Path]:
        """Answers every query, checks the answers as the server would, and writes its files.

        Args:
          retriever: the model.
          folder: where the files go.
          name: part of the files' names.

        Returns:
          The files; every process calls this, and the first one writes them.

        Raises:
          UserError: the server would refuse the answers; nothing is written then.
        """


@runtime_checkable
class _Module(Protocol):
    def build(self, config: ConfigDict) -> Benchmark: ...


def build(config: ConfigDict) -> Benchmark | None:
    """The benchmark that `eval.benchmark` names, or None for "none".

    Raises:
      UserError: no such benchmark (what exists is listed), or what is wrong with its data.
    """
    if config.eval.benchmark == "none":
        return None
    with places.within(config):
        return _module(config.eval.benchmark).build(config)


def submitted_split(name: str) -> str:
    """The split of benchmark `name` whose answers a test server scores; "" if there is none.

    Raises:
      UserError: no such benchmark; what exists is listed.
    """
    return "" if name == "none" else getattr(_module(name), "TEST_SPLIT", "")


def without_server(name: str) -> str:
    """Why no server scores benchmark `name`, as it says in NO_SERVER; "" if it does not."""
    return "" if name == "none" else getattr(_module(name), "NO_SERVER", "")


def submittable() -> list[str]:
    """Names of the benchmarks that have a test server."""
    return [name for name in plugins.available(PACKAGE) if submitted_split(name)]


def _module(name: str) -> _Module:
    module = plugins.load(PACKAGE, name, marker="build")
    assert isinstance(module, _Module)  # `build` is the marker
    return module


@dataclass(frozen=True)
class Task:
    """Queries that are ranked against one gallery.

    Attributes:
      title: names it in messages, e.g. "FashionIQ dress".
      triplets: Q queries.
      references: the Q reference images.
      names, paths: G gallery images.
      target, reference: [Q] gallery rows, -1 for one that is unknown or not in the gallery.
      row_of: name -> gallery row, also of other names of its file.
      missing: gallery images left out because they cannot be used.
      dropped: queries left out because that is so of their reference, target or another answer.
      unusable: every image that is left out, and why.
      screen: what was asked for images that cannot be used.
    """

    title: str
    triplets: tuple[Triplet, ...]
    references: tuple[ImageFile, ...]
    names: tuple[str, ...]
    paths: tuple[ImageFile, ...]
    target: np.ndarray
    reference: np.ndarray
    row_of: Mapping[str, int]
    missing: int = 0
    dropped: int = 0
    unusable: Mapping[str, Problem] = field(default_factory=dict)
    screen: Screen = field(default_factory=Screen)

    def protocol(self) -> dict[str, Any]:
        """Sizes, and a hash of the gallery's names that does not depend on their order.

        Where images are left out, how many, and which, with the reason of each.
        """
        digest = hashlib.sha256("\n".join(sorted(self.names)).encode()).hexdigest()[:12]
        counts = {"gallery": len(self.names), "hash": digest, "queries": len(self.triplets)}
        if not self.unusable:
            return counts
        return counts | {
            "missing_images": self.missing,
            "dropped_queries": self.dropped,
            "unusable": refusals.summary(self.unusable),
            LEFT_OUT: {name: one.reason for name, one in self.unusable.items()},
        }


def root(config: ConfigDict) -> str:
    """Where the data of the benchmark lies: `eval.root`, or `data.root` if that is empty."""
    return config.eval.root or config.data.root


def task(
    title: str,
    triplets: Sequence[Triplet],
    files: Mapping[str, ImageFile],
    gallery: tuple[Sequence[str], Mapping[str, ImageFile]],
    *,
    on_missing: str | Screen = "error",
    removed: bool = True,
    by_name: bool = False,
) -> Task:
    """Checks queries and gallery, and gives every image its row.

    Args:
      title: names the task in messages.
      triplets: the queries.
      files: image name -> file, for references.
      gallery: names in order, and the file of each.
      on_missing: what becomes of images that cannot be used, see `screens.of`; or "error", or
        "drop": leave them and queries that need them out, with a warning. The numbers are then not
        comparable with published ones.
      removed: whether references will be removed from the ranking.
      by_name: see `TripletSet.by_name`; else a file is one candidate, by the first of its names.

    Raises:
      UserError: images cannot be used, a target is not in the gallery or is its own reference, no
        query is left, or `on_missing` is unknown.
    """
    chosen = screens.given(on_missing)
    names = list(dict.fromkeys(gallery[0]))
    files = {**files, **gallery[1]}
    places.check_all(files, title)
    wanted = dict.fromkeys([*names, *(t.reference for t in triplets)])
    images = {n: files.get(n, n) for n in wanted}
    chosen = chosen if chosen.root else replace(chosen, root=kept_looks.home_of(images.values()))
    lost = chosen.unusable(images, title)
    kept = [t for t in triplets if lost.keys().isdisjoint((t.reference, t.target, *t.truths))]
    names, row_of = _rows([n for n in names if n not in lost], files, by_name)
    _check(title, kept, row_of, removed)
    missing = len({*gallery[0]} & lost.keys())
    if lost:
        progress.say(
            f"warning: {title}: {missing} gallery images are left out, and "
            f"{len(triplets) - len(kept)} queries; {len(lost)} images cannot be used "
            f"({refusals.in_words(refusals.summary(lost))}). The numbers are not comparable with "
            "published ones"
        )
    return Task(
        title=title,
        triplets=tuple(kept),
        references=tuple(files[t.reference] for t in kept),
        names=tuple(names),
        paths=tuple(files[n] for n in names),
        target=np.asarray([row_of.get(t.target, -1) for t in kept], np.int32),
        reference=np.asarray([row_of.get(t.reference, -1) for t in kept], np.int32),
        row_of=row_of,
        missing=missing,
        dropped=len(triplets) - len(kept),
        unusable=lost,
        screen=chosen,
    )


def encode(retriever: Retriever, one: Task) -> tuple[np.ndarray, np.ndarray]:
    """(queries [Q, D], gallery [G, K, D]) of a task."""
    try:
        gallery = retriever.encode_gallery(one.paths)
        query = retriever.encode_queries(
            one.references,
            [t.eval_text for t in one.triplets],
            lambda i: f"{one.title} query {one.triplets[i].query_id}",
        )
    except ServerError:
        raise
    except UserError as error:
        references = zip((t.reference for t in one.triplets), one.references, strict=True)
        images = dict([*zip(one.names, one.paths, strict=True), *references])
        raise one.screen.explained(images, error, one.title) from None
    return query, gallery


class Shown(NamedTuple):
    """Queries of a report: spread evenly, and those of the lowest and of the highest ranks."""

    examples: list[Example]
    best: list[Example]
    worst: list[Example]


def shown(
    retriever: Retriever,
    one: Task,
    query: np.ndarray,
    gallery: np.ndarray,
    ranks: np.ndarray,
    removed: np.ndarray | None,
    count: int,
) -> Shown:
    """Queries to show with their best candidates, ranked in one pass.

    Args:
      retriever: the model.
      one: the task.
      query: [Q, D] its queries.
      gallery: [G, K, D] its gallery.
      ranks: [Q], 0 is best.
      removed: [Q] row that is no candidate; None for none.
      count: how many are spread; all if there are fewer. See `ends` for the others.
    """
    parts = (spread(len(one.triplets), count), *ends(ranks, count))
    chosen = np.concatenate(parts)
    k = min(SHOWN, len(one.names) - (removed is not None))
    if not len(chosen) or k < 1:
        return Shown([], [], [])
    gone = None if removed is None else removed[chosen]
    rows, scores = retriever.top(query[chosen], gallery, k, gone)
    found = iter(listed(one, chosen, rows, scores, ranks))
    return Shown(*(list(islice(found, len(part))) for part in parts))


def ends(ranks: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(queries of the lowest ranks, of the highest), a third of `count` each, the ends first."""
    order = np.argsort(ranks, kind="stable")
    few = min(-(-count // 3), len(order))
    return order[:few], order[len(order) - few :][::-1]


def spread(total: int, count: int) -> np.ndarray:
    """At most `count` numbers below `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))


def listed(
    one: Task,
    chosen: np.ndarray,
    rows: Sequence[np.ndarray] | np.ndarray,
    scores: Sequence[np.ndarray] | np.ndarray,
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


def _rows(
    names: Sequence[str], files: Mapping[str, ImageFile], by_name: bool
) -> tuple[list[str], dict[str, int]]:
    """(the first name of every file of a gallery, name -> row of all names of these files)."""
    identity = places.Identity(follow=not by_name)
    row_of: dict[str, int] = {}
    kept: dict[Any, int] = {}
    first: list[str] = []
    for name in names:
        key = identity.of(files.get(name, name))
        row_of[name] = kept.setdefault(key, len(kept))
        if len(kept) > len(first):
            first.append(name)
    for name, file in files.items():
        if name not in row_of and (key := identity.of(file)) in kept:
            row_of[name] = kept[key]
    return first, row_of


def _both(t: Triplet) -> str:
    same = t.target == t.reference
    return repr(t.target) if same else f"one file, {t.target!r} and {t.reference!r}"


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
        lost = next((n for n in t.truths if n not in row_of), None)
        if lost is not None:
            raise UserError(
                f"{title} query {t.query_id}: its right answer {lost!r} is not among the "
                f"{len(row_of)} gallery images.{nearest(lost, row_of)} Correct the annotations or "
                "the image list"
            )
        right, own = t.truths or (t.target,), row_of.get(t.reference)
        clash = next((n for n in right if n and row_of[n] == own), None) if removed else None
        if clash is not None:
            raise UserError(
                f"{title} query {t.query_id}: target and reference are both "
                f"{_both(replace(t, target=clash))}, and the "
                "reference is removed from the ranking; correct the record"
            )
