# SPDX-License-Identifier: Apache-2.0
"""Training and evaluating from weights that PyTorch left behind, through the commands."""

import json
import shutil

import numpy as np
import pytest
import torch

from cir_jax import config, main, weights
from cir_jax.convert import importing
from cir_jax.runtime import checkpoint
from cir_jax.training.state import start
from tests import runs
from tests.convert import published
from tests.convert.published import VIT
from tests.models import tgcir_problem


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write_fashioniq(tmp_path_factory.mktemp("fashioniq"))


@pytest.fixture
def places(tmp_path):
    """Layout -> file or folder of the same weights."""

    def write(layout, tower=VIT, seed=0):
        return published.write(layout, tmp_path / layout, published.state(tower, seed), tower)

    return write


def flags(root, workdir, *changes, tower=VIT, stage=1, config="clip_sum"):
    keys = (
        f"workdir={workdir}", f"data.root={root}", f"model.tower={tower}", "model.dtype=float32",
        "batch=8", "steps=1", "data.threads=2", "eval.batch=16", "eval.examples=2", "log_every=1",
        "optim.learning_rate=0.0", "eval.benchmark=none",
        *(["loss.bank_block=16"] if stage == 2 else []), *changes,
    )  # fmt: skip
    found = ["--config", f"{config}:fashioniq,stage={stage}"]
    return found + [x for key in keys for x in ("--set", key)]


def train(*arguments):
    return main.main(["train", *map(str, arguments)])


def held(workdir, tower=VIT, model="clip_sum"):
    found = weights.load(str(workdir), published.functions(tower, model))
    return found.index, found.query


def same(got, want):
    assert got.keys() == want.keys()
    assert all(np.asarray(got[p]).tobytes() == want[p].tobytes() for p in want)


@pytest.mark.parametrize("layout", ["spn", "huggingface"])
def test_training_starts_from_the_file(layout, root, places, tmp_path):
    place = places(layout)
    assert train(*flags(root, tmp_path / "run"), "--init-from", place) == 0
    want = importing.read(place, published.functions())
    index, query = held(tmp_path / "run")  # the learning rate was zero
    same(index, want.query)
    same(query, want.query)
    record = checkpoint.Checkpoints(tmp_path / "run" / checkpoint.LAST).record(1)
    assert record["source"] == json.loads(json.dumps(want.record))
    assert record["source"]["files"][0]["sha256"]


def test_from_the_archive_to_stage_two_and_its_record(root, tmp_path):
    archive = published.torchscript(tmp_path / "archive.pt")
    one, two = tmp_path / "one", tmp_path / "two"
    moving = "optim.learning_rate=0.001"
    assert train(*flags(root, one, moving, tower="auto"), "--init-from", archive) == 0
    assert weights.config_of(one).model.tower == VIT
    archive.unlink()
    # Its size is in the run: the same command resumes without the file.
    again = flags(root, one, moving, "steps=2", tower="auto")
    assert train(*again, "--init-from", archive) == 0
    source = checkpoint.Checkpoints(one / checkpoint.LAST).record(2)["source"]
    assert source["layout"] == "openai" and source["container"] == "torchscript"
    changed = flags(root, two, moving, tower="auto", stage=2)
    assert train(*changed, "--init-from", one) == 0
    index, query = held(two)
    same(index, held(one)[0])
    differ = {p for p in query if query[p].tobytes() != index[p].tobytes()}
    assert differ and all(p.startswith("text/") for p in differ)
    chain = checkpoint.Checkpoints(two / checkpoint.LAST).record(1)["source"]
    assert (chain["layout"], chain["place"]) == ("run", str(one))
    assert chain["source"] == source


