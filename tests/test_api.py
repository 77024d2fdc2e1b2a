# SPDX-License-Identifier: Apache-2.0
"""The public API on tiny weights: what it loads, encodes, ranks, scores, trains and refuses."""

import errno
import json
import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import cir_jax
from cir_jax import UserError, main, weights
from cir_jax.convert import importing
from cir_jax.data import tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.retrieval import load, ranking, retriever
from cir_jax.runtime import encode
from cir_jax.runtime import mesh as meshes
from tests import runs
from tests.convert import published, published_sprc
from tests.convert.published import VIT

HERE = Path(__file__).parents[1]
TEXTS = ["but red", "with long sleeves, and a wide collar", "blue"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """best.pt of a released run."""
    return published.write("spn", tmp_path_factory.mktemp("weights"), published.state())


@pytest.fixture(scope="module")
def model(place):
    return cir_jax.load(place)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(7):
        # Wider than TargetPad leaves alone, so that padding and cropping differ.
        runs.write_image(folder / f"{i}.png", list(runs.COLORS.values())[i % 4], i, (48 + i, 32))
    return [folder / f"{i}.png" for i in range(7)]


def pixels(paths, size=32, pad="target"):
    preprocess = Preprocess(size, pad)
    return jnp.stack([jnp.asarray(preprocess(path)) for path in paths])


def token_ids(texts, tokenizer="clip", length=77):
    return jnp.asarray(tokens.table(texts, tokens.load(tokenizer)).rows(slice(None), length))


def by_hand(functions):
    """The three functions of the contract, compiled."""
    names = ("target", "reference", "compose")
    return SimpleNamespace(**{name: jax.jit(getattr(functions, name)) for name in names})


def test_importing_it_imports_no_jax():
    code = (
        "import sys, cir_jax\n"
        "assert dir(cir_jax) == sorted(dir(cir_jax)) and 'load' in dir(cir_jax)\n"
        "print(sorted(m for m in sys.modules if m.startswith('cir_jax')))\n"
        "print([m for m in ('jax', 'numpy', 'PIL', 'ml_collections') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['cir_jax', 'cir_jax.moved', 'cir_jax.version']", "[]"], (
        done.stderr
    )


def test_public_names():
    assert {"load", "evaluate", "train", "Model", "UserError"} < set(dir(cir_jax))
    for name in cir_jax.__all__:
        assert getattr(cir_jax, name).__doc__
    assert (HERE / "cir_jax/py.typed").is_file()
    project = tomllib.loads((HERE / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["cir_jax"]


def test_what_a_model_says_of_itself(model):
    assert (model.name, model.tower, model.pad) == ("clip_sum", VIT, "target")
    assert (model.embedding_dim, model.rows_per_image, model.image_size) == (32, 1, 32)
    assert repr(model) == f"<cir_jax.Model clip_sum {VIT}, 32 values per image, 8 cpu device(s)>"


def test_what_a_search_asks_of_a_model(model):
    assert model.text_alone and model.explains
    assert model.count_tokens(["red", "a red dress", "", "word " * 100]) == [3, 5, 2, 102]
    with pytest.raises(UserError, match="is one text, not a list"):
        model.count_tokens("red")


def test_images_and_queries_are_those_of_the_contract(model, place, paths):
    functions = by_hand(published.functions())
    params = importing.read(place, published.functions()).query
    rows = model.encode_images(paths)
    assert isinstance(rows, np.ndarray) and rows.dtype == np.float32 and rows.shape == (7, 1, 32)
    np.testing.assert_allclose(rows, functions.target(params, pixels(paths)), atol=1e-5)
    three = pixels(paths[:3])
    reference = functions.reference(params, three, token_ids([""] * 3))
    nothing = jnp.zeros_like(reference)
    for images, texts, want in (
        (paths[:3], TEXTS, functions.compose(params, reference, token_ids(TEXTS))),
        (paths[:3], None, functions.compose(params, reference, token_ids([""] * 3))),
        (None, TEXTS, functions.compose(params, nothing, token_ids(TEXTS))),
    ):
        query = model.encode_queries(images, texts)
        assert query.dtype == np.float32 and query.shape == (3, 32)
        np.testing.assert_allclose(query, want, atol=1e-5)
    rows[:] = 0  # they are the caller's
    assert model.encode_images(paths).any()


def test_images_of_every_kind_mixed(model, paths):
    rows = model.encode_images(paths)
    with Image.open(paths[1]) as opened:
        mixed = [
            str(paths[0]), opened, np.asarray(Image.open(paths[2])),
            Image.open(paths[3]).convert("P"), *paths[4:],
        ]  # fmt: skip
        again = model.encode_images(mixed)
    same = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(again[same], rows[same])
    assert np.abs(again[3] - rows[3]).max() > 1e-4  # a palette of 256 colours
    stacked = np.stack([np.asarray(Image.open(paths[0]))] * 2)
    np.testing.assert_allclose(model.encode_images(stacked), rows[[0, 0]], atol=1e-6)
    query = model.encode_queries([Image.open(paths[0])], ["but red"])
    np.testing.assert_allclose(query, model.encode_queries(paths[:1], ["but red"]), atol=1e-6)


def test_the_home_folder_is_written_as_a_tilde(model, paths, monkeypatch):
    monkeypatch.setenv("HOME", str(paths[0].parent))
    np.testing.assert_array_equal(model.encode_images(["~/0.png"]), model.encode_images(paths[:1]))


def test_nothing_gives_nothing(model):
    assert model.encode_images([]).shape == (0, 1, 32)
    assert model.encode_queries([], []).shape == model.encode_queries(None, []).shape == (0, 32)
    order, scores = model.rank(np.zeros((0, 32)), np.zeros((5, 32)), k=3)
    assert order.shape == scores.shape == (0, 3)


def test_calls_with_a_few_images_share_a_program(place, paths):
    one = cir_jax.load(place, device=jax.devices()[0])
    for count in (5, 6, 7):
        assert one.encode_images(paths[:count]).shape == (count, 1, 32)
    compiled = encode._compiled(retriever._programs(one._functions).image, one._mesh)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.encode_images("a.jpg"), r"'a.jpg' is one image, not a list"),
        (lambda m: m.encode_images(["no.jpg"]), r"image no.jpg does not exist; give the path"),
        (lambda m: m.encode_images([__file__]), r"image .*test_api.py cannot be decoded"),
        (lambda m: m.encode_images([None]), r"image 0 is a NoneType; give a path, a PIL image"),
        (lambda m: m.encode_images([np.zeros((4, 4, 3))]), r"array \[4, 4, 3\] of float64; give u"),
        (lambda m: m.encode_images([np.zeros((4, 4), np.uint8)]), r"\[4, 4\] of uint8; give uint8"),
        (lambda m: m.encode_images([np.zeros((0, 4, 3), np.uint8)]), r"image 0 is an array \[0, 4"),
        (lambda m: m.encode_images([Image.new("RGB", (0, 3))]), r"image 0 is 0x3; give one with"),
        (lambda m: m.encode_queries(), r"a query needs an image, a text or both: encode_queries"),
        (lambda m: m.encode_queries(["a.jpg"], []), r"1 images and 0 texts; give as many"),
        (
            lambda m: m.encode_queries(None, "red"),
            r"'red' is one text, .*; give \['red'\]",
        ),
        (lambda m: m.encode_queries(None, ["a", 3]), r"text 1 is 3, a int; give texts"),
        (lambda m: m.encode_queries(None, ["a", "red " * 90]), r"query 1: 92 tokens, the limit is"),
    ],
)
def test_what_is_no_image_and_no_query(call, message, model):
    with pytest.raises(UserError, match=message):
        call(model)


