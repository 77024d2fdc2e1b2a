# SPDX-License-Identifier: Apache-2.0
"""config.json of transformers <-> our sizes, against what transformers itself writes and builds."""

import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection

from cir_jax.errors import UserError
from cir_jax.towers.clip import huggingface, sizes
from cir_jax.towers.clip.sizes import ClipSize, TextSize, VisionTransformerSize
from tests.towers import weights

TINY = ClipSize(weights.VISION, weights.TEXT, weights.EMBEDDING)
OTHER = ClipSize(
    VisionTransformerSize(image=28, patch=14, width=24, layers=1, heads=3, mlp=56),
    TextSize(width=16, layers=2, heads=2, mlp=40), 12, "gelu",
)  # fmt: skip


def saved(model, folder):
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def from_config(config, kind=CLIPModel):
    with torch.device("meta"):  # shapes only
        return kind(kind.config_class.from_dict(config))


def test_a_saved_model_says_its_size(tmp_path):
    config = saved(weights.torch_clip(), tmp_path)
    assert huggingface.size_of(config, tmp_path) == (TINY, weights.CONTEXT)


@pytest.mark.parametrize(
    ("size", "context"),
    [
        (TINY, 77),
        (OTHER, 248),
        (sizes.SIZES["ViT-B/32"], 77),
        (sizes.SIZES["ViT-L/14@336px"], 77),
        (sizes.find("ViT-B/16+gelu"), 77),
    ],
)
def test_a_written_config_builds_the_model_and_is_read_again(tmp_path, size, context):
    config = json.loads(json.dumps(huggingface.config_of(size, context)))
    assert huggingface.size_of(config, tmp_path) == (size, context)
    assert config["architectures"] == ["CLIPModel"]
    assert config["dtype"] == "float32"
    model = from_config(config)
    assert model.config.text_config.hidden_act == size.activation
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    vision, text = size.vision, size.text
    inside, mlp = "encoder.layers.0.mlp.fc1.weight", vision.mlp or 4 * vision.width
    assert shapes[f"vision_model.{inside}"] == (mlp, vision.width)
    assert shapes[f"text_model.{inside}"] == (text.mlp or 4 * text.width, text.width)
    assert shapes["text_model.embeddings.position_embedding.weight"] == (context, text.width)
    across = vision.image // vision.patch
    assert shapes["vision_model.embeddings.position_embedding.weight"][0] == across**2 + 1
    assert shapes["visual_projection.weight"] == (size.embedding, vision.width)
    last = f"vision_model.encoder.layers.{vision.layers - 1}.layer_norm2.bias"
    assert last in shapes
    assert last.replace(str(vision.layers - 1), str(vision.layers)) not in shapes


def test_a_model_of_a_written_config_runs_and_saves_the_same_config(tmp_path):
    config = huggingface.config_of(OTHER, 248)
    model = CLIPModel(CLIPConfig.from_dict(config)).eval()
    ids = torch.tensor([[49406, 533, 49407] + 245 * [0]])
    with torch.no_grad():
        found = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 28, 28))
    assert found.text_embeds.shape == found.image_embeds.shape == (1, 12)
    again = saved(model, tmp_path)
    assert again == config
    assert huggingface.size_of(again, tmp_path) == (OTHER, 248)


def test_a_text_config_builds_the_text_side(tmp_path):
    config = huggingface.text_config_of(OTHER, 248)
    assert config["model_type"] == "clip_text_model"
    with torch.device("meta"):
        whole = CLIPModel(CLIPConfig.from_dict(huggingface.config_of(OTHER, 248)))
    text = from_config(config, CLIPTextModelWithProjection)
    wanted = {n: x.shape for n, x in whole.state_dict().items() if n.startswith("text_")}
    assert {name: x.shape for name, x in text.state_dict().items()} == wanted
    assert text.config.hidden_act == "gelu"
    assert text.config.eos_token_id == 49407
    saved = CLIPTextModelWithProjection(text.config)
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == config


def test_a_written_config_leaves_no_default_out():
    # What is left out would be whatever the version of transformers that reads it has.
    size = sizes.SIZES["ViT-B/32"]
    whole, text = huggingface.config_of(size, 77), huggingface.text_config_of(size, 77)
    for config in (whole["text_config"], whole["vision_config"], text):
        assert {
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "hidden_act", "layer_norm_eps", "projection_dim",
        } <= config.keys()  # fmt: skip
    assert {"vocab_size", "max_position_embeddings", "eos_token_id"} <= text.keys()
    assert {"image_size", "patch_size"} <= whole["vision_config"].keys()


def test_what_a_config_leaves_out_is_the_default_of_transformers(tmp_path):
    assert huggingface.size_of({"model_type": "clip"}, tmp_path) == (
        sizes.SIZES["ViT-B/32"],
        77,
    )


