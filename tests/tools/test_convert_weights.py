# SPDX-License-Identifier: Apache-2.0
"""`tools/convert_weights.py`, as it is called: `verify`, and the commands that it hands on."""

import re

import pytest
import torch
from transformers import CLIPModel

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
