# SPDX-License-Identifier: Apache-2.0
"""A served model goes everywhere a model goes: benchmarks, stage two, an index, and back."""

import json

import numpy as np
import pytest

import cir_jax
from cir_jax import config, contract
from cir_jax.errors import ServerError, UserError
from cir_jax.evals import benchmark
from cir_jax.main import main
from cir_jax.retrieval import load
from cir_jax.training import train
from tests import runs
from tests.embedders.colours import Colours, section, vector

pytestmark = pytest.mark.usefixtures("quick")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def at(patch, folder):
    """What a user has kept, and has named, is below the folder."""
    patch.setenv("CIR_JAX_CACHE", str(folder / "cache"))
    patch.setenv("XDG_STATE_HOME", str(folder / "state"))


def changes(server, root, *more):
    return [
        f"model.url={server.url}", "model.tower=tiny", "model.key_variable=", f"data.root={root}",
        "data.threads=2", "model.hidden=8", "eval.examples=2", "model.dtype=float32", *more,
    ]  # fmt: skip


def flags(*values):
    return [flag for value in values for flag in ("--set", value)]


@pytest.mark.parametrize("composition", ["server", "sum"])
def test_evaluation_gives_what_the_vectors_give(tmp_path, composition, capsys):
    root = runs.write_cirr(tmp_path / "data", images=8, triplets=6)
    with Colours() as server:
        more = changes(server, root, f"model.composition={composition}")
        argv = [
            "evaluate",
            "--config",
            "served:cirr",
            *flags(*more),
            "--out",
            str(tmp_path / "out"),
        ]
        assert main([*argv, "--save", "features.npz"]) == 0
        asked = server.count()
        assert main(argv) == 0
        assert server.count() == asked  # all of it is kept
    saved = np.load(tmp_path / "out" / "features.npz")
    loaded = config.load("served:cirr", more)
    task = benchmark.build(loaded).task
    read = lambda path: open(path, "rb").read()
    images = np.stack([vector(read(path), "") for path in task.paths])
    np.testing.assert_allclose(saved["images"][:, 0], unit(images), atol=1e-6)
    for row, path, triplet in zip(saved["queries"], task.references, task.triplets, strict=True):
        both = vector(read(path), triplet.eval_text)
        apart = vector(read(path), "") + vector(None, triplet.eval_text)
        want = both if composition == "server" else apart
        np.testing.assert_allclose(row, unit(want), atol=1e-6)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["served"]["model"] == "tiny" and results["served"]["width"] == 5
    said = capsys.readouterr().out
    assert "recall" in said and f"server {server.url}" in said and "vectors a second" in said


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(server, folder of a run of stage two, its results, inputs asked for, images)."""
    folder = tmp_path_factory.mktemp("trained")
    patch = pytest.MonkeyPatch()
    at(patch, folder)
    root = runs.write_fashioniq(folder / "data", images=12, triplets=8, categories=("dress",))
    with Colours() as server:
        more = changes(server, root, f"workdir={folder / 'run'}", "batch=8", "epochs=6",
                       "eval.every=3", "log_every=1", "optim.learning_rate=0.02")  # fmt: skip
        results = train.train(config.load("served:fashioniq,stage=2", more))
        yield server, folder, results, server.count()
    patch.undo()


def test_stage_two_trains_a_head(trained, monkeypatch):
    server, folder, results, asked = trained
    at(monkeypatch, folder)
    lines = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert results["finished"] and losses[-1] < losses[0]
    # Each image once, each text with its reference once; golden inputs beside them.
    assert asked < 12 + 3 * 16 + 12
    _, retriever = load.from_run(folder / "run")
    start = load.from_weights(config.load("served:fashioniq", [
        f"model.url={server.url}", "model.tower=tiny", "model.key_variable=", "model.hidden=8",
    ]), "")[1]  # fmt: skip
    image = str(next((folder / "data" / "images").iterdir()))
    one, other = (r.encode_queries([image], ["blue"]) for r in (retriever, start))
    np.testing.assert_allclose(other[0], unit(vector(open(image, "rb").read(), "blue")), atol=1e-6)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(*(r.encode_gallery([image]) for r in (retriever, start)))


def test_a_trained_head_is_loaded_indexed_and_asked(trained, monkeypatch, tmp_path):
    server, folder, *_ = trained
    at(monkeypatch, folder)
    model = cir_jax.load(folder / "run")
    assert "served tiny, 5 values per image" in repr(model) and model.count_tokens(["a"]) == [5]
    before = server.count()
    index = model.index(folder / "data" / "images", out=tmp_path / "index")
    assert len(index) == 12 and server.count() == before
    image = str(folder / "data" / "images" / "B0000.png")
    hits = index.search(image, "blue", k=3)
    query = model.encode_queries([image], ["blue"])
    rows = model.encode_images([folder / "data" / "images" / hit.name for hit in hits])
    np.testing.assert_allclose([hit.score for hit in hits], (rows[:, 0] @ query[0]), atol=1e-6)
    assert index.search(text="green", k=1)[0].name in ("B0001.png", "B0005.png", "B0009.png")
    scores = cir_jax.evaluate(model, "fashioniq", folder / "data", categories=("dress",))["scores"]
    assert all(0 <= value <= 100 for value in scores.values())


def test_a_server_becomes_a_run_folder(trained, monkeypatch, tmp_path, capsys):
    """Which is indexed and asked as any other is."""
    server, folder, *_ = trained
    at(monkeypatch, folder)
    told = flags("model.tower=tiny", "model.key_variable=", "model.dtype=float32")
    run, out = str(tmp_path / "run"), str(tmp_path / "index")
    assert main(["import", server.url, run, "--model", "served", *told]) == 0
    photos = folder / "data" / "images"
    assert main(["index", str(photos), "--model", run, "--out", out]) == 0
    index = cir_jax.open_index(out)
    red = str(photos / "B0000.png")
    [hit] = index.search(red, "green", k=1, where="name != 'B0000.png'")
    want = unit(vector(open(red, "rb").read(), "green")) @ unit(
        vector((photos / hit.name).read_bytes(), "")
    )
    assert hit.score == pytest.approx(want, abs=1e-6)
    # Of a stranger's folder nothing is sent to the server that it names.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nobody"))
    before = len(server.bodies)
    with pytest.raises(UserError, match=r"names a server, model.url='http.*Nothing was sent"):
        cir_jax.load(run)
    load.from_run(run, overrides=[f"model.url={server.url}"])
    assert len(server.bodies) == before
    with pytest.raises(UserError, match=r"served tiny is an embedder of others and a head on it"):
        index.model.save(tmp_path / "a.safetensors")
    assert main(["import", server.url, "x", str(tmp_path / "y"), "--model", "served"]) == 2
    assert "an embedder is one server or one folder" in capsys.readouterr().err


def test_a_server_that_is_gone_stops_an_index(tmp_path, monkeypatch):
    """No image of the folder is to blame, so none is listed as unreadable."""
    runs.write_image(tmp_path / "photos" / "a.png", (9, 9, 9))
    told = flags("model.tower=tiny", "model.wait=0.05", "model.width=5", "model.key_variable=")
    with Colours() as server:
        argv = ["import", server.url, str(tmp_path / "run"), "--model", "served", *told]
        assert main(argv) == 0
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "empty"))
    model = cir_jax.load(tmp_path / "run")
    with pytest.raises(ServerError, match="given no reply"):
        model.index(tmp_path / "photos", out=tmp_path / "index")
    with pytest.raises(ServerError, match="given no reply"):
        model.encode_images([tmp_path / "photos" / "a.png"])
    assert not list(tmp_path.rglob("unreadable.jsonl"))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_configs_build(stage):
    for name in ("cirr", "fashioniq", "circo", "genecis", "emoji", "folder"):
        loaded = config.load(f"served:{name},stage={stage}", ["model.width=6"])
        assert (loaded.data.name, loaded.eval.benchmark) == (name, name)
        made = contract.build(loaded.model)
        assert made.query_paths == ["head/first/bias", "head/first/kernel", "head/last/kernel"]
        assert not made.index_paths and made.image_size == 8


def test_an_untrained_model_is_the_embedder(tmp_path):
    """To the last bit, on the devices of the test, in both compositions."""
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 6, 7)).astype(np.float32)
    for composition in ("server", "sum"):
        made = contract.build(section("http://127.0.0.1:9", width=7, composition=composition))
        params = made.init(0)
        reference = made.reference(params, image[:, None, None], text.view(np.int32))
        query = made.compose(params, reference, text.view(np.int32))
        from cir_jax.towers.layers import unit as exact

        want = text if composition == "server" else image + text
        np.testing.assert_array_equal(query, exact(want))
        np.testing.assert_array_equal(reference[:, 0], image)
