# SPDX-License-Identifier: Apache-2.0
"""A new model is one new file and one config, in any folder; the package is not touched."""

import json
import textwrap

import pytest

from cir_jax import contract, main
from cir_jax.errors import UserError
from tests import runs

MODEL = '''
"""A gate between the image and the text feature of a small CLIP, with a loss of its own."""

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.models import clip_sum
from cir_jax.towers.clip import sizes
from cir_jax.towers.layers import Dense, unit

TOKENIZER, CUT_PADDING, REFERENCE_ROWS = "clip", True, "per_image"
AUXILIARY = {"small_text": "keeps the gate from living on the text alone; ours"}
image_size = clip_sum.image_size


class Model(clip_sum.Model):
    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        width = sizes.find(config.tower).embedding
        self.gate = Dense(2 * width, 1, 0.1, rngs=rngs)

    def fuse(self, reference, features, key=None):
        image = reference[:, 0].astype(jnp.float32)
        gate = jax.nn.sigmoid(self.gate(jnp.concatenate([image, features], axis=-1)))
        return unit(gate * image + (1 - gate) * features)

    def training(self, reference_pixels, target_pixels, text, key):
        reference, features = self.reference(reference_pixels, text), self.text_features(text)
        query = self.fuse(reference, features)
        return query, self.target(target_pixels), {"size": jnp.square(features).mean(axis=-1)}

    def auxiliary(self, query, targets, extras, temperature):
        return {"small_text": extras["size"]}


def roles(config):
    return [(r"gate/.*", "query"), *clip_sum.roles(config)]


def sharding(config):
    return clip_sum.sharding(config)
'''
CONFIG = '''
"""The paper of my_model."""

from pathlib import Path

from cir_jax.config import parse_argument, sibling


def get_config(arg="fashioniq"):
    _, stage, _ = parse_argument(arg, datasets=("fashioniq",), default_stage=1)
    config = sibling(__file__, "clip_sum").get_config(f"fashioniq,stage={stage}")
    config.model.name = str(Path(__file__).with_name("my_model.py"))
    config.model.tower = "tiny-vit"
    if stage == 1:
        config.loss.auxiliary = ("small_text:0.5",)
    config.epochs, config.batch, config.data.threads = 1, 8, 2
    config.eval.batch, config.eval.examples, config.log_every = 16, 2, 1
    return config
'''


def test_a_model_and_its_config_from_a_folder_of_the_users(tmp_path):
    (tmp_path / "my_model.py").write_text(textwrap.dedent(MODEL))
    (tmp_path / "my_config.py").write_text(textwrap.dedent(CONFIG))
    data = runs.write_fashioniq(tmp_path / "data")
    common = ["--set", f"data.root={data}"]
    for stage, start in ((1, ""), (2, str(tmp_path / "run1"))):
        run = tmp_path / f"run{stage}"
        config = f"{tmp_path / 'my_config.py'}:fashioniq,stage={stage}"
        changes = [*common, "--set", f"workdir={run}", "--set", f"init_from={start}"]
        assert main.main(["train", "--config", config, *changes]) == 0
        results = json.loads((run / "results.json").read_text())
        assert results["finished"] and results["step"] > 0
        first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        assert ("small_text" in first) == (stage == 1)
        assert any(entry["score"] > 0 for entry in results["history"])
    assert main.main(["evaluate", "--workdir", str(tmp_path / "run2"), "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("    def training", "has AUXILIARY, auxiliary, but AUXILIARY, training, auxiliary belong"),
        ("AUXILIARY =", "has training, auxiliary, but AUXILIARY, training"),
    ],
)
def test_half_of_a_models_own_losses_is_refused(lost, message, tmp_path):
    source = textwrap.dedent(MODEL)
    assert lost in source
    file = tmp_path / "half.py"
    file.write_text(source.replace(lost, lost.replace("AUXILIARY", "OTHER").replace("tr", "st")))
    config = runs.tiny("unused", "unused", f"model.name={file}")
    with pytest.raises(UserError, match=message):
        contract.build(config.model)