def test_a_broken_picture_is_named(model, paths, tmp_path):
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:300])
    with pytest.raises(UserError, match=r"image 1 cannot be decoded \(.*\); give another one"):
        model.encode_images([paths[0], Image.open(tmp_path / "cut.png")])


def drawn(rows=60, queries=5, k=2, width=32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(queries, width)), rng.normal(size=(rows, k, width))


def test_ranking_is_that_of_the_retriever(model):
    query, rows = (x.astype(np.float32) for x in drawn())
    order, scores = model.rank(query, rows)
    want = model.retriever().top(query, rows, 10)
    np.testing.assert_array_equal(order, want[0])
    assert scores.tobytes() == want[1].tobytes() and order.shape == (5, 10)
    best = np.einsum("qd,nkd->qnk", query, rows).max(axis=2)
    np.testing.assert_array_equal(order, np.argsort(-best, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(scores, np.take_along_axis(best, order, 1), rtol=1e-6)
    flat, _ = model.rank(query, rows[:, 0], k=60)
    np.testing.assert_array_equal(flat, np.argsort(-(query @ rows[:, 0].T), axis=1, kind="stable"))
    for block in (7, 60):
        np.testing.assert_array_equal(model.rank(query, rows, block=block)[0], order)
    halves = model.rank(query.astype(np.float16), rows.astype(np.float16))  # as one may store them
    assert (halves[0][:, 0] == order[:, 0]).all()


def test_what_is_left_out_is_not_found(model):
    query, rows = drawn()
    order, scores = model.rank(query, rows, k=8)
    names = [f"{i}.jpg" for i in range(60)]
    out = [[], order[1, :1], order[2, :3].tolist(), {int(order[3, 7])}, [59, 59]]
    found, best = model.rank(query, rows, k=4, leave_out=out)
    for i, gone in enumerate(out):
        kept = [place for place in range(8) if order[i, place] not in list(gone)][:4]
        np.testing.assert_array_equal(found[i], order[i, kept])
        np.testing.assert_array_equal(best[i], scores[i, kept])
    by_name = [[names[n] for n in gone] for gone in out]
    again = model.rank(query, rows, k=4, leave_out=by_name, names=names, block=7)
    np.testing.assert_array_equal(again[0], found)
    twice = ["a", "a", *names[2:]]  # a name of two images leaves out both
    everything = model.rank(query, rows, k=58, leave_out=[["a"]] * 5, names=twice)[0]
    assert not np.isin(everything, [0, 1]).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 61}, r"k=61, but a query may find 60 of the 60 images; give 1 to 60"),
        ({"k": 0}, r"k=0, but a query may find 60"),
        ({"k": 59, "leave_out": [[], [], [1, 2], [], []]}, r"k=59, .* 58 of the 60 images; give 1"),
        ({"leave_out": [range(60)] * 5}, r"may find 0 of the 60 images; leave out fewer"),
        ({"leave_out": [[1]]}, r"leave_out has 1 lists and there are 5 queries"),
        ({"leave_out": [1, 2, 3, 4, 5]}, r"leave_out of query 0 is 1; give a list of it"),
        ({"leave_out": [[60], [], [], [], []]}, r"query 0: 60 is no number .* they are 0 to 59"),
        ({"leave_out": [[-1], [], [], [], []]}, r"query 0: -1 is no number of an image"),
        ({"leave_out": [["1.jpg"], [], [], [], []]}, r"'1.jpg' is no number of .*; give names="),
        ({"names": ["a"], "leave_out": [[]] * 5}, r"1 names of 60 images; give one for each"),
        (
            {"names": [f"{i}.jpg" for i in range(60)], "leave_out": [[], ["17.jp"], [], [], []]},
            r"query 1: '17.jp' is none of the 60 names. Did you mean '17.jpg'\?",
        ),
        ({"block": -1}, r"block=-1 is below 0"),
    ],
)
def test_a_ranking_that_cannot_be(options, message, model):
    with pytest.raises(UserError, match=message):
        model.rank(*drawn(), **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, place: cir_jax.load(place),
        lambda model, place: cir_jax.load([place / "a.pt", place / "b.pt"]),
        lambda model, place: cir_jax.open_index(place),
        lambda model, place: cir_jax.evaluate(model, "folder", root=place),
        lambda model, place: cir_jax.train("clip_sum:tiny", {"data.root": place, "workdir": "no"}),
        lambda model, place: model.encode_images([place / "a.jpg"]),
        lambda model, place: model.index(place.parent, place.parent / "i", titles=place / "a.csv"),
    ],
)
def test_a_place_that_may_not_be_entered_is_named(call, model, tmp_path, monkeypatch):
    """As the system says it where a folder lacks the right to be entered, also to a superuser."""
    closed, stat = tmp_path / "closed", os.stat

    def refused(path, *args, **options):
        if closed in (Path(os.fsdecode(path)), *Path(os.fsdecode(path)).parents):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **options)

    runs.write_image(tmp_path / "a.png", (9, 9, 9))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(UserError, match=rf"{closed}\S* (cannot be used|is no file)"):
        call(model, closed)


