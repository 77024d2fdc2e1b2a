# SPDX-License-Identifier: Apache-2.0
"""Whether the difference between two evaluations of the same queries is real.

Interval: a paired bootstrap. The queries are drawn anew, with replacement, within each part of the
benchmark (FashionIQ's categories), the same ones for both models; every metric is computed of what
was drawn, and the interval is that of the percentiles of the differences. P value: a paired
permutation test. For each query a coin says whether the answers of the two models change places,
and p is the share of such draws whose difference is at least as large, two-sided; where few queries
changed it stays exact, which a p value of the bootstrap does not. It is at least 1 / (draws + 1).
Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 15; Smucker
et al., A Comparison of Statistical Significance Tests for Information Retrieval Evaluation, CIKM
2007.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.data.annotations import read_json, read_lines
from cir_jax.errors import UserError

RESULTS = "results.json"
_BLOCK_VALUES = 2**22  # draws times queries that are counted at once
_IDENTITY = ("part", "query_id", "reference", "text", "right", "excluded")
_MEANS = ("arithmetic", "harmonic", "geometric")
_Query = tuple[Any, ...]

MOST_DRAWS = 1_000_000  # each keeps one difference per metric


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, query by query.

    Attributes:
      where: the file of its rankings.
      protocol: see `benchmark.Result`.
      means: metrics that are means of others, see `metrics.Means`.
      scores: metric -> per cent.
      queries: Q identities: part, id, reference, text, right answers, what is not ranked.
      values: metric -> [Q] what each query adds; NaN where it does not count.
    """

    where: str
    protocol: Mapping[str, Any]
    means: Mapping[str, tuple[str, tuple[str, ...]]]
    scores: Mapping[str, float]
    queries: Sequence[_Query]
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One metric of two evaluations, in per cent.

    Attributes:
      metric: its name.
      first, second: its values.
      difference: second - first.
      low, high: ends of the confidence interval of the difference.
      p: of there being no difference, see the module.
      better, worse: queries that add more, or less, to the metric in the second evaluation; of a
        mean of metrics, to their sum.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    better: int
    worse: int


def read(place: str | Path) -> Evaluation:
    """An evaluation that was saved with its rankings.

    Args:
      place: its folder, the run folder of which it is the evaluation, or a file in its folder.

    Raises:
      UserError: there is none, it has no rankings, or its files are of two evaluations.
    """
    place = Path(place)
    folder = place.parent if place.is_file() else place
    if not _rankings(folder) and _rankings(folder / "evaluation"):
        folder = folder / "evaluation"
    file, results = _rankings(folder), folder / RESULTS
    if file is None or not results.is_file():
        raise UserError(
            f"{place} holds no rankings to compare; make them with `cir-jax evaluate --save "
            "rankings`, and name the folder of that report"
        )
    content = read_json(results, dict)
    queries: list[_Query] = []
    values: dict[str, np.ndarray] = {}
    try:
        own = []
        for record in _records(file):
            queries.append(tuple(_frozen(record[key]) for key in _IDENTITY))
            own.append(dict(record["values"]))
        for name in dict.fromkeys(name for one in own for name in one):
            values[name] = np.asarray([one.get(name, np.nan) for one in own], np.float64)
        means = {name: (kind, tuple(of)) for name, (kind, of) in content["means"].items()}
        found = Evaluation(
            str(file), content["protocol"], means, content["scores"], queries, values
        )
        _check_kinds(found)
        _check_whole(found)
    except UserError:  # is a ValueError too
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} and {results} are not what `cir-jax evaluate --save rankings` writes "
            f"({error!r}); make them anew"
        ) from None
    return found


def _rankings(folder: Path) -> Path | None:
    there = (folder / f"rankings.{suffix}" for suffix in ("jsonl", "parquet"))
    return next((file for file in there if file.is_file()), None)


def _records(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".jsonl":
        yield from (record for _, record in read_lines(file))
        return
    from pyarrow import ArrowException, parquet  # takes a second to import

    try:
        table = parquet.read_table(file, columns=[*_IDENTITY, "values"])
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); make it anew") from None
    yield from table.to_pylist()


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_kinds(one: Evaluation) -> None:
    """Raises TypeError or ValueError where an evaluation holds something else than its parts."""
    if not isinstance(one.protocol, Mapping) or not one.queries or not one.values:
        raise ValueError("no protocol, no query, or no metric")
    for query in one.queries:
        hash(query)
        if not isinstance(query[0], str):
            raise TypeError(f"the part {query[0]!r}")
    for name, score in one.scores.items():
        if type(score) not in (int, float) or not np.isfinite(float(score)):
            raise ValueError(f"the score {name}={score!r}")
    known = set(one.values)
    for name, (kind, of) in one.means.items():  # a mean of what comes later may be one of itself
        if kind not in _MEANS or not of or name in known or not known.issuperset(of):
            raise ValueError(f"the mean {name}={kind!r} of {of!r}")
        known.add(name)


