# SPDX-License-Identifier: Apache-2.0
"""Towers of open_clip that are not OpenAI's, and TIPSv2's, in training: one update is the same on a
mesh of both axes, and both stages run, on all devices, from a folder of weights."""

import functools

import jax
import numpy as np
import pytest
from transformers import Tipsv2Config, Tipsv2Model

from cir_jax import config as configs
from cir_jax import contract, weights
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.towers.tips import huggingface
from cir_jax.towers.tips import sizes as tips
from cir_jax.training import stage as stages
from cir_jax.training import step, train
from tests import runs
from tests.convert import own_tokenizer
from tests.towers.weights import random_values

# EVA's image encoder, and a text side with CoCa's class token.
TOWER = "eva-16-8-w32-m44-l2-h4_text-w32-l2-h4_d32+gelu+text-class+text-scale"
BATCH, CONTEXT = 8, 12


@functools.cache
def built():
    """(functions, random parameters)."""
    said = [f"model.tower={TOWER}", "model.dtype=float32", f"model.context={CONTEXT}"]
    functions = contract.build(configs.load("base", [*said, "model.remat=none"]).model)
    shapes = {path: x.shape for path, x in functions.abstract.items()}
    return functions, random_values(shapes)


def one_update(shape):
    """(what trains afterwards, what it was, loss) of a step of stage one."""
    functions, params = built()
    config = runs.tiny("unused", "unused", "optim.epsilon=1e-3", model="clip_sum")
    mesh = meshes.make(*shape, jax.devices()[: shape[0] * shape[1]])
    made = stages.load("one_in_batch").Stage.from_config(config, functions, mesh)
    rng, side = np.random.default_rng(3), functions.image_size
    text = np.zeros((BATCH, 8), np.int32)
    text[:, :6] = rng.integers(3, 20, (BATCH, 6))
    text[:, 5] = 49407
    text[0, 3:] = 49407, 0, 0, 0, 0  # texts of one length would not tell what padding does
    pixels = rng.integers(0, 256, (2, BATCH, side, side, 3)).astype(np.uint8)
    rows = np.arange(BATCH, dtype=np.int32)
    batch = {"text": text, "reference_pixels": pixels[0], "target_pixels": pixels[1]}
    ids = ("reference_id", "target_id", "reference_row", "text_id", "source_id")
    batch |= dict.fromkeys(ids, rows)
    places = sharding.parameter_shardings(functions, mesh)
    paths = stages.trainable(made, functions)
    trained = sharding.place({p: params[p] for p in paths}, places)
    update = step.make(made, functions, optim.build(config.optim, paths, 10), 1)
    start = optim.build(config.optim, paths, 10).init(trained)
    batch = jax.device_put(batch, meshes.batch_sharding(mesh))
    fixed = sharding.place(params, places)
    trained, _, values = update(trained, start, fixed, batch, None, jax.random.key(1))
    return {p: np.asarray(x) for p, x in trained.items()}, params, float(values["loss"])


def test_one_update_is_the_same_on_a_mesh_of_both_axes():
    want, start, loss = one_update((1, 1))
    assert max(np.abs(want[p] - start[p]).max() for p in want) > 1e-4
    got, _, other = one_update((2, 4))
    assert other == pytest.approx(loss, rel=2e-5)
    for path in want:
        close = np.isclose(want[path], got[path], atol=2e-5, rtol=1e-4)
        assert close.mean() > 0.999, path


def test_both_stages_from_a_folder_of_transformers(tmp_path):
    root = runs.write_fashioniq(tmp_path / "data", images=8, triplets=8, categories=("dress",))
    folder = tmp_path / "model"
    size = tips.find("tips-16-8-w32-l1-h4-r1_text-w32-l1-h4-v18")
    said = huggingface.config_of(size, 16)
    Tipsv2Model(Tipsv2Config.from_dict(said)).save_pretrained(folder)
    own_tokenizer.tips(folder)
    common = ("model.tower=auto", "model.remat=none", "data.on_long=truncate", "data.pad=squash")
    common += ("data.categories=dress",)
    one = runs.tiny(tmp_path / "one", root, f"init_from={folder}", *common, model="clip_sum")
    train.train(one)
    two = runs.tiny(
        tmp_path / "two", root, f"init_from={tmp_path / 'one'}", *common, model="clip_sum", stage=2
    )
    assert train.train(two)["finished"]
    held = weights.config_of(tmp_path / "two").model
    assert (held.tower, held.context) == (tips.name_of(size), 16)
    params = weights.load(str(tmp_path / "two"), contract.build(held), seed=0)
    assert not np.any(params.query["visual/mask_token"])  # which nothing reads, and no decay moves
    assert held.tokenizer == str(tmp_path / "two" / "tokenizer") and held.tokenizer_content
