# SPDX-License-Identifier: Apache-2.0
"""`tools/convert_weights.py`, as it is called: what it prints, writes and refuses."""

import re

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from cir_jax import weights
from tests.convert import published
from tests.convert.published import RESNET, VIT
from tests.training.test_init_from import combiner
from tools import convert_weights


def call(*arguments):
    return convert_weights.main([str(a) for a in arguments])


@pytest.fixture
def best(tmp_path):
    """best.pt of a ResNet, half precision."""
    return published.write("spn", tmp_path, published.mixed(published.state(RESNET)), RESNET)


def test_inspect_says_what_a_file_holds(best, capsys):
    assert call("inspect", best) == 0
    said = capsys.readouterr().out
    assert f"{best}: torch, spn.pt" in said and "  epoch = 7" in said
    about = r"  spn: best.pt of the released runs, .*; model.name=clip_sum model.tower="
    assert re.search(about + re.escape(RESNET), said)
    assert "; a part of model.name=clip_combiner" in said
    assert "  state_dict: 171 tensors, 7.2 MB" in said
    assert "    clip.visual.conv1.weight  float16 [4, 3, 3, 3]\n" in said
    counter = "clip.visual.bn1.num_batches_tracked  int64 []  (not read: steps that a BatchNorm"
    assert counter in said


def test_inspect_says_what_is_in_doubt(tmp_path, capsys):
    assert call("inspect", published.write("openai", tmp_path, published.state())) == 0
    assert "in doubt: its tensors do not say whether" in capsys.readouterr().out


def test_inspect_of_something_else(tmp_path, capsys):
    torch.save({"a": {"x": torch.zeros(2, 3)}, "step": 4}, tmp_path / "other.pt")
    assert call("inspect", tmp_path / "other.pt") == 0
    said = capsys.readouterr().out
    assert "step = 4" in said and "no model of this project" in said and "x  float32 [2, 3]" in said