def _check_whole(one: Evaluation) -> None:
    """Raises UserError where the values of the queries do not make the scores."""
    whole = np.ones((1, len(one.queries)))
    for name, of_queries in _metrics(one, whole).items():
        if name in one.scores and not np.isclose(of_queries[0], one.scores[name], atol=1e-6):
            raise UserError(
                f"{one.where} gives {name} {of_queries[0]:.4f}, and the {RESULTS} beside it "
                f"{one.scores[name]:.4f}: they are of two evaluations. Evaluate again with --save "
                "rankings"
            )


def compare(
    first: Evaluation,
    second: Evaluation,
    *,
    draws: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Row]:
    """Every metric that both have, in their order.

    Args:
      first, second: evaluations of the same queries by one protocol.
      draws: how often the queries are drawn.
      confidence: of the interval, between 0 and 1.
      seed: of the draws.

    Raises:
      UserError: queries, galleries or protocols differ (it is named how), or a number is out of its
        range.
    """
    if draws < 100 or not 0 < confidence < 1 or seed < 0:
        raise UserError(
            f"draws={draws}, confidence={confidence}, seed={seed}: give 100 draws or more, a "
            "confidence between 0 and 1, and a seed of 0 or more"
        )
    if draws > MOST_DRAWS:
        raise UserError(
            f"draws={draws}: what is drawn is kept in memory; give {MOST_DRAWS:,} at most"
        )
    first, second = _shared(first, _matched(first, second))
    rng = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {}
    for counts in _drawn([query[0] for query in first.queries], draws, rng):
        before, after = _metrics(first, counts), _metrics(second, counts)
        for name in before:
            found.setdefault(name, []).append(after[name] - before[name])
    p = _permuted(first, second, draws, rng)
    tail = (1 - confidence) / 2
    rows = []
    for name in (n for n in first.scores if n in found and n in second.scores):
        drawn = np.concatenate(found[name])
        drawn = drawn[np.isfinite(drawn)]  # a rare aspect of CIRCO may be in none of the queries
        low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (np.nan, np.nan)
        better, worse = _changed(first, second, name)
        rows.append(
            Row(
                *(name, first.scores[name], second.scores[name]),
                second.scores[name] - first.scores[name],
                *(float(low), float(high)),
                p[name],
                *(better, worse),
            )
        )
    return rows


def _matched(first: Evaluation, second: Evaluation) -> Evaluation:
    """The second evaluation with its queries in the order of the first."""
    for name, one, other in _differences(first.protocol, second.protocol):
        raise UserError(
            f"{first.where} and {second.where} cannot be compared: {name} is {one!r} and {other!r}."
            " Evaluate both on the same queries and gallery by the same protocol"
        )
    if first.queries == second.queries:
        return second
    rows: dict[_Query, list[int]] = {}
    for row, query in enumerate(second.queries):
        rows.setdefault(query, []).append(row)
    order = [rows[query].pop(0) if rows.get(query) else -1 for query in first.queries]
    lacking = next((q for q, row in zip(first.queries, order, strict=True) if row < 0), None)
    left = next((query for query, more in rows.items() if more), None)
    if lacking is not None or left is not None:
        raise UserError(
            f"{first.where} and {second.where} cannot be compared: "
            f"{_differing(lacking, left, first, second)}. Evaluate both on the same data"
        )
    values = {name: of_queries[np.asarray(order)] for name, of_queries in second.values.items()}
    return replace(second, queries=first.queries, values=values)


