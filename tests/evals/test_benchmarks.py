# SPDX-License-Identifier: Apache-2.0
"""FashionIQ, CIRR and a folder of one's own, end to end on tiny sets on disk."""

import json
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax import config
from cir_jax.data import tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError
from cir_jax.evals import benchmark
from cir_jax.evals.benchmarks import cirr, fashioniq, folder
from cir_jax.evals.benchmarks import emoji as emoji_benchmark
from cir_jax.evals.reports import run_report


def slow_ranks(tiny, functions, files, queries, removed):
    """Ranks by one matrix and a full sort. `queries`: (reference row, text, target row)."""
    params = functions.init(0)
    preprocess = Preprocess(tiny.SIZE, "none")
    pixels = jnp.stack([jnp.asarray(preprocess(f)) for f in files])
    table = tokens.table([q[1] for q in queries], tokens.load("clip"))
    ids = jnp.asarray(table.rows(slice(None), 77))
    references = jnp.asarray([q[0] for q in queries])
    query = functions.compose(params, functions.reference(params, pixels[references], ids), ids)
    gallery = functions.target(params, pixels)
    scores = np.asarray(jnp.einsum("qd,gkd->qgk", query, gallery).max(axis=2))
    ranks = []
    for row, (reference, _, target) in zip(scores, queries, strict=True):
        order = [j for j in np.argsort(-row, kind="stable") if not (removed and j == reference)]
        ranks.append(order.index(target))
    return np.asarray(ranks)


@pytest.mark.parametrize("reference", ["removed", "kept"])
@pytest.mark.parametrize("k", [1, 4])
def test_fashioniq(tiny, fashion, reference, k):
    functions = tiny.Products(k)
    benchmark = fashioniq.Benchmark(fashion, reference=reference, examples=7)
    one = tiny.retriever(functions)
    result = benchmark.run(one)
    for shift, category in enumerate(("dress", "shirt")):
        files = [fashion / "images" / f"{category}{i}.png" for i in range(14 - 2 * shift)]
        queries = [(i, f"is {i} and more red", i + 3) for i in range(6)]
        ranks = slow_ranks(tiny, functions, files, queries, reference == "removed")
        assert result.scores[f"{category}_recall_at10"] == pytest.approx(100 * np.mean(ranks < 10))
        found = {e.query_id: e.rank for e in result.examples if e.target_name.startswith(category)}
        assert set(found.values()) <= set((ranks + 1).tolist())
    assert result.score == result.scores["average_recall"]
    assert one.preprocess.counts == Counter({str(f): 1 for f in (fashion / "images").glob("*.png")})
    galleries = result.protocol.pop("galleries")
    assert result.protocol == {
        "benchmark": "FashionIQ", "split": "val", "gallery": "full", "reference": reference,
    }  # fmt: skip
    assert (galleries["dress"]["gallery"], galleries["shirt"]["gallery"]) == (14, 12)
    assert galleries["dress"]["queries"] == 6 and len(galleries["dress"]["hash"]) == 12


def test_fashioniq_examples(tiny, fashion):
    result = fashioniq.Benchmark(fashion, examples=7).run(tiny.retriever(tiny.Products()))
    assert len(result.examples) == 7  # three dresses, four shirts
    for example in result.examples:
        assert len(example.results) == 5
        names = [hit.name for hit in example.results]
        assert len(set(names)) == 5
        assert str(example.reference) not in [str(hit.path) for hit in example.results]
        if example.rank <= 5:
            assert names[example.rank - 1] == example.target_name
        else:
            assert example.target_name not in names
    assert any(e.rank <= 5 for e in result.examples) and any(e.rank > 5 for e in result.examples)


def test_fashioniq_val_protocol(tiny, fashion):
    full = fashioniq.Benchmark(fashion).tasks["dress"]
    val = fashioniq.Benchmark(fashion, gallery="val").tasks["dress"]
    assert (len(full.names), len(val.names)) == (14, 9)  # references 0-5, targets 3-8
    assert val.protocol()["hash"] != full.protocol()["hash"]
    again = fashioniq.Benchmark(fashion, gallery="val").tasks["dress"]
    assert again.names == val.names


