# SPDX-License-Identifier: Apache-2.0
"""CIRCO: average precision by hand, the benchmark on a tiny set, and the file for its server."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax import config
from cir_jax.errors import UserError
from cir_jax.evals import benchmark, metrics
from cir_jax.evals.benchmarks import circo
from cir_jax.evals.example import Example
from cir_jax.evals.reports import run_report
from cir_jax.evals.reports.report import write_report
from cir_jax.evals.reports.sections import Queries, text_table
from cir_jax.evals.submissions import circo as submission
from tests import runs, zero_shot_sets


@pytest.mark.parametrize(
    ("hits", "truths", "k", "expected"),
    [
        ([1, 0, 0, 0, 0], 1, 5, 1.0),
        ([0, 0, 1, 0, 0], 1, 5, 1 / 3),
        # places 1, 3 and 4 of three answers: (1 + 2/3 + 3/4) / 3
        ([1, 0, 1, 1, 0], 3, 5, (1 + 2 / 3 + 3 / 4) / 3),
        # the same with seven answers and k = 5: the divisor is k
        ([1, 0, 1, 1, 0], 7, 5, (1 + 2 / 3 + 3 / 4) / 5),
        # k = 2 smaller than three answers: 1/2, divided by two
        ([0, 1, 1, 1, 0], 3, 2, (1 / 2) / 2),
        # two of five answers in the first two places: perfect for k = 2
        ([1, 1, 0, 0, 0], 5, 2, 1.0),
        ([0, 0, 0, 0, 0], 4, 5, 0.0),
        # fewer results than k: the places that are missing are wrong
        ([0, 1], 2, 50, (1 / 2) / 2),
    ],
)
def test_average_precision_by_hand(hits, truths, k, expected):
    found = metrics.average_precisions(np.asarray([hits]), np.asarray([truths]), k)
    assert found == pytest.approx([100 * expected])


def test_undefined_average_precisions():
    with pytest.raises(ValueError, match="mAP@5 of 0 queries is undefined"):
        metrics.average_precisions(np.zeros((0, 3)), np.zeros(0), 5)
    with pytest.raises(ValueError, match="mAP@0"):
        metrics.average_precisions(np.ones((1, 3)), np.asarray([3]), 0)
    for truths in (0, 1):  # none, and fewer than there are hits
        with pytest.raises(ValueError, match="at least one right answer, and no more hits"):
            metrics.average_precisions(np.asarray([[truths, truths]]), np.asarray([truths]), 5)


def test_scores_by_hand():
    hits = np.zeros((3, 50), bool)
    hits[0, [0, 5]] = True  # @5: 1/2; from 10 on: (1 + 2/6) / 2 = 2/3
    hits[1, 19] = True  # from 25 on: (1/20) / 1
    hits[2, [1, 2]] = True  # (1/2 + 2/3) / 2 = 7/12
    truths = np.asarray([2, 1, 2])
    aspects = [("viewpoint", "negation"), ("of one's own",), ("negation",)]
    found = metrics.circo(hits, truths, np.asarray([5, 19, 1]), aspects)
    at5, at10 = (1 / 2 + 7 / 12) / 3, (2 / 3 + 7 / 12) / 3
    assert found == pytest.approx(
        {
            "map_at5": 100 * at5,
            "map_at10": 100 * at10,
            "map_at25": 100 * (at10 + 1 / 60),
            "map_at50": 100 * (at10 + 1 / 60),
            "recall_at5": 100 / 3,
            "recall_at10": 200 / 3,
            "recall_at25": 100.0,
            "recall_at50": 100.0,
            "negation_map_at10": 100 * (2 / 3 + 7 / 12) / 2,
            "viewpoint_map_at10": 100 * 2 / 3,
            "of one's own_map_at10": 0.0,
        }
    )
    # The order of the authors' list, then what is not in it.
    assert list(found)[-3:] == ["negation_map_at10", "viewpoint_map_at10", "of one's own_map_at10"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return zero_shot_sets.write_circo(tmp_path_factory.mktemp("circo"))


@pytest.fixture
def own(tmp_path):
    return zero_shot_sets.write_circo(tmp_path)


def slow_order(tiny, functions, root, records, texts):
    """Image numbers of every query, best first, by a full sort of one score after the other."""
    one = tiny.retriever(functions)
    names = sorted((root / "COCO2017_unlabeled/unlabeled2017").iterdir())
    gallery = one.encode_gallery([str(f) for f in names])
    files = [names[r["reference_img_id"] - 100] for r in records]
    query = one.encode_queries([str(f) for f in files], texts)
    scores = np.asarray(jnp.einsum("qd,gkd->qgk", query, gallery).max(axis=2))
    return [[100 + int(g) for g in np.argsort(-row, kind="stable")] for row in scores]


@pytest.mark.parametrize(("k", "shared"), [(1, "without"), (4, "with")])
def test_run(tiny, root, k, shared):
    functions = tiny.Products(k)
    benchmark = circo.Benchmark(root, shared_concept=shared, examples=3)
    result = benchmark.run(tiny.retriever(functions))
    records = json.loads((root / "annotations/val.json").read_text())
    texts = [r["relative_caption"] for r in records]
    if shared == "with":
        texts = [f"Find a picture that also a house, but {text}." for text in texts]
    assert [t.eval_text for t in benchmark.task.triplets] == texts
    order = slow_order(tiny, functions, root, records, texts)
    for at in (5, 10, 25, 50):
        precisions = []
        for found, record in zip(order, records, strict=True):
            right, total = 0, 0.0
            for place, number in enumerate(found[:at], start=1):
                if number in record["gt_img_ids"]:
                    right += 1
                    total += right / place
            precisions.append(total / min(len(record["gt_img_ids"]), at))
        assert result.scores[f"map_at{at}"] == pytest.approx(100 * np.mean(precisions), rel=1e-5)
        hits = [r["target_img_id"] in f[:at] for f, r in zip(order, records, strict=True)]
        assert result.scores[f"recall_at{at}"] == pytest.approx(100 * np.mean(hits))
        if at == 10:
            both = [p for p, r in zip(precisions, records, strict=True) if r["id"] % 2]
            assert result.scores["negation_map_at10"] == pytest.approx(100 * np.mean(both))
    assert result.score == result.scores["map_at5"]
    protocol = result.protocol
    assert protocol["reference"] == "kept" and protocol["shared_concept"] == shared
    assert protocol.get("template") == (circo.TEMPLATE if shared == "with" else None)
    assert (protocol["gallery"], protocol["queries"]) == (16, 6)
    assert protocol["aspects"] == {"cardinality": {"queries": 6}, "negation": {"queries": 3}}


def test_the_reference_is_a_candidate(tiny, root):
    """With queries that are their references, the reference is the first result."""

    class Identity(tiny.Products):
        def reference(self, params, pixels, text):
            rows = self.target(params, pixels)[:, 0]
            return jnp.pad(rows, ((0, 0), (0, 4))).reshape(-1, 2, 5)

        def compose(self, params, reference, text, key=None):
            return reference.reshape(-1, 10)[:, :6]

    made = circo.Benchmark(root, "val", examples=6)
    for example in made.run(tiny.retriever(Identity())).examples:
        assert example.results[0].path == example.reference
        assert example.rank > 1


def test_equal_scores_go_by_row(tiny, root):
    class Constant(tiny.Products):
        def target(self, params, pixels):
            return jnp.ones((pixels.shape[0], 1, 6)) / jnp.sqrt(6.0)

    made = circo.Benchmark(root, examples=6)
    result = made.run(tiny.retriever(Constant()))
    assert [hit.name for hit in result.examples[0].results] == ["100", "101", "102", "103", "104"]
    records = json.loads((root / "annotations/val.json").read_text())
    first = np.mean([r["target_img_id"] - 100 < 5 for r in records])
    assert result.scores["recall_at5"] == pytest.approx(100 * first)


def test_report(tiny, root, tmp_path):
    result = circo.Benchmark(root, examples=2).run(tiny.retriever(tiny.Products()))
    table = run_report.recall_table(result.scores, result.protocol)
    assert table.columns == [
        "", "queries", "gallery", "hash", "mAP@5", "mAP@10", "mAP@25", "mAP@50",
        "R@5", "R@10", "R@25", "R@50",
    ]  # fmt: skip
    assert [row[:2] for row in table.rows] == [["all", 6], ["cardinality", 6], ["negation", 3]]
    assert table.rows[1][2:5] == ["", "", ""]
    assert table.rows[1][5] == result.scores["cardinality_map_at10"]
    assert "mAP@50" in text_table(table) and table.title == "mAP and recall"
    facts = run_report.scores_sections(result.scores, result.protocol)[-1]
    assert facts.values == {
        "benchmark": "CIRCO", "split": "val", "reference": "kept", "shared_concept": "without",
    }  # fmt: skip
    chart = run_report.recall_chart([{"step": 1, **result.scores}])
    assert [s.name for s in chart.series] == ["mAP@5", "mAP@10", "mAP@25", "mAP@50"]
    assert chart.title == "mAP on validation, %"
    # Every right answer among the results is framed.
    [example] = [e for e in result.examples if len(e.also) > 1][:1]
    kept = Example.from_json(json.loads(json.dumps(example.to_json())))
    assert kept.also == example.also and kept.results == example.results
    page = write_report(tmp_path, "x", [Queries("", [kept])]).read_text()
    framed = sum(hit.name in example.also for hit in example.results)
    assert page.count('<figure class="target">') == framed


def test_missing_images(tiny, own, capsys):
    file = own / "annotations/val.json"
    records = json.loads(file.read_text())
    lost = records[2]["gt_img_ids"][-1]  # no target, but one of its right answers
    (own / f"COCO2017_unlabeled/unlabeled2017/{lost:012d}.jpg").unlink()
    with pytest.raises(
        UserError, match=f"CIRCO val: 1 of 16 images cannot be used .1 missing.: .*{lost}.jpg"
    ):
        circo.Benchmark(own)
    kept = circo.Benchmark(own, on_missing="drop")
    uses = [lost in (r["reference_img_id"], *r["gt_img_ids"]) for r in records]
    assert uses[2] and kept.task.dropped == sum(uses)
    assert "numbers are not comparable" in capsys.readouterr().out
    assert len(kept.aspects) == len(kept.task.triplets) == 6 - sum(uses)
    assert kept.run(tiny.retriever(tiny.Products())).protocol["missing_images"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_concept": "wit"}, r"eval.shared_concept='wit' is unknown.* mean 'with'"),
        ({"template": "also {concept}"}, r"must hold \{concept\} and \{caption\}"),
        ({"template": "{concept} {caption} {0}"}, "nothing else in braces"),
        ({"template": "{concept} {caption"}, "nothing else in braces"),
        ({"split": "train"}, "CIRCO has no split 'train'"),
        ({"on_missing": "drops"}, "'drops' is unknown"),
    ],
)
def test_options(root, options, message):
    with pytest.raises(UserError, match=message):
        circo.Benchmark(root, **options)


@pytest.mark.parametrize("key", ["reference_img_id", "gt_img_ids"])
def test_unknown_images(own, key):
    file = own / "annotations/val.json"
    records = json.loads(file.read_text())
    records[3][key] = 7 if key == "reference_img_id" else [*records[3][key], 7]
    runs.dump(file, records)
    with pytest.raises(UserError, match=r"val query 3: image 7 is not among the 16 images of COCO"):
        circo.Benchmark(own)


def test_test_split_has_no_map(tiny, root):
    with pytest.raises(UserError, match="split 'test' has no targets; `cir-jax submit`"):
        circo.Benchmark(root, "test").run(tiny.retriever(tiny.Products()))


@pytest.fixture
def predictions(tiny, tmp_path):
    """Of 60 images, so that a query has 50 answers."""
    large = zero_shot_sets.write_circo(tmp_path / "large", images=60, queries=3)
    return circo.Benchmark(large, "test").predict(tiny.retriever(tiny.Products()))


def test_submission(predictions, tmp_path):
    path = submission.write(tmp_path / "out", "mine", predictions)
    assert path.name == "circo_submission_mine.json"
    content = json.loads(path.read_text())
    assert list(content) == ["0", "1", "2"]
    for images in content.values():
        assert len(images) == len(set(images)) == 50 and all(100 <= n < 160 for n in images)
    submission.check(content, ["0", "1", "2"], predictions.gallery)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("1"), "lacks 1 of 3 queries: 1;"),
        (lambda c: c.update({"9": []}), "has unknown 1 of 3 queries: 9;"),
        (lambda c: c["1"].pop(), "query 1 has 49 images, expected a list of 50"),
        (lambda c: c.update({"1": 5}), "query 1 has 5 images, expected a list of 50"),
        (lambda c: c["1"].__setitem__(7, c["1"][3]), r"query 1 names \d+ more than once"),
        (lambda c: c["1"].__setitem__(7, str(c["1"][7])), "whole numbers, without quotes"),
        (lambda c: c["1"].__setitem__(7, 3), "names 3, which is not among the 60 images"),
    ],
)
def test_refused_submissions(predictions, spoil, message):
    content = {number: list(images) for number, images in predictions.best.items()}
    spoil(content)
    with pytest.raises(UserError, match=message):
        submission.check(content, ["0", "1", "2"], predictions.gallery)


def test_a_wrong_file_is_not_written(predictions, tmp_path):
    predictions.best["1"][0] = predictions.best["1"][1]
    with pytest.raises(UserError, match="more than once"):
        submission.write(tmp_path / "out", "x", predictions)
    assert not (tmp_path / "out").exists()


def test_build_takes_eval_root(root):
    changes = ("eval.benchmark=circo", f"eval.root={root}", "eval.shared_concept=with")
    made = benchmark.build(config.load("clip_sum:fashioniq", [*changes, "data.root=elsewhere"]))
    assert made.task.triplets[1].eval_text == "Find a picture that also a house, but has 1 dogs."
    template = "eval.concept_template={concept}: {caption}"
    made = benchmark.build(
        config.load("clip_sum:fashioniq", ["eval.benchmark=circo", f"data.root={root}", template])
    )
    assert made.task.triplets[1].eval_text == "has 1 dogs"
    with pytest.raises(UserError, match="no CIRCO annotations nowhere"):
        benchmark.build(
            config.load("clip_sum:fashioniq", ["eval.benchmark=circo", "eval.root=nowhere"])
        )