def test_import_then_export_then_verify(best, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "back.pt"
    assert call("import", best, run) == 0
    assert f"{run}: model.name=clip_sum model.tower={RESNET}" in capsys.readouterr().out
    assert call("inspect", run) == 0
    assert f"a run of model.name=clip_sum model.tower={RESNET}" in capsys.readouterr().out
    assert call("export", run, out, "--format", "spn", "--dtype", "source", "--epoch", 7) == 0
    got, want = torch.load(out), torch.load(best)
    assert got["epoch"] == want["epoch"] and list(got) == list(want)
    for name, tensor in want["state_dict"].items():
        assert torch.equal(got["state_dict"][name], tensor)
        assert got["state_dict"][name].dtype == tensor.dtype
    for place in (best, run, out):
        assert call("verify", place) == 0
        said = capsys.readouterr().out
        layers = re.findall(r"^  (\S.*?) +(\d\.\d\de[-+]\d\d)$", said, re.M)
        assert len(layers) == 15 and layers[0][0] == "visual/stem" and layers[-1][0] == "query"
        assert max(float(x) for _, x in layers) < 1e-5


def test_verify_of_a_folder_runs_transformers(tmp_path, capsys):
    place = published.write("huggingface", tmp_path, published.state())
    assert call("verify", place, "--batch", 3) == 0
    said = capsys.readouterr().out
    assert f"PyTorch: transformers' CLIPModel of {place}; 3 random images" in said
    worst = float(re.search(r"largest difference: (\S+)", said)[1])
    assert worst < 1e-5
    assert call("verify", place, "--limit", worst / 2) == 2
    assert "is over the limit of" in capsys.readouterr().err


def test_verify_notices_another_function(tmp_path, capsys):
    """The file says QuickGELU; told that it is GELU, we compute something else."""
    tensors = published.state()
    place = published.write("openai", tmp_path, tensors)
    assert call("verify", place, "--set", f"model.tower={VIT}") == 0
    both = published.write("open_clip", tmp_path / "b", tensors, VIT + "+gelu")
    assert call("verify", both) == 0
    capsys.readouterr()
    quick = CLIPModel.from_pretrained(published.write("huggingface", tmp_path / "h", tensors))
    quick.config.text_config.hidden_act = "gelu"
    quick.save_pretrained(tmp_path / "odd")
    assert call("verify", tmp_path / "odd") == 2
    assert "hidden_act" in capsys.readouterr().err


def test_two_files_of_one_model(tmp_path, capsys):
    place = published.write("clip4cir", tmp_path, published.state())
    file, state = combiner(tmp_path / "combiner.pt")
    run, out = tmp_path / "run", tmp_path / "out.pt"
    assert call("import", place, file, run) == 0
    assert f"{run}: model.name=clip_combiner model.tower={VIT}" in capsys.readouterr().out
    for places in ((place, file), (run,)):
        assert call("verify", *places) == 0
    assert call("export", run, out, "--format", "combiner", "--epoch", 9) == 0
    got = torch.load(out)
    assert got["epoch"] == 9
    assert got["Combiner"].keys() == state.keys()
    assert all(torch.equal(got["Combiner"][n], x) for n, x in state.items())
    assert call("export", run, tmp_path / "clip.pt", "--format", "clip4cir") == 0
    tensors = torch.load(tmp_path / "clip.pt")["CLIP"]
    assert all(torch.equal(tensors[n], x) for n, x in published.state().items())
    capsys.readouterr()
    assert call("import", file, tmp_path / "other") == 2
    assert "no model here has these; give --model NAME" in capsys.readouterr().err


def test_any_weights_can_be_exported_without_an_import(best, tmp_path):
    place = published.write("huggingface", tmp_path / "h", published.state())
    published.huggingface.write_processor(place, published.sizes.find(VIT), 77, [])
    assert call("export", place, tmp_path / "a.pt", "--format", "clip4cir") == 0
    assert call("export", tmp_path / "a.pt", tmp_path / "o", "--format", "open_clip") == 0
    assert call("export", tmp_path / "o", tmp_path / "b", "--format", "huggingface") == 0
    assert (
        call("export", tmp_path / "b", tmp_path / "c.safetensors", "--format", "safetensors") == 0
    )
    assert (
        call("export", tmp_path / "c.safetensors", tmp_path / "d", "--format", "huggingface") == 0
    )
    models = [CLIPModel.from_pretrained(p).state_dict() for p in (place, tmp_path / "d")]
    assert all(torch.equal(x, models[1][n]) for n, x in models[0].items())
    assert len(models[0]) == 94
    ids = CLIPTokenizer.from_pretrained(tmp_path / "d")("is darker and has, no").input_ids
    assert ids == [49406, 533, 18737, 537, 791, 267, 871, 49407]


def test_a_tree_of_stage_two(tmp_path):
    functions = published.functions()
    index = {p: np.asarray(x) for p, x in functions.init(0).items()}
    query = {p: x + 1 if p.startswith("text/") else x for p, x in index.items()}
    config = convert_weights.configs.load(
        "base", [f"model.tower={VIT}", "model.dtype=float32", "eval.benchmark=none"]
    )
    found = weights.Weights(index, query, {})
    weights.save_run(tmp_path / "run", config, functions, found)
    for tree, text in (("index", index), ("query", query), ("retrieval", query)):
        out = tmp_path / f"{tree}.pt"
        assert call("export", tmp_path / "run", out, "--format", "spn", "--tree", tree) == 0
        got = torch.load(out)["state_dict"]["clip.text_projection"].numpy()
        np.testing.assert_array_equal(got, text["text/proj"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("inspect", "none.pt"), "none.pt does not exist; give a file of weights"),
        (("export", "BEST", "x", "--format", "onnx"), "--format=onnx is unknown; there are: safet"),
        (("export", "BEST", "x.pt", "--format", "spn", "--tree", "all"), "--tree=all is unknown"),
        (("export", "BEST", "x.pt", "--format", "spn", "--dtype", "f"), "--dtype=f is unknown"),
        (("import", "BEST", "BEST", "run", "--model", "clip_sum"), "are in more than one"),
        (
            ("export", "BEST", "x.safetensor", "--format", "openai"),
            "x.pt, or .safetensors, as what",
        ),
        (("export", "BEST", "x", "--format", "spn"), "x: name the file x.pt, as what it will be"),
        (("export", "BEST", "x.pt", "--format", "spn", "--epoch", "-1"), "--epoch=-1 is below 0"),
        (("import", "BEST", "run", "--model", "clip_some"), "no 'clip_some' in models"),
        (("export", "BEST", "/proc/none/x.pt", "--format", "spn"), "cannot be written"),
    ],
)
def test_what_cannot_be_done(arguments, message, best, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*(best if a == "BEST" else a for a in arguments)) == 2
    assert message in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in ("x", "x.pt", "run"))


def test_a_run_is_not_written_over(best, tmp_path, capsys):
    assert call("import", best, tmp_path / "run") == 0
    assert call("import", best, tmp_path / "run") == 2
    assert "holds a run already; give another folder" in capsys.readouterr().err


def test_a_run_and_a_file_of_one_model(tmp_path, capsys):
    place = published.write("clip4cir", tmp_path, published.state())
    file, _ = combiner(tmp_path / "combiner.pt")
    assert call("import", place, tmp_path / "sum") == 0
    assert call("import", tmp_path / "sum", file, tmp_path / "both") == 2
    assert "a run is one of several places; say of what, --model NAME" in capsys.readouterr().err
    for n, places in enumerate(((tmp_path / "sum", file), (file, tmp_path / "sum"))):
        run = tmp_path / f"both{n}"
        assert call("import", *places, run, "--model", "clip_combiner") == 0
        assert f"{run}: model.name=clip_combiner model.tower={VIT}" in capsys.readouterr().out
    # What is said of a run is not passed over.
    assert call("export", tmp_path / "sum", "x", "--format", "spn", "--model", "clip_combiner") == 2
    assert "lacks combiner/" in capsys.readouterr().err
    assert call("export", file, "x", "--format", "combiner", "--step", "3") == 2
