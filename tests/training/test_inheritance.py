# SPDX-License-Identifier: Apache-2.0
"""Stage two is of the model, size and preprocessing that its weights were trained with."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cir_jax import config as configs
from cir_jax import contract, weights
from cir_jax.convert import exporting
from cir_jax.convert.importing import Weights
from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes
from cir_jax.training import inheritance, train
from cir_jax.training import setup as setups
from tests import runs
from tests.convert import published

OTHER = "vit-24-8-w16-l1-h2_text-w16-l1-h2_d8"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write_fashioniq(tmp_path_factory.mktemp("fashioniq"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of stage one that differs from every default."""
    changes = (f"model.tower={OTHER}", "data.pad=square", "model.context=20")
    return kept(tmp_path_factory.mktemp("runs") / "one", *changes, model="clip_sum")


def kept(workdir, *changes, model="cross_attention"):
    """A run folder with random parameters of this config."""
    config = runs.tiny(workdir, "unused", *changes, *NONE, model=model)
    functions = contract.build(config.model)
    drawn = {p: np.asarray(x) for p, x in functions.init(0).items()}
    return weights.save_run(workdir, config, functions, Weights(drawn, drawn, None, ()))


NONE = ("eval.benchmark=none",)
COMMON = ("data.threads=2", "eval.batch=16", "batch=8", "steps=1", "loss.bank_block=16", *NONE)


def resolved(place, *changes, config="clip_sum:fashioniq,stage=2", workdir="unused"):
    loaded = configs.load(config, [f"init_from={place}", f"workdir={workdir}", *COMMON, *changes])
    return setups.resolve(loaded)


def held(config):
    return config.model.tower, config.data.pad, config.model.context


def test_stage_two_takes_what_the_run_has(one, root, tmp_path, capsys):
    found = resolved(one)
    assert held(found) == (OTHER, "square", 20)
    said = capsys.readouterr().out
    assert f"stage two_bank takes from {one}: model.tower={OTHER} (not RN50x4)" in said
    assert "data.pad=square (not target)" in said
    # The same values by hand, and sizes that are left to the weights, are no contradiction.
    same = (f"model.tower={OTHER}", "data.pad=square", "model.context=20", "model.image_size=24")
    assert held(resolved(one, *same)) == held(found)
    assert held(resolved(one, "model.tower=auto")) == held(found)
    assert "model.tower" not in capsys.readouterr().out
    # It trains, and goes on as it began where the run it came from is gone.
    workdir = tmp_path / "two"
    changes = (f"data.root={root}", "data.categories=dress,shirt")
    loaded = configs.load(
        "clip_sum:fashioniq,stage=2",
        [f"init_from={one}", f"workdir={workdir}", *COMMON, *changes],
    )
    assert train.train(loaded)["config"]["data"]["pad"] == "square"
    again = resolved(tmp_path / "gone", *changes, "steps=2", workdir=workdir)
    assert held(again) == held(found)
    # So do the blocks of its bank, whatever is chosen for a new run.
    for change, block in (((), 16), (("loss.bank_block=8",), 8)):
        loaded = configs.load("clip_sum:fashioniq,stage=2", [f"workdir={workdir}", *change])
        assert setups.resolve(loaded).loss.bank_block == block
    assert train.train(again)["step"] == 2


@pytest.mark.parametrize(
    ("change", "both"),
    [
        ("model.tower=ViT-B/32", f"model.tower=ViT-B/32 was set, but .* with model.tower={OTHER}"),
        ("data.pad=none", "data.pad=none was set, but .* was trained with data.pad=square"),
        ("model.context=77", "model.context=77 was set, but .* with model.context=20"),
        ("model.image_size=48", "model.image_size=48 was set, but .* with model.image_size=0"),
    ],
)
def test_a_contradiction_is_refused_with_both_values(one, change, both):
    with pytest.raises(UserError, match=both):
        resolved(one, change)


def test_a_ratio_counts_where_images_are_padded_to_one(one, tmp_path):
    resolved(one, "data.target_ratio=2")  # of pad=square nothing reads it
    workdir = tmp_path / "ratio"
    kept(workdir, "data.target_ratio=1.5", model="clip_sum")
    assert resolved(workdir).data.target_ratio == 1.5
    with pytest.raises(UserError, match=r"ratio=2.0 was set, but .* with data.target_ratio=1.5"):
        resolved(workdir, "data.target_ratio=2")