def test_gallery_hash_does_not_depend_on_the_order(tiny, fashion):
    before = fashioniq.Benchmark(fashion).tasks["dress"].protocol()["hash"]
    file = fashion / "image_splits" / "split.dress.val.json"
    file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
    assert fashioniq.Benchmark(fashion).tasks["dress"].protocol()["hash"] == before


def test_missing_images_are_an_error_or_counted(tiny, fashion, capsys):
    for name in ("dress4", "dress13"):  # reference of one query and target of another; neither
        (fashion / "images" / f"{name}.png").unlink()
    with pytest.raises(
        UserError,
        match=r"FashionIQ val: 2 of 26 images cannot be used .2 missing.: .*dress4.*dress13",
    ):
        fashioniq.Benchmark(fashion)
    benchmark = fashioniq.Benchmark(fashion, on_missing="drop")
    assert "2 gallery images are left out, and 2 queries" in capsys.readouterr().out
    galleries = benchmark.run(tiny.retriever(tiny.Products())).protocol["galleries"]
    assert galleries["dress"]["missing_images"] == galleries["dress"]["dropped_queries"] == 2
    assert (galleries["dress"]["gallery"], galleries["dress"]["queries"]) == (12, 4)
    assert "missing_images" not in galleries["shirt"]


def test_no_query_left(fashion):
    for i in range(6):
        (fashion / "images" / f"shirt{i}.png").unlink()
    with pytest.raises(UserError, match="FashionIQ shirt: no query is left"):
        fashioniq.Benchmark(fashion, ("shirt",), on_missing="drop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "remove"}, r"'remove' is unknown.* mean 'removed'"),
        ({"gallery": "all"}, "eval.gallery='all' is unknown; use full or val"),
        ({"on_missing": "drops"}, r"'drops' is unknown.* mean 'drop'"),
        ({"categories": ("dres",)}, "mean 'dress'"),
    ],
)
def test_fashioniq_options(fashion, options, message):
    with pytest.raises(UserError, match=message):
        fashioniq.Benchmark(fashion, **options)


def change(file, number, **values):
    records = json.loads(file.read_text())
    records[number] |= values
    file.write_text(json.dumps(records))


def test_fashioniq_wrong_records(fashion):
    file = fashion / "captions" / "cap.dress.val.json"
    change(file, 2, target="shirt1")
    with pytest.raises(UserError, match=r"dress query .*2: target 'shirt1' is not among the 14"):
        fashioniq.Benchmark(fashion)
    change(file, 2, target="dress2")
    with pytest.raises(UserError, match="target and reference are both 'dress2'"):
        fashioniq.Benchmark(fashion)
    assert fashioniq.Benchmark(fashion, reference="kept").tasks["dress"].target[2] == 2


def test_a_category_without_queries_is_left_out(fashion, capsys):
    (fashion / "captions" / "cap.shirt.val.json").write_text("[]")
    assert list(fashioniq.Benchmark(fashion).tasks) == ["dress"]
    assert "category 'shirt' has no val query, left out" in capsys.readouterr().out


def test_fashioniq_test_split_has_no_recall(tiny, fashion):
    for kind in ("captions/cap", "image_splits/split"):
        text = (fashion / f"{kind}.dress.val.json").read_text()
        (fashion / f"{kind}.dress.test.json").write_text(text.replace('"target"', '"nothing"'))
    with pytest.raises(UserError, match="split 'test' has no targets"):
        fashioniq.Benchmark(fashion, split="test")


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("per_triplet", [False, True])
def test_cirr(tiny, cirr_root, k, per_triplet):
    functions = tiny.Products(k, per_triplet)
    result = cirr.Benchmark(cirr_root, examples=3).run(tiny.retriever(functions))
    files = [cirr_root / "dev" / f"dev-{i}.png" for i in range(60)]
    queries = [(i, f"with {i} dogs", i + 20) for i in range(9)]
    ranks = slow_ranks(tiny, functions, files, queries, removed=True)
    for at in (1, 5, 10, 50):
        assert result.scores[f"recall_at{at}"] == pytest.approx(100 * np.mean(ranks < at))
    subset = []
    for i, query in enumerate(queries):
        rows = [i, i + 20, 30, 31, 32, 33]
        renamed = [(0, query[1], 1)]
        subset += [*slow_ranks(tiny, functions, [files[r] for r in rows], renamed, removed=True)]
    for at in (1, 2, 3):
        expected = 100 * np.mean(np.asarray(subset) < at)
        assert result.scores[f"recall_subset_at{at}"] == pytest.approx(expected)
    assert result.score == result.scores["recall_mean"]
    assert result.protocol["reference"] == "removed" and result.protocol["gallery"] == 60


