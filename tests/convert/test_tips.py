# SPDX-License-Identifier: Apache-2.0
"""TIPSv2: a folder of transformers in and out, layer by layer, and its full sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Tipsv2Config, Tipsv2Model, Tipsv2TextModel

from cir_jax import config, contract, weights
from cir_jax.convert import exporting, identify, importing, sources
from cir_jax.data.pixels import Normalisation
from cir_jax.errors import UserError
from cir_jax.towers import encoders
from cir_jax.towers.tips import huggingface, sizes
from tests.convert import own_tokenizer
from tests.towers.weights import layer
from tools.torch_models import ours, random_values

# Two registers and odd inner widths; a gated MLP.
TOWERS = {
    "plain": "tips-16-8-w16-m24-l2-h2-r2_text-w16-m20-l2-h4-v18",
    "gated": "tips-16-8-w16-m24-l2-h2-r1-gated_text-w16-l2-h4-v18",
}
CONTEXT = 10
BOUND = 1e-5
TEMPERATURE = 0.0123


def saved(tower, place):
    """(folder, model) as transformers saves it, with tokenizer and image processor."""
    size = sizes.find(tower)
    said = huggingface.config_of(size, CONTEXT)
    model = Tipsv2Model(Tipsv2Config.from_dict(said)).eval()
    state = random_values.state(model) | {"temperature": torch.tensor(TEMPERATURE)}
    model.load_state_dict(state)
    model.save_pretrained(place)
    assert json.loads((place / "config.json").read_text()) == said
    own_tokenizer.tips(place)
    processor = huggingface.image_processor(16, huggingface.PIXELS, "bilinear")
    (place / "preprocessor_config.json").write_text(json.dumps(processor))
    return place, model


def resolved(place):
    """The model of a config that leaves everything to the weights."""
    made = config.load("base", ["model.tower=auto", "model.dtype=float32", f"init_from={place}"])
    return contract.build(weights.resolve(made, str(place)).model)


def expected(model, pixels, tokens):
    """Our names of layers -> what transformers computes."""
    image, ids = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(tokens).long()
    with torch.no_grad():
        seen = model.vision_model(image, output_hidden_states=True)
        read = model.text_model(ids, attention_mask=ids != 0, output_hidden_states=True)
    found = {}
    for side, first, states in (
        ("visual", "stem", seen.hidden_states), ("text", "embedding", read.hidden_states),
    ):  # fmt: skip
        found[f"{side}/{first}"] = states[0]
        found |= {f"{side}/block {n}": x for n, x in enumerate(states[1:])}
        found[f"{side}/feature"] = (seen if side == "visual" else read).pooler_output
    return {name: x.numpy() for name, x in found.items()}


def test_every_layer_within_1e5_and_the_same_tensors_out(tmp_path, capsys):
    place, theirs = saved(TOWERS["plain"], tmp_path / "in")
    functions = resolved(place)
    assert functions.config.tower == TOWERS["plain"] and functions.config.context == CONTEXT
    said = functions.inputs
    assert said.tokenizer.encode(["A b", "zz"]) == [[2, 3], [1]] and said.tokenizer.pad == 0
    assert said.normalisation == Normalisation((0.0,) * 3, (1.0,) * 3)
    assert (said.interpolation, said.cut_padding, said.packs_texts) == ("bilinear", True, False)
    _, described = identify.find(sources.open_source(place), "clip_sum")
    assert described.data == {"pad": "squash"}
    found = importing.read(place, functions)
    assert "Apache-2.0" in capsys.readouterr().out
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    tokens = np.zeros((3, CONTEXT), np.int32)
    for row, length in zip(tokens, (3, 6, CONTEXT), strict=True):
        row[:length] = rng.integers(1, 18, length)
    want = expected(theirs, pixels, tokens)
    got = ours.trace(functions, found.query, pixels, tokens)
    assert {*want} == {*got} - {"text/norm", "reference", "target", "query"}
    seen = tokens != 0  # what padding is made into is nobody's
    for name, value in want.items():
        per_token = name.startswith("text/") and value.ndim == 3
        far = np.abs((value - got[name])[seen] if per_token else value - got[name]).max()
        assert far < BOUND * max(1, np.abs(value).max()), name
    summed = want["visual/feature"] + want["text/feature"]
    unit = summed / np.linalg.norm(summed, axis=-1, keepdims=True)
    np.testing.assert_allclose(got["query"], unit, atol=BOUND)

    # Cut to its tokens a text has the same feature, and an empty one has none.
    short = tokens[:2, :6] * np.array([[1], [0]], np.int32)
    composed = jax.jit(functions.compose)(found.query, got["reference"][:2, None], short)
    alone = want["visual/feature"][1] / np.linalg.norm(want["visual/feature"][1])
    np.testing.assert_allclose(composed, [unit[0], alone], atol=BOUND)

    out = tmp_path / "out"
    exporting.write(
        out, functions, found.index, found.query, layout="tipsv2", dtype="source",
        record=found.record,
    )  # fmt: skip
    again = Tipsv2Model.from_pretrained(out).state_dict()
    assert all(torch.equal(x, again[name]) for name, x in theirs.state_dict().items())
    files = ("preprocessor_config.json", "tokenizer.json")
    assert all((out / n).read_bytes() == (place / n).read_bytes() for n in files[1:])
    assert json.loads((out / files[0]).read_text()) == json.loads((place / files[0]).read_text())


def test_gated_mlps_and_two_text_towers_of_stage_two(tmp_path):
    place, theirs = saved(TOWERS["gated"], tmp_path / "in")
    functions = resolved(place)
    found = importing.read(place, functions)
    x = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    block = layer(functions.merged(found.query).visual.blocks, 1)
    with torch.no_grad():
        want = theirs.vision_model.encoder.layer[1].mlp(torch.from_numpy(x))
    np.testing.assert_allclose(block.mlp(jnp.asarray(x)), want, atol=BOUND)
    query = {p: x + 1 if p.startswith("text/") else x for p, x in found.query.items()}
    query["logit_scale"] = np.float32(4)  # a temperature that training moved
    out = tmp_path / "out"
    exporting.write(out, functions, found.index, query, layout="tipsv2")
    beside = Tipsv2TextModel.from_pretrained(out / "index_text").state_dict()
    text = theirs.text_model.state_dict()
    assert text and all(torch.equal(x, beside[name]) for name, x in text.items())
    whole = Tipsv2Model.from_pretrained(out)
    assert whole.temperature.item() == pytest.approx(np.exp(-4), rel=1e-6)
    back = importing.read(out, resolved(out))
    for got, tree in ((back.index, found.index), (back.query, query)):
        paths = tree.keys() - {"logit_scale"}
        assert all(got[path].tobytes() == tree[path].tobytes() for path in paths)
    assert back.query["logit_scale"] == pytest.approx(4, abs=1e-6)


# Parameters of both towers of the released weights, as their cards have them.
RELEASED = {
    "TIPSv2-B/14": 195_948_288,
    "TIPSv2-L/14": 487_941_120,
    "TIPSv2-So400m/14": 861_726_816,
    "TIPSv2-g/14": 1_525_085_696,
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_full_size_has_the_released_parameters(name):
    functions = contract.build(config.load("base", [f"model.tower={name}"]).model)
    counts = {path: int(np.prod(x.shape)) for path, x in functions.abstract.items()}
    assert sum(counts.values()) == RELEASED[name] + 1  # and the temperature
    size = sizes.find(name)
    assert sizes.name_of(size) == name and encoders.find(name).embedding == size.text.width
    assert huggingface.size_of(huggingface.config_of(size, 64), "x") == (size, 64)
    assert functions.roles["visual/mask_token"] == "statistic"  # nothing reads it


@pytest.mark.parametrize("name", [*TOWERS.values(), "TIPSv2-g/14"])
def test_a_size_and_its_name_are_one(name):
    assert sizes.name_of(sizes.find(name)) == name and encoders.find(name).family == "tips"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tips-16-8-w16-l1-h3-r1_text-w16-l1-h2-v9", "vision width 16 does not divide into 3"),
        ("tips-16-8-w16-l1-h2-r1_text-w32-l1-h2-v9", "widths 16 and 32, which must be one"),
        ("tips-4-8-w16-l1-h2-r1_text-w16-l1-h2-v9", "an image of 4 pixels has no patch of 8"),
        ("tips-8-8-w2-l1-h1-r1_text-w2-l1-h1-v9", "sine positions need an even one of at least 4"),
        ("TIPSv2-B/16", "no tower 'TIPSv2-B/16'.*Did you mean 'TIPSv2-B/14'"),
    ],
)
def test_sizes_that_cannot_be(name, why):
    with pytest.raises(UserError, match=why):
        encoders.find(name)


REFUSED = [
    ("", "model_type", "tipsv2_dpt", "kind 'tipsv2_dpt', not 'tipsv2'"),
    ("", "auto_map", {"AutoModel": "model.Own"}, "code of its own"),
    ("vision_config", "qkv_bias", False, r"vision_config.qkv_bias=False \(only True"),
    ("vision_config", "layer_norm_eps", 1e-5, "vision_config.layer_norm_eps=1e-05"),
    ("vision_config", "image_size", [448, 224], r"image_size=\[448, 224\].*square"),
    ("vision_config", "hidden_size", "768", "refused by transformers"),
    ("text_config", "hidden_act", "gelu", "text_config.hidden_act='gelu' .only 'relu'"),
    ("text_config", "scale_sqrt_depth", False, "text_config.scale_sqrt_depth=False"),
    ("text_config", "pad_token_id", 1, "text_config.pad_token_id=1"),
    ("text_config", "vocab_size", 0, "text_config.vocab_size=0"),
]


@pytest.mark.parametrize(("part", "key", "value", "match"), REFUSED)
def test_another_function_is_refused_with_key_and_value(part, key, value, match, tmp_path):
    said = huggingface.config_of(sizes.find("TIPSv2-B/14"), 64)
    changed = said | ({part: said[part] | {key: value}} if part else {key: value})
    with pytest.raises(UserError, match=match) as caught:
        huggingface.size_of(changed, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_bad_folders(tmp_path):
    place, _ = saved(TOWERS["plain"], tmp_path / "in")
    processor = json.loads((place / "preprocessor_config.json").read_text())
    # Without an image processor pixels are those that TIPSv2's own class makes.
    (place / "preprocessor_config.json").unlink()
    assert resolved(place).inputs.normalisation == huggingface.PIXELS
    # Another normalisation comes with the weights; other pixels than can be made are refused.
    said = processor | {"do_normalize": True, "image_mean": [0.5] * 3}
    (place / "preprocessor_config.json").write_text(json.dumps(said))
    assert resolved(place).inputs.normalisation == Normalisation((0.5,) * 3, (1.0,) * 3)
    (place / "preprocessor_config.json").write_text(json.dumps(processor | {"resample": 1}))
    with pytest.raises(UserError, match=r"preprocessor_config.json has resample=1"):
        resolved(place)
    (place / "preprocessor_config.json").write_text(json.dumps(processor))
    # A tokenizer that fills up with another id than the text tower leaves out.
    own_tokenizer.xlm(place)
    with pytest.raises(UserError, match=r"fills texts up with 1, and the text tower .* with 0"):
        _ = resolved(place).inputs.tokenizer
    (place / "config.json").unlink()
    with pytest.raises(UserError, match=r"Tipsv2Model but no config.json was given, which says"):
        resolved(place)


def test_clip_is_not_written_as_tipsv2_nor_the_other_way_round(tmp_path):
    def export(tower, layout):
        model = contract.build(config.load("base", [f"model.tower={tower}"]).model)
        params = {path: np.zeros(x.shape, np.float32) for path, x in model.abstract.items()}
        exporting.write(tmp_path / "a.pt", model, params, params, layout=layout)

    with pytest.raises(UserError, match=r"Tipsv2Model has no towers called tiny-vit; use --format"):
        export("tiny-vit", "tipsv2")
    for layout in ("openai", "huggingface", "open_clip"):
        with pytest.raises(UserError, match=r"model.tower=tips-.* is no CLIP, so .* as one; use"):
            export(TOWERS["plain"], layout)