def test_arrays_that_do_not_fit(model):
    query, rows = drawn()
    for a, b in ((query[:, :5], rows), (query[0], rows), (query, rows[0, 0]), (query, rows[:0]),
                 (query.astype(int), rows), (query, rows.astype(str))):  # fmt: skip
        with pytest.raises(UserError, match=r"queries are \[.*\] .* and rows \[.*\] .*; give the"):
            model.rank(a, b)


def test_eight_threads_get_what_one_gets(place, paths):
    """All of them start on a model that nothing was asked of yet, so they compile at once, too."""
    images = [Image.open(path) for path in paths]  # which Pillow has not decoded yet
    jobs = [(paths[i % 3 :], [*TEXTS, *TEXTS][i % 2 :][:3], images[i % 5 : i % 5 + 2])
            for i in range(16)]  # fmt: skip

    def work(one, job):
        files, texts, pictures = job
        rows = one.encode_images([*files, *pictures])
        query = one.encode_queries(files[:3], texts)
        return rows, query, *one.rank(query, rows, k=3, leave_out=[[0], [1, 2], []])

    with ThreadPoolExecutor(8) as pool:
        shared = cir_jax.load(place)
        together = list(pool.map(lambda job: work(shared, job), jobs))
    alone = cir_jax.load(place)
    for got, job in zip(together, jobs, strict=True):
        for a, b in zip(got, work(alone, job), strict=True):
            np.testing.assert_array_equal(a, b)


