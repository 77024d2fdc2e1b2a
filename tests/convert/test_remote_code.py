# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers whose config names code: it is never run, and BGE-VL needs none."""

import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image

import cir_jax
from cir_jax import config as configs
from cir_jax import contract, main
from cir_jax.convert import importing, remote_code
from cir_jax.data.pixels import IMAGE_MEAN, IMAGE_STD
from cir_jax.errors import UserError
from cir_jax.towers.clip import huggingface, sizes
from tests.convert import published
from tests.convert.published import VIT

# As the published folders of BGE-VL have it.
BGE = {"AutoConfig": "configuration_clip.CLIPConfig", "AutoModel": "modeling_MMRet_CLIP.CLIPModel"}


def folder(place, auto_map, **more):
    published.write("huggingface", place, published.state())
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"auto_map": auto_map} | more))
    (place / "modeling_MMRet_CLIP.py").write_text("raise SystemExit('run')\n")
    return place


KNOWN = [BGE, {"AutoModel": "BAAI/BGE-VL-base--modeling_MMRet_CLIP.CLIPModel"},
         {"AutoProcessor": "own.Processor"}, {"AutoTokenizer": ["own.Slow", None]}, {}]  # fmt: skip


@pytest.mark.parametrize("auto_map", KNOWN)
def test_code_whose_formula_is_known_is_left_out_and_said(auto_map, tmp_path, capsys):
    want = importing.read(
        published.write("openai", tmp_path / "plain", published.state()), published.functions()
    )
    found = importing.read(folder(tmp_path / "a", auto_map), published.functions())
    assert all(np.array_equal(found.query[path], want.query[path]) for path in want.query)
    said = capsys.readouterr().out
    assert ("which is not run: read as" in said) == bool(auto_map)
    assert ("BGE-VL, a CLIP with the sum of its two features" in said) == ("AutoModel" in auto_map)


def test_bge_vl_is_the_unit_sum_of_the_features(tmp_path):
    """In its own code: image and text features, neither of length 1, are added and normalised."""
    model = cir_jax.load(folder(tmp_path, BGE), dtype="float32", device=jax.devices()[0])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    pixels = (model._preprocess(picture) / 255 - IMAGE_MEAN) / IMAGE_STD
    theirs = published.model()
    with torch.no_grad():
        image = theirs.encode_image(torch.tensor(pixels.transpose(2, 0, 1)[None]).float())
        text = theirs.encode_text(torch.tensor(model._tokenizer.encode(["make it red"])).long())
        want = torch.nn.functional.normalize(image + text).numpy()
    got = model.encode_queries([picture], ["make it red"])
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert (model.name, model.pad) == ("clip_sum", "none")


OTHERS = [{"AutoModel": "modeling_clip.CLIPModel"}, {"AutoModelForMaskedLM": "x.Own"},
          {"AutoModel": "modeling_MMRet_CLIP.Other"}, {"AutoModel": ["evil.Model"]}]  # fmt: skip


@pytest.mark.parametrize("auto_map", OTHERS)
def test_other_code_needs_the_users_word(auto_map, tmp_path, capsys):
    place = folder(tmp_path / "a", auto_map)
    with pytest.raises(
        UserError, match=r"never run here.*--ignore-remote-code.*vectors may differ"
    ):
        importing.read(place, published.functions())
    with remote_code.ignoring(True):
        assert importing.read(place, published.functions()).query
    assert "vectors may differ from those of that code" in capsys.readouterr().out
    assert main.main(["inspect", str(place)]) == 0
    assert "is code of its own" in capsys.readouterr().out
    assert main.main(["inspect", str(place), "--ignore-remote-code"]) == 0
    assert f"model.tower={VIT}" in capsys.readouterr().out


def test_a_table_that_is_none(tmp_path):
    with pytest.raises(UserError, match="has auto_map='evil', no table"):
        importing.read(folder(tmp_path, "evil"), published.functions())


@pytest.mark.parametrize(
    ("name", "tower", "count"),
    [("base", "ViT-B/16", 149_620_737), ("large", "ViT-L/14", 427_616_513)],
)
def test_bge_vl_has_the_published_sizes(name, tower, count, tmp_path):
    """Its configs are those of OpenAI's CLIP with the code's name; nothing is allocated."""
    config = huggingface.config_of(sizes.find(tower), 77) | {"auto_map": BGE}
    assert huggingface.size_of(config, tmp_path) == (sizes.find(tower), 77)
    model = contract.build(configs.load("base", [f"model.tower={tower}"]).model)
    assert sum(np.prod(x.shape, dtype=int) for x in model.abstract.values()) == count
