# SPDX-License-Identifier: Apache-2.0
"""Two evaluations of the same queries: the paired bootstrap, and what cannot be compared."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cir_jax.errors import UserError
from cir_jax.evals import comparison, metrics, saving
from cir_jax.evals.benchmarks import fashioniq
from cir_jax.evals.comparison import Evaluation
from cir_jax.evals.reports import run_report
from cir_jax.main import main


def evaluation(ranks, parts=None, where="a", scores=None, means=None):
    """Of queries whose targets have these ranks; recall@10, or that of each part and their mean."""
    ranks = np.asarray(ranks)
    parts = parts or [""] * len(ranks)
    queries = [(part, str(i), "r.png", "a text", ("t.png",), ()) for i, part in enumerate(parts)]
    values, means = {}, means or {}
    for part in dict.fromkeys(parts):
        own = np.asarray([p == part for p in parts])
        name = f"{part}_recall_at10".lstrip("_")
        values[name] = np.where(own, 100.0 * (ranks < 10), np.nan)
    scores = {name: float(np.nanmean(v)) for name, v in values.items()}
    if len(scores) > 1:
        means = {"average_recall": ("arithmetic", tuple(scores))}
        scores["average_recall"] = float(np.mean(list(scores.values())))
    protocol = {"benchmark": "made up", "gallery": 100, "hash": "abc", "galleries": {"x": {"n": 3}}}
    return Evaluation(where, protocol, means, scores, queries, values)


def two(seed=0, count=300, shift=6):
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 40, count)
    return before, np.maximum(0, before - rng.integers(-shift, 2 * shift, count))


def test_against_scipy():
    """The interval of scipy's bootstrap, the p value of its permutation test and of McNemar's."""
    before, after = two()
    (row,) = comparison.compare(evaluation(before), evaluation(after, where="b"), draws=20_000)
    a, b = 100.0 * (before < 10), 100.0 * (after < 10)
    assert row.difference == pytest.approx(b.mean() - a.mean())
    assert (row.better, row.worse) == (int((b > a).sum()), int((b < a).sum()))
    assert row.better > row.worse > 0
    theirs = stats.bootstrap(
        (b - a,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # Ends of both lie on a grid of 1 / 3 per cent; their own noise is below one step.
    assert row.low == pytest.approx(theirs.low, abs=0.4)
    assert row.high == pytest.approx(theirs.high, abs=0.4)
    few = slice(0, 60)  # a p value that is neither 0 nor 1
    (row,) = comparison.compare(evaluation(before[few]), evaluation(after[few]), draws=20_000)
    permuted = stats.permutation_test(
        (b[few] - a[few],), np.mean, permutation_type="samples", n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).pvalue  # fmt: skip
    assert row.p == pytest.approx(permuted, abs=0.01)  # 3 deviations of 20,000 draws
    exact = stats.binomtest(row.better, row.better + row.worse).pvalue  # McNemar's test
    assert row.p == pytest.approx(exact, abs=0.01) and 0.1 < exact < 0.5


def test_the_same_draws_for_both():
    """A model against itself differs by nothing in any draw, however few queries there are."""
    before, _ = two(count=25)
    (row,) = comparison.compare(evaluation(before), evaluation(before))
    assert (row.difference, row.low, row.high, row.p) == (0, 0, 0, 1)
    assert (row.better, row.worse) == (0, 0)


def test_a_seed_gives_one_answer_and_blocks_change_nothing(monkeypatch):
    before, after = two(count=50)
    one, other = evaluation(before), evaluation(after)
    rows = comparison.compare(one, other, draws=500, seed=3)
    assert rows == comparison.compare(one, other, draws=500, seed=3)
    assert rows != comparison.compare(one, other, draws=500, seed=4)
    monkeypatch.setattr(comparison, "_BLOCK_VALUES", 50 * 130)
    assert rows == comparison.compare(one, other, draws=500, seed=3)


def test_parts_are_drawn_apart():
    """Two parts of 90 and 10 queries weigh the same in their mean, and its variance is theirs."""
    before, after = two(count=100, shift=3)
    parts = ["dress"] * 90 + ["shirt"] * 10
    one, other = evaluation(before, parts), evaluation(after, parts)
    rows = {row.metric: row for row in comparison.compare(one, other, draws=20_000)}
    assert list(rows) == ["dress_recall_at10", "shirt_recall_at10", "average_recall"]
    change = 100.0 * (after < 10) - 100.0 * (before < 10)
    variance = (change[:90].var() / 90 + change[90:].var() / 10) / 4
    mean = rows["average_recall"]
    assert (mean.high - mean.low) / 2 == pytest.approx(1.96 * np.sqrt(variance), rel=0.1)
    assert mean.better == rows["dress_recall_at10"].better + rows["shirt_recall_at10"].better
    for counts in comparison._drawn(parts, 100, np.random.default_rng(0)):
        assert (counts[:, :90].sum(axis=1) == 90).all() and (counts[:, 90:].sum(axis=1) == 10).all()


@pytest.mark.parametrize("kind", ["arithmetic", "harmonic", "geometric"])
def test_means_of_metrics(kind):
    x = np.asarray([[30.0, 50.0, 0.0], [60.0, 20.0, 10.0]])
    plain = getattr(metrics, f"{kind}_mean")
    assert comparison._mean(kind, x) == pytest.approx([plain(x[:, i].tolist()) for i in range(3)])


def test_a_rare_kind_of_query_that_is_not_drawn():
    """Of an aspect that one query has, draws without it say nothing."""
    one, other = evaluation([1, 20, 20]), evaluation([1, 1, 20])
    for e, value in ((one, 20.0), (other, 50.0)):
        e.values["negation_map_at10"] = np.asarray([np.nan, value, np.nan])
        e.scores["negation_map_at10"] = value
    row = comparison.compare(one, other)[1]
    assert (row.difference, row.low, row.high, row.better, row.worse) == (30, 30, 30, 1, 0)


def test_what_cannot_be_compared():
    one, other = evaluation([1, 2, 3]), evaluation([1, 2, 3], where="b")

    def refused(changed, message, first=one):
        with pytest.raises(UserError, match=message):
            comparison.compare(first, changed)

    def with_query(row, key, value):
        queries = list(other.queries)
        values = list(queries[row])
        values[comparison._IDENTITY.index(key)] = value
        queries[row] = tuple(values)
        return replace(other, queries=queries)

    def with_protocol(**changes):
        return replace(other, protocol={**other.protocol, **changes})

    refused(with_protocol(hash="abd"), "a and b cannot be compared: hash is 'abc' and 'abd'")
    refused(with_protocol(galleries={"x": {"n": 4}}), r"galleries.x.n is 3 and 4")
    refused(with_protocol(reference="kept"), r"reference is None and 'kept'")
    refused(with_query(1, "text", "other"), r"text of query '1' is 'a text' and 'other'")
    refused(with_query(2, "query_id", "9"), r"query '2' is in the first alone")
    longer = evaluation([1, 2, 3, 4], where="b")
    refused(longer, r"query '3' is in the second alone")
    refused(other, r"query '3' is in the first alone", first=longer)
    twice = evaluation([1, 2, 2], where="b")
    twice.queries[2] = twice.queries[1]
    once = evaluation([1, 2])
    refused(twice, r"query '1' is more often in the second", first=once)
    refused(once, r"query '1' is more often in the first", first=twice)
    for options in ({"draws": 10}, {"confidence": 1.0}, {"seed": -1}):
        with pytest.raises(UserError, match=r"give 100 draws or more, a confidence between"):
            comparison.compare(one, other, **options)
    with pytest.raises(UserError, match=r"draws=100000000000: .* give 1,000,000 at most"):
        comparison.compare(one, one, draws=100_000_000_000)


def test_queries_in_another_order():
    before, after = two(count=40)
    one, other = evaluation(before), evaluation(after)
    order = np.random.default_rng(0).permutation(40)
    turned = replace(
        other,
        queries=[other.queries[i] for i in order],
        values={n: v[order] for n, v in other.values.items()},
    )
    assert comparison.compare(one, other) == comparison.compare(one, turned)


@pytest.fixture
def saved(tiny, fashion, tmp_path):
    """Two folders of evaluations of FashionIQ, of two models."""
    from cir_jax import config

    loaded = config.load("clip_sum:fashioniq")
    for name, seed in (("a", 0), ("b", 1)):
        functions = tiny.Products()
        model = tiny.retriever(functions, functions.init(seed))
        result, answers = saving.run(fashioniq.Benchmark(fashion), model, "fashioniq")
        folder = tmp_path / name / "evaluation"
        saving.write(folder, saving.parse("rankings"), model, answers, 5)
        run_report.write_evaluation(folder, name, loaded, result)
    return tmp_path


def test_command(saved, capsys):
    file = saved / "difference.json"
    flags = [str(saved / "a"), str(saved / "b/evaluation/rankings.jsonl"), "--draws", "300"]
    assert main(["compare", *flags, "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "95% interval" in said and "12 queries, drawn 300 times in pairs" in said
    content = json.loads(file.read_text())
    assert (content["draws"], content["queries"], content["seed"]) == (300, 12, 0)
    for name, row in content["metrics"].items():
        assert name in said
        assert row["low"] <= row["difference"] <= row["high"] and 0 < row["p"] <= 1
    first = json.loads((saved / "a/evaluation/results.json").read_text())
    assert {n: r["first"] for n, r in content["metrics"].items()} == first["scores"]


def test_parquet_alone_says_the_same(saved):
    other = saved / "copy"
    shutil.copytree(saved / "b/evaluation", other)
    (other / "rankings.jsonl").unlink()
    whole, read = comparison.read(saved / "b"), comparison.read(other)
    assert read.queries == whole.queries
    assert all(np.array_equal(read.values[n], v, equal_nan=True) for n, v in whole.values.items())


def test_files_that_are_no_evaluation(saved, tmp_path, capsys):
    with pytest.raises(UserError, match=r"holds no rankings to compare; make them with `cir-jax"):
        comparison.read(tmp_path / "nothing")
    mixed = saved / "mixed"
    shutil.copytree(saved / "a/evaluation", mixed)
    shutil.copy(saved / "b/evaluation/results.json", mixed)
    with pytest.raises(UserError, match=r"they are of two evaluations. Evaluate again with --save"):
        comparison.read(mixed)
    (mixed / "rankings.jsonl").write_text('{"part": 3}\n')
    with pytest.raises(UserError, match=r"are not what `cir-jax evaluate --save rankings` writes"):
        comparison.read(mixed)
    (mixed / "rankings.jsonl").unlink()
    (mixed / "rankings.parquet").write_bytes(b"PAR1 no table PAR1")
    assert main(["compare", str(mixed), str(mixed)]) == 2
    assert "rankings.parquet cannot be read" in capsys.readouterr().err


SPOILED = [{"scores": [1]}, {"scores": {"m": "1"}}, {"scores": {"m": True}}, {"protocol": 3},
           {"means": {"a": ["arithmetic", ["a"]]}}, {"means": {"a": ["median", ["recall_at10"]]}},
           {"means": 7}, {"means": {"a": 3}}]  # fmt: skip


@pytest.mark.parametrize("change", SPOILED)
def test_results_that_are_none(change, tmp_path):
    values = {"recall_at10": 100.0}
    record = {"part": "", "query_id": "1", "reference": "r", "text": "t", "right": ["a"],
              "excluded": [], "values": values}  # fmt: skip
    (tmp_path / "rankings.jsonl").write_text(json.dumps(record) + "\n")
    results = {"scores": dict(values), "means": {}, "protocol": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert comparison.read(tmp_path).scores == values
    (tmp_path / "results.json").write_text(json.dumps(results | change))
    with pytest.raises(UserError, match="are not what `cir-jax evaluate --save rankings` writes"):
        comparison.read(tmp_path)


@pytest.mark.parametrize("change", [{"part": 3}, {"right": [{}]}, {"values": {}}, {"values": [1]}])
def test_rankings_that_are_none(change, tmp_path):
    record = {"part": "", "query_id": "1", "reference": "r", "text": "t", "right": ["a"],
              "excluded": [], "values": {"m": 1.0}}  # fmt: skip
    (tmp_path / "rankings.jsonl").write_text(json.dumps(record | change) + "\n")
    results = {"scores": {"m": 1.0}, "means": {}, "protocol": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="are not what `cir-jax evaluate --save rankings` writes"):
        comparison.read(tmp_path)


def test_metrics_that_only_one_has():
    one = evaluation([0, 20, 3])
    more = replace(
        *(one,),
        values=one.values | {"other": np.zeros(3)},
        scores=one.scores | {"other": 0.0, "mean": 1.0},
        means={"mean": ("arithmetic", ("recall_at10", "other"))},
    )
    for pair in ((one, more), (more, one)):
        assert [row.metric for row in comparison.compare(*pair, draws=100)] == ["recall_at10"]
    other = replace(one, values={"x": np.zeros(3)}, scores={"x": 0.0})
    with pytest.raises(UserError, match="have no metric in common: recall_at10 and x"):
        comparison.compare(one, other, draws=100)