def test_programs_reach_all_devices_in_one_order(place, paths, monkeypatch):
    held, compiled, programs = [], encode._compiled, ranking._programs

    def watched(program):
        return lambda *x: held.append(meshes.LAUNCH.locked()) or program(*x)

    monkeypatch.setattr(encode, "_compiled", lambda *x: watched(compiled(*x)))
    monkeypatch.setattr(ranking, "_programs", lambda mesh: [*map(watched, programs(mesh))])
    model = cir_jax.load(place)
    rows = model.encode_images(paths)
    model.rank(model.encode_queries(None, TEXTS), rows, k=1)
    assert held == [True] * 3 and not meshes.LAUNCH.locked()


def test_a_model_of_several_rows_whose_reference_reads_the_text(paths, tmp_path):
    network = published_sprc.network()
    import torch

    file = tmp_path / "sprc.pt"
    torch.save({"epoch": 9, "Blip2QformerCirAlignPrompt": network.state_dict()}, file)
    one = cir_jax.load(file, tower=published_sprc.TOWER)
    assert (one.name, one.rows_per_image, one.embedding_dim, one.pad) == ("sprc", 3, 8, "target")
    assert "3 x 8 values per image" in repr(one)
    functions, (index, query) = by_hand(published_sprc.functions()), published_sprc.ours(network)
    rows = one.encode_images(paths)
    np.testing.assert_allclose(rows, functions.target(index, pixels(paths, 16)), atol=1e-5)
    for texts in (TEXTS, None):
        ids = token_ids(texts or [""] * 3, "bert_lavis", 16)
        reference = functions.reference(index, pixels(paths[:3], 16), ids)
        got = one.encode_queries(paths[:3], texts)
        np.testing.assert_allclose(got, functions.compose(query, reference, ids), atol=1e-5)
    order, _ = one.rank(got, rows, k=7)
    best = np.einsum("qd,nkd->qnk", got, rows).max(axis=2)
    np.testing.assert_array_equal(order, np.argsort(-best, axis=1, kind="stable"))
    with pytest.raises(UserError, match=r"^sprc composes a text with what it sees in the ref"):
        one.encode_queries(None, TEXTS)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    return runs.write_fashioniq(tmp_path_factory.mktemp("fashioniq"))


