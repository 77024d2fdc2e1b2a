# SPDX-License-Identifier: Apache-2.0
"""What `cir-jax evaluate --save` writes: rankings and features of every benchmark."""

import json

import jax
import numpy as np
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file

from cir_jax import config
from cir_jax.errors import UserError
from cir_jax.evals import benchmark, saving
from cir_jax.evals.benchmarks import circo, cirr, fashioniq, folder, genecis
from tests import zero_shot_sets


@pytest.fixture
def own(tmp_path, tiny):
    """Own triplets: two of three queries have several right answers, one has two texts."""
    root = tmp_path / "own"
    for i in range(12):
        tiny.picture(root / "images" / f"{i}.png", i)
    lines = [
        {"reference": "0.png", "targets": ["1.png", "2.png", "3.png"], "text": "one of three"},
        {"reference": "4.png", "targets": ["5.png", "6"], "texts": ["either", "any of both"]},
        {"reference": "7.png", "target": "8.png", "text": "the only one"},
    ]
    (root / "val.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "gallery.txt").write_text("\n".join(f"{i}.png" for i in range(12)))
    return root


def made(name, root, fashion, cirr_root, own):
    """(benchmark, whether the reference is removed)."""
    if name == "circo":
        return circo.Benchmark(zero_shot_sets.write_circo(root / "circo")), False
    if name == "genecis":
        return genecis.Benchmark(zero_shot_sets.write_genecis(root / "genecis")), False
    if name == "cirr":
        return cirr.Benchmark(cirr_root), True
    if name == "folder":
        return folder.Benchmark(own), True
    return fashioniq.Benchmark(fashion, reference=name.removeprefix("fashioniq ")), "rem" in name


@pytest.mark.parametrize(
    "name", ["fashioniq removed", "fashioniq kept", "cirr", "circo", "genecis", "folder"]
)
def test_rankings_are_those_of_all_scores(name, tiny, tmp_path, fashion, cirr_root, own):
    chosen, removed = made(name, tmp_path, fashion, cirr_root, own)
    model = tiny.retriever(tiny.Products(2))
    result, answers = saving.run(chosen, model, name)
    assert result.scores == chosen.run(model).scores
    wanted = saving.parse("rankings,features")
    files = saving.write(tmp_path / "out", wanted, model, answers, 7)
    assert sorted(f.name for f in files) == sorted(wanted)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(wanted)
    lines = (tmp_path / "out/rankings.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    with np.load(tmp_path / "out/features.npz") as arrays:
        features = dict(arrays)
    check_records(records, answers, features, removed)
    table = parquet.read_table(tmp_path / "out/rankings.parquet").to_pylist()
    for one, other in zip(records, table, strict=True):
        assert other | {"scores": 0, "values": dict(other["values"])} == one | {"scores": 0}
        assert other["scores"] == pytest.approx(one["scores"])
    tensors = load_file(tmp_path / "out/features.safetensors")
    assert {key for key in features if features[key].ndim > 1} == set(tensors)
    assert all(np.array_equal(features[key], tensors[key]) for key in tensors)


def check_records(records, answers, features, removed):
    """Against every score, sorted on the host."""
    by_part = {}
    for record in records:
        by_part.setdefault(record["part"], []).append(record)
    assert list(by_part) == [one.part for one in answers]
    for one in answers:
        before, own = f"{one.part}/" if one.part else "", by_part[one.part]
        names = features[f"{before}names"].tolist()
        query, images = features[f"{before}queries"], features[f"{before}images"]
        assert [r["query_id"] for r in own] == features[f"{before}query_ids"].tolist()
        scores = np.einsum("qd,gkd->qgk", query, images).max(axis=2)
        for i, record in enumerate(own):
            triplet = one.task.triplets[i]
            out = {record["reference"]} if removed else set()
            assert set(record["excluded"]) == out & set(names)
            candidates = set(triplet.members or names) if one.members is not None else set(names)
            order = [n for n in np.argsort(-scores[i], kind="stable") if names[n] in candidates]
            order = [names[n] for n in order if names[n] not in out]
            assert record["ranked"] == order[:7]
            best = [float(scores[i, names.index(n)]) for n in order[:7]]
            assert record["scores"] == pytest.approx(best, abs=1e-5)
            assert record["right"] == list(triplet.truths or (triplet.target,))
            assert record["right_ranks"] == [order.index(n) + 1 for n in record["right"]]
            assert record["rank"] in record["right_ranks"]


def test_values_of_queries_make_the_scores(tiny, tmp_path, fashion, cirr_root, own):
    """The mean over the queries, or a mean of means: what comparisons draw from."""
    from cir_jax.evals.comparison import Evaluation, _metrics

    for name in ("fashioniq removed", "cirr", "circo", "genecis", "folder"):
        chosen, _ = made(name, tmp_path, fashion, cirr_root, own)
        result, answers = saving.run(chosen, tiny.retriever(tiny.Products()), name)
        sizes = [len(one.query) for one in answers]
        values = {}
        for i, one in enumerate(answers):
            for metric, of_queries in one.values.items():
                whole = values.setdefault(metric, np.full(sum(sizes), np.nan))
                whole[sum(sizes[:i]) : sum(sizes[: i + 1])] = of_queries
        whole = Evaluation("", {}, result.means, result.scores, [], values)
        found = _metrics(whole, np.ones((1, sum(sizes))))
        assert set(found) == set(result.scores)
        for metric, score in result.scores.items():
            assert found[metric][0] == pytest.approx(score), (name, metric)


def test_several_right_answers_by_hand(own):
    """Rankings 2, x, 1, 3: average precision by hand; recall counts the best of the answers."""

    class Fixed:
        def ranks(self, query, gallery, target, removed):
            place = {1: 2, 2: 0, 3: 3, 5: 1, 6: 6, 8: 0}
            return np.asarray([place[int(row)] for row in target], np.int32)

    chosen = folder.Benchmark(own)
    ranks, precision = chosen._ranked(Fixed(), np.zeros((3, 1)), np.zeros((12, 1, 1)))
    assert ranks.tolist() == [0, 1, 0]
    # Places 1, 3 and 4 of 3 answers; places 2 and 7 of 2; place 1 of 1.
    first, second = (1 + 2 / 3 + 3 / 4) / 3, (1 / 2) / 2
    assert precision["map_at5"] == pytest.approx([100 * first, 100 * second, 100])
    assert precision["map_at10"] == pytest.approx([100 * first, 100 * (1 / 2 + 2 / 7) / 2, 100])


def test_texts_of_a_triplet(own, tiny):
    model = tiny.retriever(tiny.Products())
    first, each = folder.Benchmark(own), folder.Benchmark(own, texts="each")
    assert [t.eval_text for t in first.task.triplets] == ["one of three", "either", "the only one"]
    assert [t.eval_text for t in each.task.triplets][1:3] == ["either", "any of both"]
    assert len({t.query_id for t in each.task.triplets}) == 4
    protocols = [b.run(model).protocol for b in (first, each)]
    assert [p["texts"] for p in protocols] == ["first", "each"]
    assert [p["queries"] for p in protocols] == [3, 4]
    with pytest.raises(UserError, match=r"eval.texts='eech' is unknown; use first or each"):
        folder.Benchmark(own, texts="eech")


def test_only_the_first_process_writes(tiny, tmp_path, fashion, monkeypatch):
    model = tiny.retriever(tiny.Products())
    _, answers = saving.run(fashioniq.Benchmark(fashion), model, "fashioniq")
    ranked = []
    top = model.top
    monkeypatch.setattr(model, "top", lambda *a: ranked.append(a) or top(*a))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    wanted = saving.parse("rankings,features")
    assert saving.write(tmp_path / "out", wanted, model, answers, 3) == []
    assert len(ranked) == 2  # it takes part in every ranking
    assert not (tmp_path / "out").exists()


def test_a_file_is_there_whole_or_not_at_all(tiny, tmp_path, fashion, monkeypatch):
    model = tiny.retriever(tiny.Products())
    _, answers = saving.run(fashioniq.Benchmark(fashion), model, "fashioniq")
    before = {}
    for name in saving.parse("rankings"):
        (tmp_path / name).write_text("before")
        before[name] = "before"

    def broken(*_):
        raise UserError("no more rankings")

    calls = iter([model.top, broken])
    monkeypatch.setattr(model, "top", lambda *a: next(calls)(*a))
    with pytest.raises(UserError, match="no more rankings"):
        saving.write(tmp_path, saving.parse("rankings"), model, answers, 3)
    assert {p.name: p.read_text() for p in tmp_path.glob("rankings*")} == before
    assert not list(tmp_path.glob("*.partial"))


def test_what_can_be_saved():
    assert saving.parse("rankings.jsonl, features") == (
        "rankings.jsonl", "features.npz", "features.safetensors",
    )  # fmt: skip
    assert saving.parse("") == ()
    with pytest.raises(UserError, match=r"no 'ranking' to save; .* Did you mean 'rankings'"):
        saving.parse("ranking")


def test_a_benchmark_that_keeps_no_answers(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("class B:\n    def run(self, retriever):\n        1 / 0\n\n"
                    "def build(config):\n    return B()\n")  # fmt: skip
    chosen = benchmark.build(config.load("clip_sum:fashioniq", [f"eval.benchmark={file}"]))
    with pytest.raises(UserError, match=r"mine.py keeps no answers of single queries"):
        saving.run(chosen, None, str(file))
