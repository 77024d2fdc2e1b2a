# SPDX-License-Identifier: Apache-2.0
"""`cir-jax inspect`, `import` and `export`: what they print, write and refuse."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import CLIPModel, CLIPTokenizer

from cir_jax import config, main, weights
from cir_jax.retrieval import golden
from tests.convert import published
from tests.convert.published import RESNET, VIT
from tests.training.test_init_from import combiner


def call(*arguments):
    return main.main([str(a) for a in arguments])


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


def test_any_weights_can_be_exported_without_an_import(best, tmp_path, capsys):
    place = published.write("huggingface", tmp_path / "h", published.state())
    published.huggingface.write_processor(place, published.sizes.find(VIT), 77, [])
    assert call("export", place, tmp_path / "a.pt", "--format", "clip4cir") == 0
    export = ("export", tmp_path / "a.pt", tmp_path / "o", "--format", "open_clip")
    capsys.readouterr()
    # Files of CLIP4CIR were trained with padding and do not say so; this one was not.
    assert call(*export) == 2 and not (tmp_path / "o").exists()
    said = capsys.readouterr().err
    assert "a.pt: of the golden inputs differ pixels (made by pad=none" in said
    assert "--set data.pad=" in said
    assert call(*export, "--set", "data.pad=none") == 0
    taken = ("--set", "data.loading=released")  # as files of CLIP4CIR are; open_clip's are natural
    assert call("export", tmp_path / "o", tmp_path / "b", "--format", "huggingface") == 2
    assert call("export", tmp_path / "o", tmp_path / "b", "--format", "huggingface", *taken) == 0
    ours = (tmp_path / "c.safetensors", "--format", "safetensors")
    assert call("export", tmp_path / "b", *ours, *taken) == 0
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
    settings = config.load(
        "base", [f"model.tower={VIT}", "model.dtype=float32", "eval.benchmark=none"]
    )
    found = weights.Weights(index, query, {})
    weights.save_run(tmp_path / "run", settings, functions, found)
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
    # The CLIP alone is another model, which gives other vectors.
    assert call("export", run, tmp_path / "clip.pt", "--format", "openai") == 0
    assert not golden.beside(tmp_path / "clip.pt").exists()
    # What is said of a run is not passed over.
    assert call("export", tmp_path / "sum", "x", "--format", "spn", "--model", "clip_combiner") == 2
    assert "lacks combiner/" in capsys.readouterr().err
    assert call("export", file, "x", "--format", "combiner", "--step", "3") == 2


def test_commands_are_listed_by_their_names(capsys):
    assert call("--help") == 0
    listed = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.M)
    assert {"export", "import", "inspect"} < set(listed) and "import_" not in listed
    assert call("import_") == 2
    assert "Did you mean 'import'?" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_error(best):
    command = [sys.executable, "-m", "cir_jax.main", "inspect", str(best)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def data_of(run):
    section = weights.config_of(run).data
    return section.pad, section.target_ratio


def test_a_run_says_how_images_are_padded(best, tmp_path, capsys):
    folder = published.write("huggingface", tmp_path / "h", published.state())
    bare = published.write("openai", tmp_path / "o", published.state())
    tower = ("--set", f"model.tower={VIT}")
    for name, place, flags, pad in (
        ("spn", best, (), "target"),
        ("clip", folder, (), "none"),
        ("asked", folder, ("--set", "data.pad=square"), "square"),
        ("bare", bare, tower, "target"),
        ("said", bare, (*tower, "--set", "data.pad=none"), "none"),
    ):
        assert call("import", place, tmp_path / name, *flags) == 0
        said = capsys.readouterr().out
        assert data_of(tmp_path / name) == (pad, 1.25)
        assert ("does not say how images are padded" in said) == (name == "bare")
    assert call("inspect", best) == 0
    assert "data.pad=target data.target_ratio=1.25" in capsys.readouterr().out


def metadata(file):
    with safe_open(file, "np") as opened:
        return json.loads(opened.metadata()["cir_jax"])


def test_our_own_layout_says_how_images_and_texts_are_made_inputs(best, tmp_path, capsys):
    run, file, again = (tmp_path / name for name in ("run", "a.safetensors", "b.safetensors"))
    changes = ("data.pad=target", "data.target_ratio=1.5", "data.text_lengths=8,77",
               "data.on_long=truncate")  # fmt: skip
    assert call("import", best, run, *(x for c in changes for x in ("--set", c))) == 0
    ours = ("--format", "safetensors")
    assert call("export", run, file, *ours) == call("export", file, again, *ours) == 0
    for one in (file, again):
        data = metadata(one)["data"]
        assert (data["pad"], data["target_ratio"], data["on_long"]) == ("target", 1.5, "truncate")
        assert data["text_lengths"] == [8, 77]
    # What is not known is not written.
    bare = published.write("openai", tmp_path, published.state())
    tower = ("--set", f"model.tower={VIT}")
    assert call("export", bare, file, *ours, *tower) == 0
    assert "data" not in metadata(file)
    assert call("export", bare, file, *ours, *tower, "--set", "data.pad=square") == 0
    assert metadata(file)["data"]["pad"] == "square"


def test_another_layout_that_cannot_say_the_padding(best, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out.pt"
    assert call("import", best, run, "--set", "data.pad=none") == 0
    capsys.readouterr()
    assert call("export", run, out, "--format", "spn") == 0
    said = capsys.readouterr().out
    assert f"{out}: who loads this takes data.pad=target, as its layout has it" in said
    assert "used with data.pad=none" in said
    assert call("export", run, tmp_path / "o", "--format", "open_clip") == 0
    said = capsys.readouterr().out
    assert "who loads this takes data.pad" not in said
    # Of a CLIP nobody says how files become pictures, and this one saw those of published runs.
    assert "o: who loads this takes data.loading=natural, but the model was trained with " in said
    assert "data.loading=released; say so there" in said