def test_evaluating_weights_equals_evaluating_the_run(root, places, tmp_path, capsys):
    place = places("spn")
    common = ["--config", "clip_sum:fashioniq", "--set", f"data.root={root}",
              "--set", "model.tower=auto", "--set", "model.dtype=float32"]  # fmt: skip
    out = tmp_path / "out"
    assert main.main(["evaluate", "--init-from", str(place), *common, "--out", str(out)]) == 0
    assert str(place) in capsys.readouterr().out
    assert train(*flags(root, tmp_path / "run"), "--init-from", place) == 0
    again = ["--set", "eval.benchmark=fashioniq"]
    assert main.main(["evaluate", "--workdir", str(tmp_path / "run"), *again]) == 0
    results = [
        json.loads((folder / "results.json").read_text())
        for folder in (out, tmp_path / "run" / "evaluation")
    ]
    assert results[0]["scores"] == results[1]["scores"]
    beside = ["--set", f"workdir={tmp_path / 'run'}"]
    assert main.main(["evaluate", "--init-from", str(place), *common, *beside]) == 2
    assert "holds a run, and the report in it would be of" in capsys.readouterr().err
    assert len(set(results[0]["scores"].values())) > 1
    assert (out / "report.html").is_file()


def test_a_submission_from_weights(places, tmp_path):
    root = runs.write_cirr(tmp_path / "cirr")
    arguments = ["--config", "clip_sum:cirr", "--set", f"data.root={root}",
                 "--set", "model.tower=auto", "--out", str(tmp_path / "sub")]  # fmt: skip
    assert main.main(["submit", "--init-from", str(places("spn")), *arguments]) == 0
    names = sorted(p.name for p in (tmp_path / "sub").iterdir())
    assert len(names) == 2 and all("spn" in name for name in names)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name either a trained run, --workdir RUN, or weights and what to score them on"),
        (["--workdir", "a", "--init-from", "b"], "name either a trained run"),
        (["--init-from", "b"], "--init-from needs the benchmark to score on, --config"),
        (["--workdir", "a", "--config", "clip_sum"], "--config=clip_sum belongs to --init-from"),
        (["--init-from", "no.pt", "--config", "clip_sum"], "no.pt does not exist; give a file"),
        (
            ["--init-from", "a", "--config", "clip_sum", "--set", "init_from=b"],
            "--init-from a and init_from=b are two places to start from; give one",
        ),
    ],
)
def test_flags_that_do_not_go_together(arguments, message, capsys):
    assert main.main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_gone_and_one_that_is_damaged(root, places, tmp_path, capsys):
    place = places("spn")
    place.write_bytes(place.read_bytes()[:1000])
    for bad, message in ((tmp_path / "no.pt", "does not exist"), (place, "spn.pt")):
        assert train(*flags(root, tmp_path / "run"), "--init-from", bad) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def combiner(path, width=32, **changes):
    rng = torch.Generator().manual_seed(5)
    sizes = {
        "text_projection_layer": (4 * width, width), "image_projection_layer": (4 * width, width),
        "combiner_layer": (8 * width, 8 * width), "output_layer": (width, 8 * width),
        "dynamic_scalar.0": (8 * width, 8 * width), "dynamic_scalar.3": (1, 8 * width),
    }  # fmt: skip
    state = {}
    for name, shape in sizes.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=rng) * 0.1
        state[f"{name}.bias"] = torch.randn(shape[0], generator=rng) * 0.1
    torch.save({"epoch": 9, "Combiner": state | changes}, path)
    return path, state


def test_a_combiner_and_its_clip_are_two_files(root, places, tmp_path):
    path, state = combiner(tmp_path / "combiner.pt")
    place = places("clip4cir")
    for order in ((place, path), (path, place)):
        found = weights.load(",".join(map(str, order)), published.functions(VIT, "clip_combiner"))
        got = found.query["combiner/gate1/kernel"]
        np.testing.assert_array_equal(got, state["dynamic_scalar.0.weight"].numpy().T)
        assert len(found.record["parts"]) == 2
    run = tmp_path / "run"
    arguments = flags(root, run, tower="auto", config="clip_combiner")
    assert train(*arguments, "--init-from", place, path) == 0
    same(held(run, VIT, "clip_combiner")[1], found.query)