def test_cirr_recalls_do_not_depend_on_the_references(tiny, cirr_root):
    """The law of removal: with references that are nearest to their own query, nothing changes."""

    class Identity(tiny.Products):
        def reference(self, params, pixels, text):
            rows = self.target(params, pixels)[:, 0]
            return jnp.pad(rows, ((0, 0), (0, 4))).reshape(-1, 2, 5)

        def compose(self, params, reference, text, key=None):
            return reference.reshape(-1, 10)[:, :6]  # the query is its reference

    one = tiny.retriever(Identity())
    result = cirr.Benchmark(cirr_root, examples=9).run(one)
    for example in result.examples:
        assert example.reference not in [hit.path for hit in example.results]
        # The rank is that in a gallery which never held the reference.
        number = int(example.query_id) - 40
        files = [cirr_root / "dev" / f"dev-{i}.png" for i in range(60) if i != number]
        gallery = one.encode_gallery([str(f) for f in files])
        query = one.encode_queries([example.reference], ["anything"])
        assert one.ranks(query, gallery, np.asarray([number + 19]))[0] == example.rank - 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"members": [f"dev-{i}" for i in (0, 30, 31)]}, "holds the target 'dev-20' 0 times"),
        ({"members": [f"dev-{i}" for i in (0, 20, 20)]}, "holds the target 'dev-20' 2 times"),
        ({"members": ["dev-20", "dev-99"]}, "pair 40: member 'dev-99' is not among the 60 images"),
    ],
)
def test_cirr_wrong_subsets(cirr_root, values, message):
    change(cirr_root / "cirr" / "captions" / "cap.rc2.val.json", 0, img_set=values)
    with pytest.raises(UserError, match=message):
        cirr.Benchmark(cirr_root)


def test_cirr_without_images_of_a_subset(tiny, cirr_root):
    (cirr_root / "dev" / "dev-31.png").unlink()
    with pytest.raises(UserError, match=r"CIRR val: 1 of 60 images cannot be used"):
        cirr.Benchmark(cirr_root)
    benchmark = cirr.Benchmark(cirr_root, on_missing="drop")
    assert benchmark.members.min() == -1
    protocol = benchmark.run(tiny.retriever(tiny.Products())).protocol
    assert (protocol["gallery"], protocol["missing_images"], protocol["queries"]) == (59, 1, 9)


def test_cirr_test_split_has_no_recall(tiny, cirr_root):
    with pytest.raises(UserError, match="split 'test1' has no targets; `cir-jax submit`"):
        cirr.Benchmark(cirr_root, "test1").run(tiny.retriever(tiny.Products()))


@pytest.fixture
def own(tmp_path, tiny):
    for i in range(13):
        tiny.picture(tmp_path / "images" / f"{i}.png", i)
    lines = [{"reference": f"{i}.png", "target": f"{i + 1}.png", "text": "next"} for i in range(5)]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


