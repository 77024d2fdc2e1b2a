# SPDX-License-Identifier: Apache-2.0
"""The configs of one's own images, `folder` and `vit-b32`, trained from a file of weights."""

import json
import subprocess
import sys

import pytest

from cir_jax import config as configs
from cir_jax.data.annotations import read_lines
from cir_jax.errors import UserError
from cir_jax.training import train
from tests import runs
from tests.convert import published
from tests.convert.test_remote_code import BGE

TOWER = "vit-32-32-w64-l1-h1_text-w64-l1-h1_d8"
SMALL = (
    "batch=8", "steps=2", "data.threads=1", "eval.batch=8", "log_every=1", "model.dtype=float32",
    "data.text_lengths=16", "eval.examples=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Pictures of many sizes, triplets with several right answers, weights as BGE-VL has them."""
    root = tmp_path_factory.mktemp("shop")
    names = []
    for number, (color, rgb) in enumerate([*runs.COLORS.items()] * 4):
        names.append(f"{number}_{color}.jpg")
        runs.write_image(root / "images" / names[-1], rgb, number, (40 + number, 50))
    for split, part in (("train", names[:8]), ("val", names[8:])):
        lines = [
            {"reference": a, "targets": [b, c], "texts": [f"as {b}", "another"]}
            for a, b, c in zip(part, part[1:] + part[:1], part[2:] + part[:2], strict=True)
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    published.write("huggingface", root / "weights", published.state(TOWER), TOWER)
    config = json.loads((root / "weights" / "config.json").read_text())
    (root / "weights" / "config.json").write_text(json.dumps(config | {"auto_map": BGE}))
    return root


def trained(shop, *argument_lists):
    """Trains with each of these arguments in turn, on one device as a laptop has."""
    code = f"from cir_jax import main\nfor one in {argument_lists}: assert main.main(one) == 0"
    subprocess.run([sys.executable, "-c", code], check=True, env=runs.one_device(), cwd=shop)


def arguments(config, init_from, out):
    keys = [part for key in (*SMALL, "data.root=.", f"workdir={out}") for part in ("--set", key)]
    return ["train", "--config", config, "--init-from", str(init_from), *keys]


def test_both_stages_from_weights_of_another_size(shop, capsys):
    """`folder` takes their size, and stage two that of the run, whatever its config says."""
    changes = (f"data.root={shop}", f"workdir={shop / 'no'}", f"init_from={shop / 'weights'}")
    with pytest.raises(UserError, match=f"is of model.tower={TOWER}, but the config says .*B/32"):
        train.train(configs.load("clip_sum:vit-b32", (*SMALL, *changes)))
    one = arguments("clip_sum:folder", "weights", "one")
    trained(shop, one, arguments("clip_sum:vit-b32,stage=2", "one", "two"))
    for run in ("one", "two"):
        results = json.loads((shop / run / "results.json").read_text())
        config = results["config"]
        assert (config["model"]["tower"], config["data"]["loading"]) == (TOWER, "natural")
        assert config["data"]["name"] == config["eval"]["benchmark"] == "folder"
        assert config["loss"]["exclude_positives"] is (run == "two")
        lines = [record for _, record in read_lines(shop / run / "metrics.jsonl")]
        assert len([line["loss"] for line in lines if "loss" in line]) == 2
        assert 0 < results["best"] <= 100
    assert (shop / "two" / "bank").is_dir()