@pytest.fixture(scope="module")
def trained(fashion, tmp_path_factory):
    """What `train` returns of one step of a model that is a file."""
    changes = {
        "workdir": tmp_path_factory.mktemp("runs") / "one", "data.root": fashion,
        "model.name": runs.stand_in("cross_attention"), "model.tower": "tiny-vit", "batch": 8,
        "steps": np.int64(1), "data.threads": 2, "eval.batch": 16, "eval.examples": 2,
        "loss.temperature": 0.1, "data.pad": "none", "data.categories": ["dress"],
        "data.on_long": "truncate", "data.pixels": "memory",
    }  # fmt: skip
    return cir_jax.train("clip_sum:fashioniq,stage=1", changes)


def test_a_run_is_loaded_as_it_was_trained(trained, paths, fashion):
    one = cir_jax.load(trained["workdir"])
    assert one.name == runs.stand_in("cross_attention") and one.pad == "none"
    _, want = load.from_run(trained["workdir"])
    np.testing.assert_allclose(one.encode_images(paths), want.encode_gallery(paths), atol=1e-6)
    queries = one.encode_queries(paths[:3], TEXTS)
    np.testing.assert_allclose(queries, want.encode_queries(paths[:3], TEXTS), atol=1e-6)
    assert len(one.encode_queries(paths[:1], ["red " * 90])) == 1  # data.on_long
    scores = cir_jax.evaluate(one, "fashioniq", fashion, categories=("dress",))["scores"]
    assert scores == pytest.approx(trained["scores"])
    assert cir_jax.load(trained["workdir"], pad="square").pad == "square"


def test_training_goes_by_the_changes(trained, capsys):
    assert trained["step"] == 1 and trained["finished"] and trained["scores"]
    section = weights.config_of(trained["workdir"])
    assert section.data.categories == ("dress",) and section.data.pixels == "memory"
    for config, changes, message in (
        ("clip_sum:fashioniq", {"optim.learning": 1}, "unknown config key 'optim.learning'"),
        ("clip_sum:fashioniq", ["batch=many"], "batch=many"),
        ("clip_some", {}, "no config 'clip_some'"),
        (
            "positives:emoji",
            {},
            "config 'positives:emoji' makes triplets; use it",
        ),
    ):
        with pytest.raises(UserError, match=message):
            cir_jax.train(config, changes)


def test_processes_are_joined_before_jax_starts(model, place, monkeypatch):
    monkeypatch.setenv("CIR_JAX_COORDINATOR", "localhost:1")
    for call in (lambda: cir_jax.load(place), lambda: cir_jax.train("clip_sum:quicktest")):
        with pytest.raises(UserError, match=r"CIR_JAX_COORDINATOR set but not CIR_JAX_PROCESSES"):
            call()


def test_evaluation_is_that_of_the_command(place, model, fashion, tmp_path, capsys):
    flags = ["--config", "clip_sum:fashioniq", "--set", f"data.root={fashion}", "--out",
             str(tmp_path), "--set", "model.tower=auto", "--set", "eval.gallery=val",
             "--set", "eval.batch=16"]  # fmt: skip
    assert main.main(["evaluate", "--init-from", str(place), *flags]) == 0
    want = json.loads((tmp_path / "results.json").read_text())
    found = cir_jax.evaluate(model, "fashioniq", root=fashion, gallery="val", batch=16)
    assert json.loads(json.dumps(found)) == found
    assert found["scores"] == want["scores"] and found["protocol"] == want["protocol"]
    assert found["selection"] == "average_recall" and found["protocol"]["gallery"] == "val"
    for name, options, message in (
        ("fashion", {}, r"no 'fashion' in benchmarks; .* Did you mean 'fashioniq'"),
        ("fashioniq", {"galery": "val"}, r"no option 'galery'; there are: .* mean 'gallery'"),
        ("fashioniq", {"gallery": "all"}, r"gallery='all'"),
        ("fashioniq", {"examples": "many"}, r"examples=many"),
    ):
        with pytest.raises(UserError, match=message):
            cir_jax.evaluate(model, name, root=fashion, **options)
    with pytest.raises(UserError, match=r"no FashionIQ annotations for split 'val' in .*nowhere"):
        cir_jax.evaluate(model, "fashioniq", root=fashion / "nowhere")


