# SPDX-License-Identifier: Apache-2.0
"""Every command and every Python block of the READMEs is run: as it stands on tiny data, or shrunk
by the flags below."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

import cir_jax
from cir_jax.datasets.readers import emoji
from cir_jax.main import main
from cir_jax.models.sprc.layouts import STAGE_ONE
from tests import readmes, runs, zero_shot_sets
from tests.convert import blip_files, published, published_sprc
from tests.embedders import colours
from tests.generation.scripted import Scripted, completion, prompt
from tests.readmes import COMMANDS
from tests.training.test_init_from import combiner
from tools import convert_weights

HERE = Path(__file__).parents[1]
TINY = (
    f"model.name={runs.stand_in('cross_attention')}",
    "model.tower=tiny-vit", "steps=2", "epochs=1", "batch=8", "eval.examples=2", "data.threads=2",
    "optim.warmup_steps=0", "data.text_lengths=32",
)  # fmt: skip


# Run by test_launch_commands, by test_documentation.py, by launch/test.sh itself, and against a
# server by tests/serving/test_process.py.
ELSEWHERE = (
    "bash launch/", "python tools/", "python -m pytest ", "ruff ", "mypy", "source .venv/",
    "cir-jax serve ", "curl ",
)  # fmt: skip
SERVED = "cir_jax/serving/README.md"  # its Python asks a server, see there


def test_readme_has_the_commands():
    assert COMMANDS[:2] == ["bash launch/demo.sh", "bash launch/test.sh"]
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("bash launch/")])
def test_launch_commands(command, tmp_path):
    """With --dry-run; what they start is run by the tests of tests/launch and tests/commands."""
    script, *flags = shlex.split(command)[1:]
    # Before what belongs to the command that is started, and after the action of tpu_pod.sh.
    at = flags.index("--") if "--" in flags else int(script == "launch/tpu_pod.sh")
    dry = [*flags[:at], "--dry-run", *flags[at:]]
    done = subprocess.run(
        ["bash", str(HERE / script), *dry],
        env=os.environ | {"CIR_JAX_VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the data sets lie where the README says."""
    root = tmp_path_factory.mktemp("readme")
    runs.write_fashioniq(root / "DATA/fashionIQ_dataset", categories=("dress", "shirt", "toptee"))
    runs.write_cirr(root / "DATA/cirr_dataset")
    mine = root / "DATA/mine"
    lines = []
    for i in range(16):
        runs.write_image(mine / "images" / f"{i}.jpg", list(runs.COLORS.values())[i % 4], i)
        lines.append(f'{{"reference": "{i}", "target": "{(i + 1) % 16}", "text": "next colour"}}')
    (mine / "train.jsonl").write_text("\n".join(lines))
    (mine / "val.jsonl").write_text("\n".join(lines[:4]))
    photos = [f"{color}.jpg" for color in runs.COLORS]
    for name, color in zip(photos, runs.COLORS.values(), strict=True):
        runs.write_image(root / "DATA/photos" / name, color)
    rows = ""
    for number, kind in enumerate(("shoe", "hat", "bag", "coat")):
        for color, rgb in runs.COLORS.items():
            name = f"{kind}/{color}.png"
            runs.write_image(root / "DATA/shop" / name, rgb, 10 * number + len(color))
            rows += f"{name},a {color} {kind},P{number}\n"
    (root / "DATA/shop.csv").write_text("image,title,product\n" + rows)
    titles = "".join(f"{name},a picture in {name[:-4]}\n" for name in photos)
    (root / "DATA/titles.csv").write_text("image,title\n" + titles)
    captions = {f"B{i:04d}": f"a dress, number {i}" for i in range(24)}
    runs.dump(root / "DATA/llava.json", captions)
    runs.write_image(root / "DATA/coco/train2014/1.jpg", (9, 9, 200))
    runs.write_image(root / "DATA/coco/train2014/2.jpg", (9, 200, 9))
    first, second = [1, "train2014/1.jpg"], [2, "train2014/2.jpg"]
    record = {"qid": 7, "query-image": first, "query-text": "greener", "target-image": second}
    runs.dump(root / "DATA/lasco_train.json", [record])
    zero_shot_sets.write_circo(root / "DATA/CIRCO")
    zero_shot_sets.write_genecis(root / "DATA/GeneCIS")
    emoji.prepare(root / "emoji", limit=300)
    weights(root / "DATA")
    table = root / "DATA/table"
    for i in range(8):
        runs.write_image(table / "images" / f"{i}.png", list(runs.COLORS.values())[i % 4], i)
    rows = "".join(f"{i}.png,{(i + 1) % 8}.png,next colour\n" for i in range(8))
    for split in ("train", "val"):
        (table / f"{split}.csv").write_text("reference,target,text\n" + rows)
    for name, text in readmes.EXAMPLES.items():
        (root / name).write_text(text)
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(root / "DATA/photos/red.jpg", root / name)
    shutil.copy(root / "DATA/best.pt", root / "best.pt")
    return root