def test_an_old_config_says_it_in_the_dicts_and_ends_texts_with_2(tmp_path):
    # As transformers 4.2x wrote them: a complete dump, its `_dict` doubles, and eos_token_id 2.
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "patch_size": 14,
    }  # fmt: skip
    config = {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {
            **text, "projection_dim": 768, "bos_token_id": 0, "eos_token_id": 2, "dropout": 0.0,
            "add_cross_attention": False, "model_type": "clip_text_model", "torch_dtype": None,
            "attention_dropout": 0.1,
        },
        "text_config_dict": {**text, "projection_dim": 768},
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": {**vision, "model_type": "clip_vision_model"},
        "vision_config_dict": vision,
    }  # fmt: skip
    before = json.dumps(config)
    assert huggingface.size_of(config, tmp_path) == (sizes.SIZES["ViT-L/14"], 77)
    assert json.dumps(config) == before
    del config["text_config"], config["vision_config"]
    assert huggingface.size_of(config, tmp_path) == (sizes.SIZES["ViT-L/14"], 77)


def test_the_outer_projection_counts_as_in_clip_model(tmp_path):
    # Configs of published ViT-H/14 and ViT-g/14 left 512 inside the sides.
    sides = {"text_config": {"projection_dim": 512}, "vision_config": {"projection_dim": 512}}
    config = {"model_type": "clip", "projection_dim": 1024, **sides}
    size, _ = huggingface.size_of(config, tmp_path)
    assert size.embedding == 1024
    assert from_config(config).visual_projection.weight.shape == (1024, 768)


def test_a_pair_of_equal_sides_is_a_square(tmp_path):
    config = {"model_type": "clip", "vision_config": {"image_size": [224, 224]}}
    assert huggingface.size_of(config, tmp_path)[0] == sizes.SIZES["ViT-B/32"]


REFUSED = {
    "text_config": [
        ("hidden_act", "gelu", r"text_config.hidden_act='gelu'.*both sides"),
        ("hidden_act", "relu", "text_config.hidden_act='relu'"),
        ("layer_norm_eps", 1e-6, r"text_config.layer_norm_eps=1e-06 \(only 1e-05"),
        ("vocab_size", 250002, "text_config.vocab_size=250002"),
        ("eos_token_id", 1, r"text_config.eos_token_id=1 .*49407"),
        ("eos_token_id", [49407], r"text_config.eos_token_id=\[49407\]"),
        ("num_attention_heads", 7, "multiple of the number of attention heads"),
        ("num_hidden_layers", 0, "text_config.num_hidden_layers=0"),
        ("max_position_embeddings", 0, "text_config.max_position_embeddings=0"),
        ("hidden_size", "512", "hidden_size"),
        ("model_type", "siglip_text_model", "text_config.model_type='siglip_text_model'"),
    ],
    "vision_config": [
        ("hidden_act", "gelu_new", "vision_config.hidden_act='gelu_new'"),
        ("layer_norm_eps", None, "vision_config.layer_norm_eps|refused by transformers"),
        ("num_channels", 4, r"vision_config.num_channels=4 \(RGB"),
        ("image_size", [224, 336], r"vision_config.image_size=\[224, 336\].*square"),
        ("image_size", 16, "an image of 16 pixels has no patch of 32"),
        ("intermediate_size", 0, "vision_config.intermediate_size=0"),
    ],
    "": [
        ("model_type", "siglip", "kind 'siglip', not 'clip'"),
        ("model_type", "blip", "kind 'blip'"),
        ("model_type", "chinese_clip", "kind 'chinese_clip'"),
        ("model_type", "clip_vision_model", "kind 'clip_vision_model'.*image and text"),
        ("model_type", None, "kind None"),
        ("projection_dim", 0, "projection_dim=0"),
        ("projection_dim", None, "projection_dim=None"),
        ("architectures", ["CLIPForImageClassification"], "CLIPForImageClassification.*CLIPModel"),
        ("quantization_config", {"quant_method": "gptq"}, "quantization_config.*not floats"),
        ("auto_map", {"AutoModel": "model.Own"}, "auto_map.*code of its own"),
        ("text_config", 3, "text_config"),
    ],
}


@pytest.mark.parametrize(
    ("part", "key", "value", "match"),
    [(part, *case) for part, cases in REFUSED.items() for case in cases],
)
def test_another_function_is_refused_with_key_and_value(tmp_path, part, key, value, match):
    config = {"model_type": "clip", **({part: {key: value}} if part else {key: value})}
    with pytest.raises(UserError, match=match) as caught:
        huggingface.size_of(config, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_all_that_is_wrong_is_named_at_once(tmp_path):
    config = {
        "model_type": "clip",
        "text_config": {"vocab_size": 30522, "eos_token_id": 102},
        "vision_config": {"num_channels": 1},
    }
    with pytest.raises(UserError, match=r"num_channels=1.*vocab_size=30522.*eos_token_id=102"):
        huggingface.size_of(config, tmp_path)


def test_a_resnet_has_no_config_of_transformers():
    with pytest.raises(UserError, match=r"no CLIP with a ResNet.*openai, clip4cir, spn, open_clip"):
        huggingface.config_of(sizes.SIZES["RN50x4"], 77)


def test_the_text_side_of_a_resnet_has_one():
    config = huggingface.text_config_of(sizes.SIZES["RN50x4"], 77)
    text = from_config(config, CLIPTextModelWithProjection)
    assert text.text_projection.weight.shape == (640, 640)


def test_heads_that_no_width_divides_into(tmp_path):
    config = huggingface.config_of(TINY, 77)
    config["text_config"]["num_attention_heads"] = 0
    with pytest.raises(UserError, match=r"config.json is refused by transformers: .*zero"):
        huggingface.size_of(config, tmp_path)
