# SPDX-License-Identifier: Apache-2.0
"""MetaCLIP 2: a folder of transformers in and out, and into a folder of open_clip."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, MetaClip2Config, MetaClip2Model
from transformers import MetaClip2TextModelWithProjection as TextSide

from cir_jax import config, contract, weights
from cir_jax.convert import exporting, importing
from cir_jax.errors import UserError
from cir_jax.towers.clip import huggingface, sizes
from cir_jax.towers.clip.huggingface import METACLIP_2
from tests.convert import own_tokenizer
from tools.torch_models import ours, random_values, transformers_clip

TOWER = "vit-16-8-w16-l2-h2_text-w16-l2-h2_d16+text-vocabulary20+text-end2"
CONTEXT = 10
BOUND = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As transformers saves it, with a tokenizer of its own."""
    place = tmp_path_factory.mktemp("metaclip2")
    said = huggingface.config_of(sizes.find(TOWER), CONTEXT, METACLIP_2)
    model = MetaClip2Model(MetaClip2Config.from_dict(said)).eval()
    model.load_state_dict(random_values.state(model))
    model.save_pretrained(place)
    assert json.loads((place / "config.json").read_text()) == said
    own_tokenizer.xlm(place)
    return place, model


def resolved(place):
    """The model of a config that leaves everything to the weights."""
    made = config.load("base", ["model.tower=auto", "model.dtype=float32", f"init_from={place}"])
    return contract.build(weights.resolve(made, str(place)).model)


def test_every_layer_within_1e5_and_the_same_tensors_out(folder, tmp_path, capsys):
    place, theirs = folder
    functions = resolved(place)
    assert functions.config.tower == TOWER and functions.config.context == CONTEXT
    tokenizer = functions.inputs.tokenizer
    assert tokenizer.encode(["A b", "b zz"]) == [[0, 4, 5, 2], [0, 5, 3, 2]]
    assert functions.inputs.cut_padding and functions.inputs.packs_texts
    found = importing.read(place, functions)
    assert "CC-BY-NC 4.0" in capsys.readouterr().out
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    tokens = np.ones((3, CONTEXT), np.int32)  # behind a text is the id 1
    for row, length in zip(tokens, (4, 7, CONTEXT), strict=True):
        row[:length] = [0, *rng.integers(3, 20, length - 2), 2]
    want = transformers_clip.trace(theirs, pixels, tokens)
    far = ours.differences(want, ours.trace(functions, found.query, pixels, tokens))
    assert max(far.values()) < BOUND and len(far) == 12, far

    # A query tree with another text tower, as after stage two.
    query = {p: x + 1 if p.startswith("text/") else x for p, x in found.query.items()}
    out = tmp_path / "out"
    exporting.write(out, functions, found.index, query, layout="metaclip2")
    again = MetaClip2Model.from_pretrained(out).state_dict()
    for name, tensor in theirs.state_dict().items():
        moved = 1 if name.startswith("text_") else 0
        assert torch.equal(again[name], tensor + moved), name
    beside = TextSide.from_pretrained(out / "index_text").state_dict()
    assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in beside.items())
    back = importing.read(out, resolved(out))
    for got, tree in ((back.index, found.index), (back.query, query)):
        assert all(got[path].tobytes() == tree[path].tobytes() for path in tree)

    other = tmp_path / "open_clip"
    exporting.write(other, functions, found.index, found.query, layout="open_clip")
    back = importing.read(other, resolved(other))
    assert all(back.query[path].tobytes() == x.tobytes() for path, x in found.query.items())


def test_the_vocabulary_of_clip_is_a_plain_clip():
    plain = sizes.find("ViT-B/32+gelu")
    said = huggingface.config_of(plain, 77, METACLIP_2)
    assert huggingface.size_of(said, "x", METACLIP_2) == (plain, 77)
    assert MetaClip2Config.from_dict(said).text_config.eos_token_id == 49407


@pytest.mark.parametrize("name", ["MetaCLIP2-ViT-H/14", "MetaCLIP2-ViT-bigG/14@378px"])
def test_a_full_size_has_transformers_parameters(name):
    said = huggingface.config_of(sizes.find(name), 77, METACLIP_2)
    with torch.device("meta"):
        theirs = MetaClip2Model(MetaClip2Config.from_dict(said))
    count = {"MetaCLIP2-ViT-H/14": 1_858_783_745}.get(name, 3_631_197_057)
    assert sum(x.numel() for x in theirs.parameters()) == count
    functions = contract.build(config.load("base", [f"model.tower={name}"]).model)
    assert sum(int(np.prod(x.shape)) for x in functions.abstract.values()) == count


def test_bad_folders(folder, tmp_path):
    place, _ = folder
    said = json.loads((place / "config.json").read_text())

    def refused(match, **text):
        changed = said | {"text_config": said["text_config"] | text}
        with pytest.raises(UserError, match=match):
            huggingface.size_of(changed, tmp_path, METACLIP_2)

    refused(r"eos_token_id=\[2\] \(texts are read at one id\)", eos_token_id=[2])
    refused(r"an end of text 40 in a vocabulary of 20", eos_token_id=40)
    refused(
        r"model_type='clip_text_model', not 'metaclip_2_text_model'", model_type="clip_text_model"
    )
    with pytest.raises(UserError, match=r"kind 'clip', not 'metaclip_2'.*MetaClip2Model saves it"):
        huggingface.size_of(CLIPConfig().to_dict(), tmp_path, METACLIP_2)
    # A folder without its tokenizer: nothing is read by another one.
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    with pytest.raises(UserError, match=r"comes with its weights, and none is known; name the fol"):
        _ = resolved(tmp_path).inputs.tokenizer
    # More words than the text tower has.
    own_tokenizer.xlm(tmp_path)
    file = tmp_path / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    vocabulary["model"]["vocab"] |= {f"word{n}": 20 + n for n in range(3)}
    file.write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match=r"has 23 words, and the text tower has 20 of them"):
        _ = resolved(tmp_path).inputs.tokenizer
