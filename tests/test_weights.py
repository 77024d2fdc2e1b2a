# SPDX-License-Identifier: Apache-2.0
"""Which weights `init_from` and `model.tower=auto` mean, and what is no place for a run."""

import json

import pytest
import torch

from cir_jax import config, weights
from cir_jax.convert import importing
from cir_jax.errors import UserError
from tests.convert import published
from tests.convert.published import RESNET, VIT
from tests.training.test_init_from import combiner


@pytest.fixture
def place(tmp_path):
    return published.write("spn", tmp_path, published.state())


def imported(folder, place, tower=VIT, name="clip_sum"):
    functions = published.functions(tower, name)
    settings = config.load("base", [f"model.tower={tower}", f"model.name={name}"])
    return weights.save_run(folder, settings, functions, weights.load(str(place), functions))


def auto(*changes):
    return config.load("base", ["model.tower=auto", *changes])


def test_a_path_may_have_a_comma(place, tmp_path):
    odd = tmp_path / "a, b"
    odd.mkdir()
    odd = place.rename(odd / "c,d.pt")
    assert weights.places(str(odd)) == [str(odd)]
    assert weights.places(f"{tmp_path}, {tmp_path}") == [str(tmp_path)] * 2
    assert weights.places("") == []
    assert weights.load(str(odd), published.functions()).query


def test_auto_is_of_the_weights_that_are_evaluated(place, tmp_path):
    """Whatever run lies in the folder that the config would train in."""
    other = published.write("clip4cir", tmp_path / "r", published.state(RESNET), RESNET)
    run = imported(tmp_path / "run", other, RESNET)
    settings = auto(f"workdir={run}", f"init_from={other}")
    assert weights.resolve(settings, str(place)).model.tower == VIT
    assert weights.resolve(settings, str(run)).model.tower == RESNET
    # Imported weights are no step that training would resume.
    settings = auto(f"workdir={run}", f"init_from={place}")
    assert weights.resolve(settings).model.tower == VIT


def test_auto_asks_the_run_among_several_places(place, tmp_path):
    run = imported(tmp_path / "run", place)
    file, _ = combiner(tmp_path / "combiner.pt")
    for given in ((run, file), (file, run)):
        joined = ",".join(map(str, given))
        settings = weights.resolve(auto("model.name=clip_combiner"), joined)
        assert settings.model.tower == VIT
        assert weights.load(joined, published.functions(VIT, "clip_combiner")).query


def test_a_step_is_of_a_run(place, tmp_path):
    with pytest.raises(UserError, match=r"--step=3 is of a run, and .*spn.pt is none; leave it"):
        weights.load(str(place), published.functions(), "3")
    run = imported(tmp_path / "run", place)
    assert weights.load(str(run), published.functions(), "0").query


def test_a_file_is_no_place_for_a_run(place):
    with pytest.raises(UserError, match=r"spn.pt cannot be made a folder .*; give another one"):
        imported(place, place)


def test_what_else_a_file_holds_is_said(tmp_path, capsys):
    torch.save({"CLIP": published.state(), "ema": published.state(seed=1)}, tmp_path / "a.pt")
    importing.read(tmp_path / "a.pt", published.functions())
    assert "a.pt also holds ema (74 tensors): not read" in capsys.readouterr().out


def test_an_archive_of_openai_is_not_what_a_config_beside_it_says(tmp_path):
    place = published.torchscript(tmp_path / "a.pt")
    size = published.sizes.find(VIT + "+gelu")
    content = json.dumps(published.open_clip.config_of(size, 77))
    (tmp_path / "open_clip_config.json").write_text(content)
    assert weights.resolve(auto(), str(place)).model.tower == VIT
