# SPDX-License-Identifier: Apache-2.0
"""A model of full size starts from weights, or at random where that is asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cir_jax
from cir_jax import config as configs
from cir_jax import main
from cir_jax.errors import UserError
from cir_jax.runtime import checkpoint
from cir_jax.training import dry_run, from_scratch, train
from cir_jax.training import state as states
from tests import runs

REFUSED = r"is of full size \(about .* M parameters\), and no weights are given to start from"
MODELS = ("clip_sum", "clip_weighted", "blip", "sprc", "tgcir", "clip_combiner")


@pytest.mark.parametrize(
    "config",
    [
        *("clip_sum:fashioniq", "clip_sum:cirr,stage=2", "clip_sum:cirr,stage=0"),
        *("blip:cirr", "sprc:fashioniq,stage=2", "tgcir:cirr", "clip_combiner", "zero_shot:cirr"),
        *("gemma_embedding:cirr", "clip_weighted:cirr"),
    ],
)
def test_every_published_recipe_needs_weights(config):
    loaded = configs.load(config)
    with pytest.raises(UserError, match=REFUSED) as caught:
        from_scratch.check(loaded)
    for way in ("--init-from", "run of stage one", "published", "cir-jax import", "--from-scratch"):
        assert way in str(caught.value) or ("stage=2" not in config and way.startswith("run of"))
    from_scratch.check(configs.load(config, ["from_scratch=true"]))
    from_scratch.check(configs.load(config, ["init_from=weights.pt"]))


@pytest.mark.parametrize("name", MODELS)
def test_the_size_of_weights_needs_weights(name, tmp_path):
    loaded = configs.load(f"{name}:folder", [f"workdir={tmp_path}"])
    with pytest.raises(
        UserError, match=r"=auto takes the size of the weights.* no weights ar"
    ) as e:
        from_scratch.check(loaded)
    for way in ("--init-from", "a run of stage", "published", "cir-jax import", "--from-scratch"):
        assert way in str(e.value)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("argument", ["emoji", "quicktest,stage=2"])
def test_the_tiny_ones_go_on_as_before(name, argument):
    from_scratch.check(configs.load(f"{name}:{argument}"))


def test_sizes_are_close_to_the_published():
    """In M, as the configs say them: RN50x4 178, ViT-L/14 428, BLIP 224, BLIP-2 1,170."""
    published = {"RN50x4": 178, "ViT-L/14": 428, "blip-base": 224, "blip2-vit-g": 1170,
                 "embeddinggemma-2": 439}  # fmt: skip
    for tower, size in published.items():
        assert from_scratch.parameters(tower) / 1e6 == pytest.approx(size, rel=0.06)
    written = "vit-224-32-w768-l12-h12_text-w512-l12-h8_d512"
    assert from_scratch.parameters(written) == from_scratch.parameters("ViT-B/32")
    assert from_scratch.parameters("mine") == 0  # the trainer counts those of a model of one's own


def test_the_command_and_python_refuse_before_anything_is_loaded(tmp_path):
    code = (
        "import sys\nfrom cir_jax import main\n"
        f"flags = ['train', '--config', 'clip_sum:fashioniq', '--set', 'workdir={tmp_path}/run']\n"
        "assert main.main(flags) == 2\n"
        "assert not {'jax', 'flax', 'grain'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "about 179 M parameters), and no weights are given" in done.stderr
    with pytest.raises(UserError, match=REFUSED):
        cir_jax.train("clip_sum:fashioniq", {"workdir": tmp_path / "run"})
    assert not (tmp_path / "run").exists()


def test_from_scratch_goes_on_and_is_noted(tmp_path, monkeypatch, capsys):
    """Whatever is large: here a limit that the tiny model is above, which has no name to know."""
    monkeypatch.setattr(from_scratch, "FULL_SIZE", 1000)
    root = runs.write_fashioniq(tmp_path / "data")
    config = runs.tiny(tmp_path / "run", root, "steps=2", "eval.benchmark=none")
    with pytest.raises(UserError, match=REFUSED):
        train.train(config)
    setup, data = runs.set_up(config)
    with pytest.raises(UserError, match=REFUSED):
        dry_run.describe(setup, data)
    changes = ["from_scratch=true"]
    results = train.train(configs.override(config.copy_and_resolve_references(), changes))
    assert results["config"]["from_scratch"] is True
    last = checkpoint.Checkpoints(Path(results["workdir"]) / checkpoint.LAST)
    assert last.record(2)["source"] == {"from_scratch": True, "seed": 42}
    assert json.loads(last.record(2)["config"])["from_scratch"] is True
    setup, data = runs.set_up(configs.override(config.copy_and_resolve_references(), ["steps=3"]))
    assert "step 2 of" in dry_run.describe(setup, data)
    state, _ = states.start(setup, data)  # without the flag: it resumes
    assert state.step == 2 and state.source == {"from_scratch": True, "seed": 42}


def test_the_flag_is_the_key(monkeypatch):
    seen = []
    monkeypatch.setattr(from_scratch, "check", lambda config: seen.append(config.from_scratch))

    def stop(*_):
        raise UserError("far enough")

    monkeypatch.setattr("cir_jax.runtime.distributed.initialize", stop)
    for flags, value in (([], False), (["--from-scratch"], True)):
        assert main.main(["train", "--config", "clip_sum:fashioniq", *flags]) == 2
        assert seen.pop() is value