def weights(data):
    """Tiny weights under the names of the README."""
    for name in ("RN50x4.pt", "ViT-B-16.pt"):  # a ResNet takes longer to compile
        published.torchscript(data / name, published.VIT)
    tensors = published.state()
    published.write("huggingface", data / "clip-vit-large-patch14", tensors)
    bge = published.write("huggingface", data / "BGE-VL-large", tensors) / "config.json"
    code = {"auto_map": {"AutoModel": "modeling_MMRet_CLIP.CLIPModel"}}
    bge.write_text(json.dumps(json.loads(bge.read_text()) | code))
    torch.save({"state_dict": tensors, "model_ema": tensors}, data / "with_ema.pt")
    for layout, name in (("spn", "best.pt"), ("clip4cir", "clip_finetuned.pt")):
        published.write(layout, data, tensors).rename(data / name)
    combiner(data / "combiner.pt")
    blip = blip_files.torch_blip(context=32)
    torch.save({"BLIP_Retrieval": blip_files.state(blip)}, data / "blip_cirr_stage1.pt")
    sprc = published_sprc.network().state_dict()
    torch.save({"epoch": 9, STAGE_ONE: sprc}, data / "sprc_fiq.pt")


def shrunk(flags, server):
    """The flags of a command with what makes it small and keeps it on this machine."""
    flags = [f.replace("http://localhost:8000/v1", server) for f in flags]
    changes = ["data.threads=2"] if flags[0] == "positives" else []
    unnamed = [c for c in TINY if not c.startswith("model.")]
    small = any(re.match(r"\w+:(emoji|quicktest|tiny)", f) for f in flags)
    if any(f.startswith(("sprc:emoji", "clip_sum:tiny")) for f in flags):  # small as it is
        changes += unnamed
    elif "--init-from" in flags and not small:
        changes += ["model.tower=auto", *unnamed]
    elif any(f.startswith("served:") for f in flags):
        changes += unnamed if flags[0] == "train" else []
    elif flags[0] == "train":
        changes += TINY
    if small and "data.root=" not in " ".join(flags):
        changes.append("data.root=emoji")
    if "positives:blip-fashioniq" in flags:  # a model of 7 billion parameters writes these
        changes += ["caption.captioner=texts", "caption.file=DATA/llava.json", "pair.keep=3"]
    return [*flags, *(x for change in changes for x in ("--set", change))]


def answer(number, body):
    """Of a server that writes captions, and has vectors."""
    if "max_tokens" in body:
        return 200, completion(prompt(body)), {}
    return 200, colours.reply(body), {}


def shrunk_changes(changes):
    """The same for the changes that `cir_jax.train` is given."""
    start = "init_from" in changes
    tiny = [c for c in TINY if not (start and c.startswith("model."))]
    tiny += ["model.tower=auto"] * start
    return dict(item.split("=", 1) for item in tiny) | changes


def test_commands_and_python_in_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    ran, converted = [], []
    with Scripted(answer) as server:
        for command in COMMANDS:
            name, *flags = shlex.split(command)
            if command.startswith("python tools/convert_weights.py"):
                assert convert_weights.main(flags[1:]) == 0, capsys.readouterr().err
                converted.append(flags[1])
                continue
            if name != "cir-jax" or flags[0] == "serve":
                assert command.startswith(ELSEWHERE), f"a command no test knows: {command}"
                continue
            status = main(shrunk(flags, server.url))
            # A tiny copy of a benchmark has other counts than the official, and doctor says so.
            doctored = flags[0] == "doctor" and flags[1] != "folder"
            assert status in ((0, 1) if doctored else (0,)), capsys.readouterr().err
            ran.append(flags[0])
    assert set(ran) == {
        "doctor", "train", "evaluate", "submit", "pack", "positives", "triplets", "inspect",
        "import", "export", "prepare", "compare", "index", "search",
    }  # fmt: skip
    assert set(converted) == {"verify"}
    assert (folder / "runs/fiq2/report.html").is_file()
    for name in ("spn-cirr", "zero-shot-cirr", "combiner-cirr", "tgcir1", "blip-cirr2", "sprc2",
                 "cirr2-circo", "zero-shot-circo", "cirr2-genecis", "my-model2",
                 "my-data"):  # fmt: skip
        assert (folder / "runs" / name / "report.html").is_file()
    CLIPModel.from_pretrained(folder / "DATA/clip-large-hf")
    assert len(list((folder / "submission").iterdir())) == 2
    assert len(list((folder / "submission-circo").iterdir())) == 1
    assert sum("max_tokens" in body for body in server.bodies) == len(runs.COLORS)  # captions
    assert (folder / "found.html").read_text("utf-8").count('src="data:image/') > 2
    for name in ("emoji-positives", "photos", "titles", "fiq-positives", "my-captions"):
        assert (folder / "runs" / name / "triplets.jsonl").read_text().count("\n") >= 3
    shared, alone = (folder / f"runs/emoji-{n}/triplets.jsonl" for n in ("shared", "positives"))
    assert shared.read_bytes() == alone.read_bytes()
    assert json.loads((folder / "DATA/lasco.jsonl").read_text())["text"] == "greener"
    train = cir_jax.train
    monkeypatch.setattr(
        cir_jax, "train", lambda config, changes: train(config, shrunk_changes(changes))
    )
    for name, script in readmes.SCRIPTS.items():
        if name == SERVED:
            continue
        exec(compile(script, name, "exec"), {"__name__": name})


def test_flags_of_the_demo():
    done = subprocess.run(
        [sys.executable, "-m", "cir_jax.main", "demo", "--help"],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "--seeds" in done.stdout and "--quick" in done.stdout
