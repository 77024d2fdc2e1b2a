# SPDX-License-Identifier: Apache-2.0
"""SigLIP's towers and the sigmoid loss in training: the laws of every model, and both stages from a
folder of transformers."""

import numpy as np
import pytest

from cir_jax import config as configs
from cir_jax import contract, weights
from cir_jax.convert import exporting
from cir_jax.errors import UserError
from cir_jax.params import BIAS, LOGIT_BIAS, LOGIT_SCALE, TEMPERATURE
from cir_jax.retrieval import golden
from cir_jax.training import stage as stages
from cir_jax.training import train
from tests import runs, siglip_folders
from tests.training import test_laws


@pytest.mark.parametrize("stage", test_laws.STAGES)
def test_one_update_is_the_same_on_a_mesh_of_both_axes(stage):
    want, start, loss = test_laws.one_update("siglip", stage, (1, 1))
    assert max(np.abs(want[p] - start[p]).max() for p in want) > 1e-4
    got, _, other = test_laws.one_update("siglip", stage, (2, 4))
    assert other == pytest.approx(loss, rel=2e-5)
    for path in want:
        close = np.isclose(want[path], got[path], atol=2e-5, rtol=1e-4)
        assert close.mean() > 0.999, path


def trained(stage, *changes, model="clip_sum"):
    functions, made, *_ = test_laws.prepared(model, stage, (1, 1), *changes)
    return made, set(stages.trainable(made, functions)), functions


def test_what_the_sigmoid_learns():
    """Scale and bias of a SigLIP train in pretraining, and a bias is added to a CLIP; in stage one
    they are the temperature and a bias beside it."""
    made, paths, _ = trained("zero_image_text", model="siglip")
    assert {LOGIT_SCALE, LOGIT_BIAS} <= paths and made.extra == {}
    _, paths, _ = trained("zero_image_text", "loss.kind=softmax", model="siglip")
    assert LOGIT_SCALE in paths and LOGIT_BIAS not in paths  # which no loss reads then
    made, paths, _ = trained("zero_image_text", "loss.kind=sigmoid", "loss.bias=-5")
    assert {LOGIT_SCALE, BIAS} <= paths and made.extra == {BIAS: -5.0}
    made, paths, _ = trained("one_in_batch", "loss.kind=sigmoid", "loss.learn_temperature=True")
    assert {TEMPERATURE, BIAS} <= paths and made.extra == {TEMPERATURE: 0.1, BIAS: -10.0}
    made, paths, _ = trained("one_in_batch", "loss.kind=sigmoid")
    assert not {TEMPERATURE, BIAS} & paths and made.bias == -10
    with pytest.raises(UserError, match=r"loss.kind=sigmoid is of the targets"):
        trained("one_in_batch", "loss.kind=sigmoid", "loss.negative_types=query")


@pytest.mark.parametrize("model", ["clip_sum", "clip_combiner", "tgcir"])
def test_every_model_on_two_towers_reads_a_folder(model, tmp_path):
    folder = siglip_folders.write(tmp_path / "model")
    changes = [f"init_from={folder}", f"model.name={model}", "model.tower=auto"]
    config = weights.resolve(configs.load("base", changes))
    functions = contract.build(config.model)
    assert functions.inputs.tokenizer_name == "file" and not functions.inputs.cut_padding
    read = weights.load(str(folder), functions, seed=0).query
    assert read.keys() == functions.abstract.keys()
    layout = exporting.formats(model)["siglip"]
    assert len(layout.rules(functions.config)) > 20
    with pytest.raises(UserError, match="is no SigLIP, so it cannot be written as siglip"):
        layout.rules(configs.load("base", ["model.tower=tiny-vit"]).model)


def test_both_stages_from_a_folder(tmp_path):
    root = runs.write_fashioniq(tmp_path / "data", images=8, triplets=8, categories=("dress",))
    folder = siglip_folders.write(tmp_path / "model")
    common = ("data.on_long=truncate", "data.pad=squash", "data.categories=dress")
    one = runs.tiny(
        tmp_path / "one", root, f"init_from={folder}", "model.tower=auto", *common,
        "loss.kind=sigmoid", "loss.learn_temperature=True", model="clip_sum",
    )  # fmt: skip
    train.train(one)
    held = weights.config_of(tmp_path / "one").model
    assert (held.tower, held.tokenizer) == ("tiny-siglip2", str(tmp_path / "one" / "tokenizer"))
    content = weights.resolve(one).model.tokenizer_content
    assert held.tokenizer_content == content
    # Stage two takes all that from the run; so does one that is resumed, without the folder.
    two = runs.tiny(
        tmp_path / "two", root, f"init_from={tmp_path / 'one'}", "model.tower=auto", *common,
        model="clip_sum", stage=2,
    )  # fmt: skip
    result = train.train(two)
    assert result["finished"]
    again = weights.config_of(tmp_path / "two").model
    assert (again.tower, again.tokenizer_content) == ("tiny-siglip2", content)
    assert weights.resolve(two).model.tokenizer == str(tmp_path / "two" / "tokenizer")
    assert golden.kept_with(tmp_path / "two").tokens.shape[1] == 16
