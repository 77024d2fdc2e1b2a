# SPDX-License-Identifier: Apache-2.0
"""How files become pictures belongs to the weights: who decides, who refuses, who says so."""

import json

import pytest

from cir_jax import config as configs
from cir_jax import weights
from cir_jax.config import from_json, to_json
from cir_jax.convert import native
from cir_jax.data.pixels import Loading
from cir_jax.errors import UserError
from cir_jax.retrieval import image_loading

HELD = Loading("natural", "black")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes `RUN` a run that was trained so, and nothing else one; the config of a new run."""

    def made(held=None, name="folder", resumed=None, **data):
        config = configs.load("base", [f"workdir={tmp_path}", "init_from=RUN", f"data.name={name}"])
        with config.unlocked():
            config.data.update(data)
        other = configs.load("base", [])
        with other.unlocked():
            if held or resumed:
                chosen = held or resumed
                other.data.update({"loading": chosen.name, "background": chosen.background})
        monkeypatch.setattr(weights, "is_run", lambda place: place == "RUN")
        monkeypatch.setattr(weights, "config_of", lambda place, which: other)
        monkeypatch.setattr(weights, "resumed", lambda config: other if resumed else None)
        return config

    return made


def said(config):
    return config.data.loading, config.data.background


@pytest.mark.parametrize("name", ["fashioniq", "cirr", "emoji", "folder", "my_reader.py"])
def test_new_runs_go_by_their_data(run, name):
    own = "natural" if name in ("folder", "my_reader.py") else "released"
    with_name = run()
    with with_name.unlocked():
        with_name.data.name = name
    for trains_index in (True, False):
        assert said(image_loading.of_training(with_name, trains_index)) == (own, "white")


def test_stage_two_goes_by_its_weights(run):
    assert said(image_loading.of_training(run(HELD, "fashioniq"), False)) == ("natural", "black")
    assert said(image_loading.of_training(run(Loading()), False)) == ("released", "white")
    with pytest.raises(
        UserError, match=r"data.loading=natural .*RUN was trained with data.load.*eased"
    ):
        image_loading.of_training(run(Loading(), loading="natural"), False)
    with pytest.raises(UserError, match=r"background=red, but RUN was .* data.background=black"):
        image_loading.of_training(run(HELD, background="red"), False)


def test_stage_one_says_that_its_weights_had_another(run, capsys):
    assert said(image_loading.of_training(run(Loading()), True)) == ("natural", "white")
    assert "RUN was trained with data.loading=released; this run goes on" in capsys.readouterr().out
    assert said(image_loading.of_training(run(HELD, "cirr"), True)) == ("released", "white")


def test_a_resumed_run_keeps_its_own(run):
    assert said(image_loading.of_training(run(resumed=Loading()), True)) == ("released", "white")
    asked = run(resumed=Loading(), loading="natural")  # is compared, and refused, afterwards
    assert said(image_loading.of_training(asked, True)) == ("natural", "white")


def test_use(run, capsys):
    assert said(image_loading.of_use(run(HELD), "RUN")) == ("natural", "black")
    for dataset, own in (("circo", "released"), ("folder", "natural"), ("mine.py", "natural")):
        assert image_loading.of_use(run(), "RUN", dataset=dataset).data.loading == own
    assert not capsys.readouterr().out
    assert image_loading.of_use(run(HELD, loading="released"), "RUN").data.loading == "released"
    assert "RUN was trained with data.loading=natural" in capsys.readouterr().out


def test_parts_of_a_model_agree():
    released, natural = {"loading": "released"}, {"loading": "natural", "background": "red"}
    assert image_loading.agreed([{"pad": "none"}, {"loading": "auto"}]) == {}
    assert image_loading.agreed([{}, natural]) == natural
    assert image_loading.agreed([released]) == {"loading": "released", "background": "white"}
    with pytest.raises(
        UserError, match=r"say data.loading=natural .*red and data.loading=released"
    ):
        image_loading.agreed([released, natural])


def test_runs_and_files_of_before_are_released():
    config = json.loads(to_json(configs.load("base", [])))
    assert from_json(json.dumps(config)).data.loading == "auto"
    del config["data"]["loading"], config["data"]["background"]
    assert said(from_json(json.dumps(config))) == ("released", "white")
    data = {"pad": "none", "target_ratio": 1.25, "text_lengths": [77], "on_long": "error"}
    assert native.said_of(data)["loading"] == "released"
    assert native.said_of({**data, "loading": "natural"})["loading"] == "natural"
