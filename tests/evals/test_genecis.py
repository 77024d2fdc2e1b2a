# SPDX-License-Identifier: Apache-2.0
"""GeneCIS: recalls within each query's own gallery."""

import json
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax import config
from cir_jax.datasets.readers import genecis as reader
from cir_jax.errors import UserError
from cir_jax.evals import benchmark, metrics
from cir_jax.evals.benchmarks import genecis
from cir_jax.evals.example import Example
from cir_jax.evals.reports import run_report
from cir_jax.main import main
from tests import runs, zero_shot_sets

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")


def test_scores_by_hand():
    ranks = {"focus_object": np.asarray([0, 1, 2, 3]), "change_object": np.asarray([0, 0])}
    assert metrics.genecis(ranks) == pytest.approx(
        {
            "focus_object_recall_at1": 25.0,
            "focus_object_recall_at2": 50.0,
            "focus_object_recall_at3": 75.0,
            "change_object_recall_at1": 100.0,
            "change_object_recall_at2": 100.0,
            "change_object_recall_at3": 100.0,
            "average_recall_at1": 62.5,  # tasks weigh the same
            "average_recall_at2": 75.0,
            "average_recall_at3": 87.5,
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return zero_shot_sets.write_genecis(tmp_path_factory.mktemp("genecis"))


@pytest.fixture
def own(tmp_path):
    return zero_shot_sets.write_genecis(tmp_path)


@pytest.mark.parametrize("k", [1, 4])
def test_run(tiny, root, k):
    functions = tiny.Products(k)
    one = tiny.retriever(functions)
    result = genecis.Benchmark(root, examples=7).run(one)
    for task in TASKS:
        read = reader.read_task(root, task)
        ranks = []
        for t in read.triplets:
            query = one.encode_queries([read.paths[t.reference]], [t.eval_text])
            gallery = one.encode_gallery([read.paths[n] for n in t.members])
            scores = np.einsum("d,gkd->gk", query[0], gallery).max(axis=1)
            ranks.append(int((scores > scores[0]).sum()))  # the target is the first member
        for at in (1, 2, 3):
            expected = 100 * np.mean(np.asarray(ranks) < at)
            assert result.scores[f"{task}_recall_at{at}"] == pytest.approx(expected)
    means = [result.scores[f"{task}_recall_at1"] for task in TASKS]
    assert result.score == pytest.approx(np.mean(means))
    assert result.score == result.scores["average_recall_at1"]
    assert result.protocol["reference"] == "kept"
    galleries = result.protocol["galleries"]
    assert list(galleries) == list(TASKS) and galleries["focus_object"]["gallery"] == 4
    assert galleries["focus_object"]["queries"] == 5


def test_every_part_is_encoded_once(tiny, root):
    one = tiny.retriever(tiny.Products())
    genecis.Benchmark(root).run(one)
    used = {path for task in TASKS for path in reader.read_task(root, task).paths.values()}
    assert one.preprocess.counts == Counter({str(path): 1 for path in used})
    assert len(used) > 20  # more than there are files: boxes of one file are apart


def test_examples_come_from_the_query_s_own_gallery(tiny, root):
    result = genecis.Benchmark(root, examples=7).run(tiny.retriever(tiny.Products()))
    assert len(result.examples) == 7
    for example in result.examples:
        task, number = example.query_id.split("/")
        record = reader.read_task(root, task).triplets[int(number)]
        assert {hit.name for hit in example.results} == set(record.members)
        assert example.results[example.rank - 1].name == example.target_name
        scores = [hit.score for hit in example.results]
        assert scores == sorted(scores, reverse=True)
        kept = Example.from_json(json.loads(json.dumps(example.to_json())))
        assert kept == example  # a part of an image is one again
    assert genecis.Benchmark(root, examples=0).run(tiny.retriever(tiny.Products())).examples == []


def test_equal_scores_do_not_favour_the_target(tiny, root):
    class Constant(tiny.Products):
        def target(self, params, pixels):
            return jnp.ones((pixels.shape[0], 1, 6)) / jnp.sqrt(6.0)

    result = genecis.Benchmark(root).run(tiny.retriever(Constant()))
    for task in TASKS:
        triplets = reader.read_task(root, task).triplets
        first = np.mean([t.target == min(t.members) for t in triplets])
        assert result.scores[f"{task}_recall_at1"] == pytest.approx(100 * first)


def test_report(tiny, root):
    result = genecis.Benchmark(root).run(tiny.retriever(tiny.Products()))
    table = run_report.recall_table(result.scores, result.protocol)
    assert table.columns == ["", "queries", "gallery", "hash", "R@1", "R@2", "R@3"]
    assert [row[0] for row in table.rows] == [*TASKS, "average"] and table.title == "Recall"
    chart = run_report.recall_chart([{"step": 1, **result.scores}])
    assert [s.name for s in chart.series] == ["average R@1", "average R@2", "average R@3"]


def test_missing_images(tiny, own, capsys):
    (own / "val2017/000000000050.jpg").unlink()
    with pytest.raises(UserError, match=r"GeneCIS: 1 of \d+ images cannot be used"):
        genecis.Benchmark(own)
    assert list(genecis.Benchmark(own, TASKS[:2]).tasks) == list(TASKS[:2])
    (own / "VG_100K_all/20.jpg").unlink()
    with pytest.raises(UserError, match=r"GeneCIS: \d of \d+ images cannot be used .*20.jpg"):
        genecis.Benchmark(own)
    result = genecis.Benchmark(own, on_missing="drop").run(tiny.retriever(tiny.Products()))
    assert "The numbers are not comparable" in capsys.readouterr().out
    galleries = result.protocol["galleries"]
    assert galleries["focus_object"]["missing_images"] == 1
    assert any(g["gallery"] == "3 to 4" for g in galleries.values())


def test_a_box_outside_its_image(tiny, own, capsys):
    """Found before anything is encoded; `drop` leaves it out of the galleries it is in."""
    file = own / "genecis/focus_attribute.json"
    records = json.loads(file.read_text())
    records[0]["gallery"][0]["instance_bbox"] = [9000, 0, 5, 5]
    runs.dump(file, records)
    with pytest.raises(UserError, match=r"1 of \d+ images .*box 9000, 0, 5, 5 \(box outside its"):
        genecis.Benchmark(own)
    made = genecis.Benchmark(own, ("focus_attribute",), on_missing="drop")
    protocol = made.run(tiny.retriever(tiny.Products())).protocol["galleries"]["focus_attribute"]
    assert protocol["unusable"] == {"box outside its image": 1}
    assert (made.members["focus_attribute"][0] >= 0).sum() == len(records[0]["gallery"])
    assert main(["doctor", "genecis", str(own)]) == 1
    said = capsys.readouterr().out
    assert "box outside its image: 1: " in said and "1 boxes of the annotations hold no" in said
    assert "1 problem(s)" in said


def test_other_numbers_of_candidates(tiny, own):
    file = own / "genecis/focus_object.json"
    records = json.loads(file.read_text())
    records[0]["gallery"] = [*records[0]["gallery"][:1], records[0]["target"]]
    runs.dump(file, records)
    made = genecis.Benchmark(own, ("focus_object",))
    assert (made.members["focus_object"][0] >= 0).sum() == 2  # the target once, and one more
    sizes = made.run(tiny.retriever(tiny.Products())).protocol["galleries"]["focus_object"]
    assert sizes["gallery"] == "2 to 4"


def test_build(root):
    changes = ["eval.benchmark=genecis", f"eval.root={root}", "eval.tasks=focus_object"]
    assert list(benchmark.build(config.load("clip_sum:cirr", changes)).tasks) == ["focus_object"]
    with pytest.raises(UserError, match="GeneCIS has no task 'objects'"):
        benchmark.build(config.load("clip_sum:cirr", [*changes[:2], "eval.tasks=objects"]))