def _shared(first: Evaluation, second: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Both with the metrics alone that both have.

    Raises:
      UserError: there are none.
    """
    names = [name for name in first.values if name in second.values]
    if not names:
        raise UserError(
            f"{first.where} and {second.where} have no metric in common: {', '.join(first.values)} "
            f"and {', '.join(second.values)}; evaluate both by the same protocol"
        )
    known, means = set(names), {}
    for name, mean in first.means.items():
        if second.means.get(name) == mean and known.issuperset(mean[1]):
            means[name] = mean
            known.add(name)
    return (
        replace(first, values={n: first.values[n] for n in names}, means=means),
        replace(second, values={n: second.values[n] for n in names}, means=means),
    )


def _differing(
    lacking: _Query | None, left: _Query | None, first: Evaluation, second: Evaluation
) -> str:
    """How queries differ: one that the second evaluation lacks, or one that it has alone."""
    if lacking is None:
        assert left is not None
        more = "more often in the second" if left in first.queries else "in the second alone"
        return f"query {left[1]!r} is {more}"
    other = next((query for query in second.queries if query[:2] == lacking[:2]), None)
    if other is None:
        return f"query {lacking[1]!r} is in the first alone"
    if lacking in second.queries:  # as often as it is there, it was given to one of the first
        return f"query {lacking[1]!r} is more often in the first"
    key, a, b = next(x for x in zip(_IDENTITY, lacking, other, strict=True) if x[1] != x[2])
    return f"{key} of query {lacking[1]!r} is {a!r} and {b!r}"


def _differences(
    one: Mapping[str, Any], other: Mapping[str, Any], before: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(key, its two values) wherever two protocols differ."""
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{before}{key}.")
        elif a != b:
            yield f"{before}{key}", a, b


def _drawn(parts: Sequence[str], draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """[draws, Q] in blocks: how often each query was drawn; of each part as often as it has any."""
    names = np.asarray(parts)
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(parts)]
    block = max(1, min(draws, _BLOCK_VALUES // max(1, len(names))))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        counts = np.zeros((size, len(names)))
        for rows in members:
            chosen = rng.integers(0, len(rows), (size, len(rows)))
            chosen += np.arange(size)[:, None] * len(rows)
            drawn = np.bincount(chosen.ravel(), minlength=size * len(rows))
            counts[:, rows] = drawn.reshape(size, len(rows))
        yield counts


def _permuted(
    first: Evaluation, second: Evaluation, draws: int, rng: np.random.Generator
) -> dict[str, float]:
    """metric -> p value of the difference, see the module."""
    names = list(first.values)
    one, other = (np.stack([e.values[n] for n in names], axis=1) for e in (first, second))
    count = np.isfinite(one).sum(axis=0)
    one, other = np.nan_to_num(one), np.nan_to_num(other)

    def differences(changed: np.ndarray) -> dict[str, np.ndarray]:
        """Of metrics, where `changed` [R, M] has gone over from the first sum to the second."""
        sums = one.sum(axis=0) - changed, other.sum(axis=0) + changed
        a, b = (_with_means(first, dict(zip(names, (x / count).T, strict=True))) for x in sums)
        return {name: b[name] - a[name] for name in a}

    real = differences(np.zeros((1, len(names))))
    as_large = dict.fromkeys(real, 0)
    block = max(1, min(draws, _BLOCK_VALUES // max(1, len(one))))
    for start in range(0, draws, block):
        coins = rng.integers(0, 2, (min(block, draws - start), len(one)), np.int8)
        for name, drawn in differences(coins.astype(np.float64) @ (one - other)).items():
            # Equal sums differ in their last digits.
            as_large[name] += int(np.sum(np.abs(drawn) >= np.abs(real[name]) - 1e-9))
    return {name: (n + 1) / (draws + 1) for name, n in as_large.items()}


def _metrics(one: Evaluation, counts: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: [R]} where each query counts so often, [R, Q]."""
    names = list(one.values)
    values = np.stack([one.values[name] for name in names], axis=1)
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # an aspect that no drawn query has is 0 / 0
        means = (counts @ np.where(known, values, 0.0)) / (counts @ known.astype(np.float64))
    return _with_means(one, dict(zip(names, means.T, strict=True)))


def _with_means(one: Evaluation, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{metric: [R]} with the metrics that are means of others."""
    for name, (kind, of) in one.means.items():
        found[name] = _mean(kind, np.stack([found[part] for part in of]))
    return found


def _mean(kind: str, x: np.ndarray) -> np.ndarray:
    """[M, R] -> [R], as the functions of `metrics` do for one value each."""
    if kind == "arithmetic":
        return x.mean(axis=0)
    some = (x > 0).all(axis=0)
    x = np.where(some, x, 1.0)  # where one of them is 0, so is the mean
    found = 1 / (1 / x).mean(axis=0) if kind == "harmonic" else np.exp(np.log(x).mean(axis=0))
    return np.where(some, found, 0.0)


def _changed(first: Evaluation, second: Evaluation, metric: str) -> tuple[int, int]:
    """How many queries add more to a metric in the second evaluation, and how many less."""
    names = [metric]
    while any(name in first.means for name in names):
        names = [n for name in names for n in first.means.get(name, ("", (name,)))[1]]
    both = [np.nansum([one.values[n] for n in names], axis=0) for one in (first, second)]
    return int(np.sum(both[1] > both[0])), int(np.sum(both[1] < both[0]))


def to_json(
    first: Evaluation, second: Evaluation, rows: Sequence[Row], options: Mapping[str, Any]
) -> bytes:
    """A comparison as JSON."""
    content = {
        "first": first.where,
        "second": second.where,
        "queries": len(first.queries),
        "protocol": first.protocol,
        **options,
        "metrics": {
            row.metric: {k: v for k, v in vars(row).items() if k != "metric"} for row in rows
        },
    }
    return json.dumps(content, indent=2).encode()