@pytest.mark.parametrize("listed", [False, True])
def test_folder(tiny, own, listed):
    rows = list(range(6))
    if listed:
        rows = list(range(1, 13))  # the first reference is no candidate
        (own / "gallery.txt").write_text("\n".join(f"{i}.png" for i in rows))
    functions = tiny.Products()
    result = folder.Benchmark(own).run(tiny.retriever(functions))
    files = [own / "images" / f"{i}.png" for i in rows]
    if listed:
        files = [own / "images" / "0.png", *files]  # brute force needs it; it is removed again
    queries = [(i, "next", i + 1) for i in range(5)]
    ranks = slow_ranks(tiny, functions, files, queries, removed=True)
    if listed:
        ranks = np.asarray([e.rank - 1 for e in result.examples])
        assert ranks.shape == (5,)
    assert [e.rank - 1 for e in result.examples] == ranks.tolist()
    assert result.scores["recall_at5"] == pytest.approx(100 * np.mean(ranks < 5))
    assert result.protocol["gallery"] == len(rows)
    assert result.score == pytest.approx(
        np.mean([result.scores[f"recall_at{k}"] for k in (1, 5, 10, 50)])
    )


def settings(name, root, **values):
    values = {"eval.benchmark": name, "data.root": root} | values
    return config.load("clip_sum:fashioniq", [f"{k}={v}" for k, v in values.items()])


def test_build_from_a_config(tiny, fashion, cirr_root, own):
    """All three layouts lie in one folder here: their files do not meet."""
    made = benchmark.build(
        settings("fashioniq", fashion, **{"data.categories": "('shirt',)", "eval.gallery": "val"})
    )
    assert list(made.tasks) == ["shirt"] and len(made.tasks["shirt"].names) == 9
    assert len(benchmark.build(settings("cirr", cirr_root)).task.triplets) == 9
    assert len(benchmark.build(settings("folder", own)).task.triplets) == 5
    for name, place in (("fashioniq", fashion), ("cirr", cirr_root), ("folder", own)):
        assert benchmark.build(settings(name, "elsewhere", **{"eval.root": place}))
    assert benchmark.build(settings("none", "")) is None
    with pytest.raises(
        UserError, match=r"no 'cir' in benchmarks; there are: circo, cirr, emoji, fashi"
    ):
        benchmark.build(settings("cir", ""))


def test_openmoji(tiny, tmp_path, monkeypatch):
    from cir_jax.datasets.readers import emoji

    root = emoji.prepare(tmp_path / "emoji", size=16, limit=120)
    monkeypatch.setattr(emoji, "prepare", lambda _: root)
    options = {"eval.examples": 3, "data.categories": "('people',)"}
    made = emoji_benchmark.build(settings("emoji", "", **options))
    result = made.run(tiny.retriever(tiny.Products(), batch=64))
    assert 0 < result.score <= 100 and len(result.examples) == 3
    whole = cirr.Benchmark(root / "cirr").run(tiny.retriever(tiny.Products(), batch=64))
    assert whole.scores["recall_subset_at3"] >= whole.scores["recall_subset_at1"]


def test_one_key_says_what_becomes_of_broken_images(tiny, own):
    (own / "images/0.png").write_bytes(b"<html>not found</html>")
    (own / "images/1.png").write_bytes(b"")
    changes = [f"data.root={own}", "eval.benchmark=folder", "eval.batch=8"]

    def build(*more):
        loaded = config.load("clip_sum:emoji,stage=1", ["data.name=folder", *changes, *more])
        return benchmark.build(loaded)

    with pytest.raises(UserError, match=r"2 of \d+ images.*1 empty.*1 no image.*data.on_missing=d"):
        build()
    with pytest.raises(UserError, match=r"set eval.on_missing=drop to leave them out"):
        build("data.on_missing=drop", "eval.on_missing=error")
    for key in ("data.on_missing=drop", "eval.on_missing=drop"):
        protocol = build(key).run(tiny.retriever(tiny.Products())).protocol
        assert protocol["left_out"] == {"0.png": "no image", "1.png": "empty (0 bytes)"}
        assert protocol["missing_images"] == 2 and protocol["dropped_queries"] >= 1
        sections = run_report.scores_sections({"recall_at1": 1.0}, protocol)
        assert sections[-1].rows == [["0.png", "no image"], ["1.png", "empty (0 bytes)"]]
