# SPDX-License-Identifier: Apache-2.0
"""The CIRR test files: what they hold, and what the check refuses."""

import json

import numpy as np
import pytest

from cir_jax.errors import UserError
from cir_jax.evals.benchmarks import cirr
from cir_jax.evals.submissions import cirr as submission


@pytest.fixture
def predictions(tiny, cirr_root):
    return cirr.Benchmark(cirr_root, "test1").predict(tiny.retriever(tiny.Products(4)))


def test_files(tiny, cirr_root, tmp_path, predictions):
    recall, subset = submission.write(tmp_path / "out", "mine", predictions)
    assert recall.name == "recall_submission_mine.json"
    assert subset.name == "recall_subset_submission_mine.json"
    one, two = json.loads(recall.read_text()), json.loads(subset.read_text())
    assert list(one) == sorted(one)
    assert (one.pop("version"), one.pop("metric")) == ("rc2", "recall")
    assert (two.pop("version"), two.pop("metric")) == ("rc2", "recall_subset")
    assert set(one) == set(two) == {str(40 + i) for i in range(9)}
    for i in range(9):
        names, members = one[str(40 + i)], two[str(40 + i)]
        assert len(set(names)) == 50 and f"test1-{i}" not in names
        assert len(set(members)) == 3 and f"test1-{i}" not in members
        inside = [n for n in names if n in members]  # one order, in the gallery and in the subset
        assert inside == [n for n in members if n in inside]
    submission.check(json.loads(recall.read_text()), "recall", predictions)
    submission.check(json.loads(subset.read_text()), "recall_subset", predictions)


def test_predictions_are_the_ranking_of_val(tiny, cirr_root, predictions):
    """val and test1 hold the same images here, so known targets tell the place of each answer."""
    benchmark = cirr.Benchmark(cirr_root, "val", examples=9)
    for example in benchmark.run(tiny.retriever(tiny.Products(4))).examples:
        target = example.target_name.replace("dev", "test1")
        names = list(predictions.recall[example.query_id])
        assert example.rank == (names.index(target) + 1 if target in names else example.rank)
        assert (target in names) == (example.rank <= 50)


def test_tiny_galleries_answer_with_what_they_have(tiny, cirr_root, tmp_path):
    file = cirr_root / "cirr" / "image_splits" / "split.rc2.test1.json"
    paths = json.loads(file.read_text())
    few = {n: p for n, p in paths.items() if int(n.split("-")[1]) < 34}
    file.write_text(json.dumps(few))
    found = cirr.Benchmark(cirr_root, "test1").predict(tiny.retriever(tiny.Products()))
    assert {len(names) for names in found.recall.values()} == {33}
    submission.write(tmp_path / "out", "tiny", found)

    captions = cirr_root / "cirr" / "captions" / "cap.rc2.test1.json"
    record = json.loads(captions.read_text())[0] | {"img_set": {"members": ["test1-0"]}}
    captions.write_text(json.dumps([record]))
    file.write_text(json.dumps({"test1-0": paths["test1-0"]}))
    with pytest.raises(UserError, match=r"a gallery of 1 image has no candidate.*2 is the least"):
        cirr.Benchmark(cirr_root, "test1").predict(tiny.retriever(tiny.Products()))


def content(predictions, metric="recall"):
    answers = {pair: list(names) for pair, names in getattr(predictions, metric).items()}
    return {"version": "rc2", "metric": metric, **answers}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.update(version="rc1"), "'version' is 'rc1', the server needs 'rc2'"),
        (lambda c: c.update(metric="recall_subset"), "'metric' is 'recall_subset'"),
        (lambda c: c.pop("43"), "lacks 1 of 9 pairids: 43"),
        (lambda c: c.update({"7": []}), "has unknown 1 of 9 pairids: 7"),
        (lambda c: c["43"].pop(), "pair 43 has 49 names, expected 50 for recall"),
        (lambda c: c["43"].append("test1-59"), "pair 43 has 51 names, expected 50"),
        (lambda c: c["43"].__setitem__(4, "test1-3"), "pair 43 names its own reference 'test1-3'"),
        (lambda c: c["43"].__setitem__(4, c["43"][0]), "pair 43 names '.*' more than once"),
        (lambda c: c["43"].__setitem__(4, "dev-3"), "'dev-3', which is not in the gallery"),
    ],
)
def test_refused_recall_files(predictions, spoil, message):
    wrong = content(predictions)
    spoil(wrong)
    with pytest.raises(UserError, match=message):
        submission.check(wrong, "recall", predictions)


def test_refused_subset_files(predictions):
    wrong = content(predictions, "recall_subset")
    outside = next(n for n in predictions.recall["43"] if n not in predictions.members["43"])
    wrong["43"][1] = outside
    with pytest.raises(UserError, match=f"'{outside}', which is not in the query's subset"):
        submission.check(wrong, "recall_subset", predictions)
    wrong["43"] = wrong["43"][:2]
    with pytest.raises(UserError, match=r"file.json pair 43 has 2 names, expected 3 for recall_s"):
        submission.check(wrong, "recall_subset", predictions, "file.json")


def test_files_that_are_too_large(predictions, monkeypatch, tmp_path):
    monkeypatch.setattr(submission, "MOST_BYTES", 3000)
    with pytest.raises(UserError, match=r"has \d,\d+ bytes, the server takes 3,000"):
        submission.write(tmp_path / "out", "large", predictions)
    assert not (tmp_path / "out").exists()


def test_real_sizes_fit_the_limit():
    """4,148 queries over 2,315 names of the length CIRR's have."""
    names = [f"test1-{i}-{i % 4}-img{i % 2}" for i in range(2315)]
    rng = np.random.default_rng(0)
    answers = {str(p): [names[j] for j in rng.permutation(2314)[:50]] for p in range(4148)}
    references = dict.fromkeys(answers, names[-1])
    made = submission.Predictions(answers, {}, references, {}, names)
    wanted = {"version": "rc2", "metric": "recall", **answers}
    submission.check(wanted, "recall", made)
    assert len(json.dumps(wanted)) < submission.MOST_BYTES