def test_saved_and_loaded_it_is_the_same(model, paths, tmp_path):
    file = model.save(tmp_path / "x.safetensors")
    again = cir_jax.load(str(file))
    assert (again.name, again.tower, again.pad) == (model.name, model.tower, model.pad)
    np.testing.assert_array_equal(again.encode_images(paths), model.encode_images(paths))
    np.testing.assert_array_equal(
        again.encode_queries(paths[:3], TEXTS), model.encode_queries(paths[:3], TEXTS)
    )
    with pytest.raises(UserError, match=r"x.pt: this layout is a safetensors file; name it x.safe"):
        model.save(tmp_path / "x.pt")


def test_both_trees_of_stage_two_are_saved(place, paths, tmp_path):
    functions = published.functions()
    index = importing.read(place, functions).query
    query = {p: x + 0.1 if p.startswith("text/") else x for p, x in index.items()}
    from cir_jax import config

    settings = config.load("base", [f"model.tower={VIT}", "model.dtype=float32", "data.pad=square",
                                    "eval.benchmark=none"])  # fmt: skip
    weights.save_run(tmp_path / "run", settings, functions, weights.Weights(index, query, {}))
    run = cir_jax.load(tmp_path / "run")
    file = cir_jax.load(run.save(tmp_path / "x.safetensors"))
    images = pixels(paths[:3], pad="square")
    compiled = by_hand(functions)
    reference = compiled.reference(index, images, token_ids(TEXTS))
    want = compiled.compose(query, reference, token_ids(TEXTS))
    for one in (run, file):
        assert one.pad == "square"
        rows, found = one.encode_images(paths[:3]), one.encode_queries(paths[:3], TEXTS)
        np.testing.assert_allclose(rows, compiled.target(index, images), atol=1e-5)
        np.testing.assert_allclose(found, want, atol=1e-5)


def test_devices(place, model, paths):
    rows, query = model.encode_images(paths), model.encode_queries(paths[:3], TEXTS)
    assert model._mesh.size == 8
    for device, size in (
        ("cpu", 8), (jax.devices()[3], 1), (meshes.make(4, 2), 8),
    ):  # fmt: skip
        one = cir_jax.load(place, device=device)
        assert one._mesh.size == size
        np.testing.assert_allclose(one.encode_images(paths), rows, atol=1e-5)
        np.testing.assert_allclose(one.encode_queries(paths[:3], TEXTS), query, atol=1e-5)
        order, want = (m.rank(query, rows, k=3)[0] for m in (one, model))
        np.testing.assert_array_equal(order, want)
    for wrong, message in (
        ("abacus", r"device='abacus': .*; None is all of \["),
        (jax.make_mesh((8,), ("x",)), r"device is a mesh with the axes \('x',\), not"),
        (3, r"device is a int; give 'cpu', a jax.Device, a mesh or None"),
    ):
        with pytest.raises(UserError, match=message):
            cir_jax.load(place, device=wrong)


def test_types_of_computation(place, model, paths):
    rows = model.encode_images(paths)
    narrow = cir_jax.load(place, dtype="bfloat16").encode_images(paths)
    assert narrow.dtype == np.float32 and 1e-4 < np.abs(narrow - rows).max() < 0.1
    for dtype in ("float32", "auto"):
        one = cir_jax.load(place, dtype=dtype)
        assert one.config.model.dtype == "float32"  # of "auto" on a CPU
        np.testing.assert_array_equal(one.encode_images(paths), rows)
    with pytest.raises(UserError, match=r"dtype='?float8"):
        cir_jax.load(place, dtype="float8")