def test_a_new_combiner_on_a_clip(root, places, tmp_path, capsys):
    place, run = places("spn"), tmp_path / "run"
    assert train(*flags(root, run, config="clip_combiner"), "--init-from", place) == 0
    assert "12 leaves in all): they start at random, seed 42" in capsys.readouterr().out
    functions = published.functions(VIT, "clip_combiner")
    query = held(run, VIT, "clip_combiner")[1]
    drawn = functions.init(42)
    want = importing.read(place, functions).query
    same({p: x for p, x in query.items() if p in want}, want)
    new = {p: np.asarray(x) for p, x in drawn.items() if p not in want}
    same({p: x for p, x in query.items() if p not in want}, new)
    # The same from a run of clip_sum.
    held_sum = importing.read(place, published.functions())
    loaded = config.load("base", [f"model.tower={VIT}", "eval.benchmark=none"])
    weights.save_run(tmp_path / "sum", loaded, published.functions(), held_sum)
    other = weights.load(str(tmp_path / "sum"), functions, seed=42)
    same(other.query, query)
    # What would be random is not evaluated.
    common = ["--config", "clip_combiner:fashioniq", "--set", f"data.root={root}",
              "--set", f"model.tower={VIT}"]  # fmt: skip
    for origin in (place, tmp_path / "sum"):
        assert main.main(["evaluate", "--init-from", str(origin), *common]) == 2
        assert "lacks combiner/" in capsys.readouterr().err


def test_parts_that_do_not_make_a_model(places, tmp_path, capsys, root):
    path, _ = combiner(tmp_path / "combiner.pt")
    wide, _ = combiner(tmp_path / "wide.pt", width=64)
    place = str(places("spn"))
    arguments = flags(root, tmp_path / "run", config="clip_combiner")
    for given, message in (
        ((place, path, path), "are in more than one of them; give each part of the model once"),
        ((path,), "lacks "),
        ((place, wide), "of another shape"),
    ):
        assert train(*arguments, "--init-from", *given) == 2
        assert message in capsys.readouterr().err
    arguments = flags(root, tmp_path / "run", tower="auto", config="clip_combiner")
    assert train(*arguments, "--init-from", path) == 2
    assert "nothing there says the size of the encoders" in capsys.readouterr().err


def test_tokenizer_files_are_taken_over(root, places, tmp_path):
    place = places("huggingface")
    published.huggingface.write_processor(place, published.sizes.find(VIT), 77, [])
    names = {p.name for p in place.iterdir()} - {"config.json", "model.safetensors"}
    assert {"vocab.json", "preprocessor_config.json"} <= names
    run, second = tmp_path / "run", tmp_path / "second"
    assert train(*flags(root, run), "--init-from", place) == 0
    shutil.rmtree(place)
    assert train(*flags(root, second, stage=2), "--init-from", run) == 0
    for folder in (run, second):
        assert {p.name for p in weights.carried(folder)} == names


def test_stage_two_does_not_build_its_bank_by_random_parameters(places, root, tmp_path, capsys):
    chosen = flags(root, tmp_path / "run", stage=2, config="tgcir")
    assert train(*chosen, "--init-from", places("spn")) == 2
    said = capsys.readouterr().err
    assert "lacks image_projection/bias" in said and "Train stage one from these weights" in said


def test_stage_one_from_two_trees_says_which_it_takes(root, tmp_path, capsys):
    place = tgcir_problem.saved(tmp_path / "best.pt", tgcir_problem.theirs(2), epoch=3)
    changes = ["loss.auxiliary=()", f"model.context={tgcir_problem.CONTEXT}", f"init_from={place}"]
    chosen = flags(root, tmp_path / "run", *changes, tower=tgcir_problem.TOWER, config="tgcir")
    made, data = runs.set_up(config.load(chosen[1], chosen[3::2]))
    state, _ = start(made, data)
    said = capsys.readouterr().out
    assert "warning" in said and "masks" in said and "those of the query" in said
    query = tgcir_problem.weights(2).query
    np.testing.assert_array_equal(state.trained["masks"], query["masks"])