def test_stage_one_does_not_take_a_crop(one):
    """It trains the image side too: another crop is a choice there."""
    loaded = configs.load("clip_sum:fashioniq,stage=1", [f"init_from={one}", "model.tower=auto"])
    config = setups.resolve(loaded)
    assert config.data.pad == "target"


def test_the_model_of_the_run(one, tmp_path, capsys):
    """One whose parameters are others is taken; what only adds to them stays what was named."""
    assert resolved(one, config="clip_combiner:fashioniq,stage=2").model.name == "clip_combiner"
    workdir = tmp_path / "tgcir"
    kept(workdir, model="tgcir")
    capsys.readouterr()
    config = resolved(workdir)
    assert (config.model.name, config.model.tower) == ("tgcir", runs.TOWERS["tgcir"])
    assert "model.name=tgcir (not clip_sum)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"name=clip_sum was set, but .* with model.name=tgcir"):
        resolved(workdir, "model.name=clip_sum")
    own = tmp_path / "own"
    kept(own)
    with pytest.raises(UserError, match=r"name=.*cross_attention.py, but .* model.name=clip_sum"):
        resolved(own)


def test_a_file_says_it_too(one, tmp_path):
    """Our own exports say size and crop; others what their shapes say."""
    config = weights.config_of(one)
    functions = contract.build(config.model)
    found = weights.load(str(one), functions)
    file = tmp_path / "one.safetensors"
    exporting.write(
        file,
        functions,
        found.index,
        found.query,
        layout="safetensors",
        data=config.data.to_dict(),
    )
    assert held(resolved(file)) == (OTHER, "square", 20)
    with pytest.raises(UserError, match=r"data.pad=none was set, but .* with data.pad=square"):
        resolved(file, "data.pad=none")
    clip = published.write("huggingface", tmp_path / "clip", published.state())
    assert resolved(clip).model.tower == published.VIT
    with pytest.raises(UserError, match=r"of model.tower=.*model.tower=ViT-B/32|ViT-B/32 was set"):
        resolved(clip, "model.tower=ViT-B/32")


def test_code_that_a_run_names_is_not_run(tmp_path):
    """A stranger's run may name a model of its own: nothing of it runs, though it is there."""
    code, place = tmp_path / "model.py", tmp_path / "one"
    code.write_text(Path(runs.stand_in("cross_attention")).read_text())
    kept(place, f"model.name={code}")
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == str(code):  # as in a process that never ran it
            del sys.modules[name]
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + code.read_text())
    with pytest.raises(UserError, match="whose code is then run"):
        resolved(place)
    assert not (tmp_path / "ran").exists()
    kept(tmp_path / "two", f"model.name={code}")  # naming it oneself runs it
    assert (tmp_path / "ran").exists()


def test_a_run_of_before_goes_on_with_padded_texts(monkeypatch, root, tmp_path):
    """Texts were padded before there was a key; packed ones are rounded otherwise."""
    config = runs.tiny(tmp_path, root, model="clip_sum", stage=2)
    assert config.data.pack_texts
    assert inheritance.of_resumed(config) is config  # a new run packs them
    content = json.loads(configs.to_json(config))
    del content["data"]["pack_texts"]
    before = configs.from_json(json.dumps(content))
    assert not before.data.pack_texts
    monkeypatch.setattr(weights, "resumed", lambda config: before)
    kept = inheritance.of_resumed(config)
    assert not kept.data.pack_texts and not setups.packs_texts(setups.assemble(kept, mesh()))
    # Asked for by name it stays: the two configs are then compared, and the run refused.
    asked = runs.tiny(tmp_path, root, "data.pack_texts=true", model="clip_sum", stage=2)
    assert inheritance.of_resumed(asked).data.pack_texts


@pytest.mark.parametrize(
    "model, stage, changes, packs",
    [
        ("clip_sum", 1, (), True),
        ("clip_combiner", 2, (), True),
        ("clip_weighted", 2, (), True),
        ("clip_sum", 1, ("loss.chunk=4",), False),
        ("clip_sum", 1, ("loss.negative_types=target,text",), False),
        ("clip_sum", 2, ("data.pack_texts=false",), False),
        ("tgcir", 2, (), False),
        ("blip", 2, (), False),
        ("sprc", 2, (), False),
    ],
)
def test_whose_texts_are_packed(model, stage, changes, packs, root, tmp_path):
    config = runs.tiny(tmp_path, root, *changes, model=model, stage=stage)
    assert setups.packs_texts(setups.assemble(config, mesh())) == packs


def mesh():
    return meshes.make(1, 1, jax.devices()[:1])
