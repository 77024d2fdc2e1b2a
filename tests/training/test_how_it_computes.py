# SPDX-License-Identifier: Apache-2.0
"""How a run computes: what it keeps for the backward pass, and what attends. It goes on so."""

import json

import jax.numpy as jnp
import pytest

from cir_jax import config as configs
from cir_jax.errors import UserError
from cir_jax.retrieval import load
from cir_jax.runtime import checkpoint
from cir_jax.training import setup
from tests import runs

TREE = {"fixed": {"a": jnp.zeros(2)}, "trained": {"b": jnp.ones(2)}}


def left(workdir, config, **model):
    """A run folder whose record has the section `model` changed: None takes a key out."""
    content = json.loads(configs.to_json(config))
    content["model"] = {k: v for k, v in (content["model"] | model).items() if v is not None}
    kept = checkpoint.Checkpoints(workdir / checkpoint.LAST)
    kept.save(1, TREE, {"config": json.dumps(content)})
    kept.close()


def test_values_of_earlier_versions_are_those_of_today(tmp_path):
    for text, name in (("false", "none"), ("True", "layers"), ("products", "products")):
        assert configs.load("clip_sum", [f"model.remat={text}"]).model.remat == name
    file = tmp_path / "mine.py"
    file.write_text(
        "from cir_jax.configs import base\n\n\ndef get_config(arg=''):\n"
        "    c = base.get_config()\n    c.model.remat = True\n    return c\n"
    )
    assert configs.load(str(file)).model.remat == "layers"
    assert configs.load(str(file), ["model.remat=none"]).model.remat == "none"
    content = json.loads(configs.to_json(configs.load("clip_sum")))
    for before, name in ((False, "none"), (True, "layers"), ("products", "products")):
        content["model"]["remat"] = before
        assert configs.from_json(json.dumps(content)).model.remat == name
    del content["model"]["remat"], content["model"]["attention"]
    model = configs.from_json(json.dumps(content)).model
    assert (model.remat, model.attention) == ("none", "xla")
    with pytest.raises(UserError, match=r"model.remat='all' is unknown; use none, products or lay"):
        configs.load("clip_sum", ["model.remat=all"])


def test_a_resumed_run_goes_on_as_it_began(tmp_path, capsys):
    config = runs.tiny(tmp_path, "data", model="clip_sum")
    assert (config.model.remat, config.model.attention) == ("products", "auto")
    left(tmp_path, config, remat=False, attention=None)
    resolved = setup.resolve(config).model
    assert (resolved.remat, resolved.attention) == ("none", "xla")
    assert f"{tmp_path} goes on with model.remat=none, as it began" in capsys.readouterr().out
    by_hand = ("model.remat=layers", "model.attention=auto")
    told = runs.tiny(tmp_path, "data", *by_hand, model="clip_sum")
    resolved = setup.resolve(told).model
    assert (resolved.remat, resolved.attention) == ("layers", "auto")
    assert "as it began" not in capsys.readouterr().out
    new = runs.tiny(tmp_path / "new", "data", model="clip_sum")
    assert setup.resolve(new).model.remat == "products"


def test_a_run_of_the_kernel_is_used_everywhere_and_resumed_where_it_is(tmp_path):
    config = runs.tiny(tmp_path, "data", model="clip_sum")
    left(tmp_path, config, attention="cudnn")
    assert load.config_of([str(tmp_path)], which="last")[0].model.attention == "auto"
    with pytest.raises(UserError, match=r"model.attention=cudnn cannot be used here"):
        setup.make(setup.resolve(config))
    told = configs.override(config, ["model.attention=xla", "eval.benchmark=none"])
    assert setup.make(setup.resolve(told)).config.model.attention == "xla"


def test_the_kind_that_was_decided_is_in_the_record_and_the_same_everywhere(tmp_path, monkeypatch):
    compared = {}
    monkeypatch.setattr(setup.comparison, "check", compared.__setitem__)
    config = runs.tiny(tmp_path, "data", "eval.benchmark=none", model="clip_sum")
    assert setup.make(setup.resolve(config)).config.model.attention == "xla"
    assert compared == {"devices": {"config model.attention": "xla"}}
