# SPDX-License-Identifier: Apache-2.0
"""Configs of open_clip <-> our sizes; the published ones are typed out from their known sizes."""

import json
from pathlib import Path

import pytest

from cir_jax.data.pixels import Normalisation
from cir_jax.errors import UserError
from cir_jax.towers import encoders
from cir_jax.towers.clip import open_clip, sizes
from cir_jax.towers.clip.sizes import (
    ClipSize,
    EvaSize,
    ResNetSize,
    TextSize,
    VisionTransformerSize,
)

WHERE = Path("model")
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def config(embed=512, vision=None, text=None, **more):
    """The config of ViT-B/32 with changes."""
    return {
        "embed_dim": embed,
        "vision_cfg": {
            "image_size": 224, "layers": 12, "width": 768, "patch_size": 32, **(vision or {}),
        },
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
            **(text or {}),
        },
        **more,
    }  # fmt: skip


TEXT_24 = {"width": 1024, "heads": 16, "layers": 24}
VIT_L = {"layers": 24, "width": 1024, "patch_size": 14}
TEXT_768 = {"width": 768, "heads": 12}
PUBLISHED = {
    "ViT-B-32": (config(), "ViT-B/32+gelu"),
    "ViT-B-32-quickgelu": (config(quick_gelu=True), "ViT-B/32"),
    "ViT-B-16": (config(vision={"patch_size": 16}), "ViT-B/16+gelu"),
    "ViT-L-14": (config(768, VIT_L, TEXT_768), "ViT-L/14+gelu"),
    "ViT-L-14-336-quickgelu": (
        config(768, {**VIT_L, "image_size": 336}, TEXT_768, quick_gelu=True),
        "ViT-L/14@336px",
    ),
    "ViT-H-14": (
        config(1024, {"layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}, TEXT_24),
        "ViT-H/14+gelu",
    ),
    "ViT-H-14-378-quickgelu": (
        config(
            1024,
            {"image_size": 378, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
            TEXT_24,
            quick_gelu=True,
        ),
        "ViT-H/14@378px",
    ),
    # The inner widths are the sizes of the published weights: 6144, 8192, 15360.
    "ViT-g-14": (
        config(
            1024,
            {"layers": 40, "width": 1408, "head_width": 88, "mlp_ratio": 4.3637, "patch_size": 14},
            TEXT_24,
        ),
        "ViT-g/14+gelu",
    ),
    "ViT-bigG-14": (
        config(
            1280,
            {"layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14},
            {"width": 1280, "heads": 20, "layers": 32},
        ),
        "ViT-bigG/14+gelu",
    ),
    "ViT-e-14": (
        config(
            1280,
            {"layers": 56, "width": 1792, "head_width": 112, "mlp_ratio": 8.5715, "patch_size": 14},
            {"width": 1280, "heads": 20, "layers": 36},
        ),
        "vit-224-14-w1792-m15360-l56-h16_text-w1280-l36-h20_d1280+gelu",
    ),
    "RN50": (
        config(1024, {"layers": [3, 4, 6, 3], "width": 64, "patch_size": None}),
        "RN50+gelu",
    ),
    "RN50-quickgelu": (
        config(
            1024, {"layers": [3, 4, 6, 3], "width": 64, "patch_size": None}, quick_gelu=True
        ),
        "RN50",
    ),
    "RN50x4-quickgelu": (
        config(
            640,
            {"image_size": 288, "layers": [4, 6, 10, 6], "width": 80, "patch_size": None},
            {"width": 640, "heads": 10},
            quick_gelu=True,
        ),
        "RN50x4",
    ),
    "RN50x64-quickgelu": (
        config(
            1024,
            {"image_size": 448, "layers": [3, 15, 36, 10], "width": 128, "patch_size": None},
            {"width": 1024, "heads": 16},
            quick_gelu=True,
        ),
        "resnet-448-3.15.36.10-w128-h64_text-w1024-l12-h16_d1024",
    ),
}  # fmt: skip


# What a name stands for: the numbers written out, and open_clip's own name of its config.
NAMED = {
    "ViT-H/14+gelu": ("vit-224-14-w1280-l32-h16_text-w1024-l24-h16_d1024+gelu", "ViT-H-14"),
    "ViT-H/14@378px": (
        "vit-378-14-w1280-l32-h16_text-w1024-l24-h16_d1024", "ViT-H-14-378-quickgelu",
    ),
    "ViT-g/14+gelu": (
        "vit-224-14-w1408-m6144-l40-h16_text-w1024-l24-h16_d1024+gelu", "ViT-g-14",
    ),
    "ViT-bigG/14+gelu": (
        "vit-224-14-w1664-m8192-l48-h16_text-w1280-l32-h20_d1280+gelu", "ViT-bigG-14",
    ),
    "EVA02-L/14+gelu": ("eva-224-14-w1024-m2730-l24-h16_text-w768-l12-h12_d768+gelu",),
    "CoCa-ViT-L/14+gelu": ("ViT-L/14+gelu+image-queries256+text-class",),
    "MetaCLIP2-ViT-H/14": ("ViT-H/14+text-vocabulary901629+text-end2",),
    "ViT-L/14@336px": ("ViT-L-14-336-quickgelu",),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_names_of_one_size(name):
    size = sizes.find(name)
    assert all(sizes.find(other) == size for other in NAMED[name])
    assert sizes.name_of(size) == name
    assert encoders.find(NAMED[name][0]).size == size


@pytest.mark.parametrize(("found", "name"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_config_is_the_size_it_is_known_to_have(found, name):
    size, context = open_clip.size_of(found, WHERE)
    assert sizes.name_of(size) == name
    assert context == 77
    around = {"model_cfg": found, "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD}}
    assert open_clip.size_of(around, WHERE) == (size, context)


@pytest.mark.parametrize(("found", "name"), PUBLISHED.values(), ids=PUBLISHED)
def test_what_is_written_is_read_again(found, name):
    size = sizes.find(name)
    written = json.loads(json.dumps(open_clip.config_of(size, 248)))
    assert open_clip.size_of(written, WHERE) == (size, 248)
    assert written["preprocess_cfg"] == {"mean": CLIP_MEAN, "std": CLIP_STD}
    assert written["model_cfg"]["quick_gelu"] == (size.activation == "quick_gelu")
    # Every key that open_clip's own config has says the same.
    for part in ("vision_cfg", "text_cfg"):
        ours = {**written["model_cfg"][part], "context_length": 77, "mlp_ratio": None}
        assert {k: ours[k] for k in found[part]} == {
            k: None if k == "mlp_ratio" else v for k, v in found[part].items()
        }


def test_every_inner_width_survives_the_ratio():
    for width in (24, 96, 384, 1408, 1664, 1792):
        for inner in (*range(1, 1500), 6144, 8192, 15360):
            text = TextSize(width, 1, 8, 0 if inner == 4 * width else inner)
            size = ClipSize(VisionTransformerSize(32, 8, 64, 1, 1), text, 8)
            ratio = open_clip.config_of(size, 77)["model_cfg"]["text_cfg"]["mlp_ratio"]
            assert int(width * ratio) == inner


def test_what_a_config_leaves_out_is_the_default_of_open_clip():
    size, context = open_clip.size_of({"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}}, WHERE)
    assert (sizes.name_of(size), context) == ("ViT-B/16+gelu", 77)
    resnet = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32}
    size, _ = open_clip.size_of({"embed_dim": 9, "vision_cfg": resnet, "text_cfg": {}}, WHERE)
    assert size.vision == ResNetSize(224, (1, 1, 1, 1), 16, 16)


def test_keys_that_change_nothing_are_let_be():
    harmless = config(
        vision={
            "patch_dropout": 0.5, "pool_type": "tok", "ls_init_value": None, "timm_pool": "avg",
            "attentional_pool": False, "norm_kwargs": {"eps": 1e-5}, "image_size": [224, 224],
        },
        text={"pad_id": 1, "pool_type": "eos", "eos_id": 49407, "proj_bias": False},
        init_logit_scale=2.0,
        custom_text=False,
    )  # fmt: skip
    pictures = {"interpolation": "bicubic", "resize_mode": "squash", "mean": CLIP_MEAN}
    found = open_clip.size_of({"model_cfg": harmless, "preprocess_cfg": pictures}, WHERE)
    assert found == open_clip.size_of(config(), WHERE)


POOLED = {"attentional_pool": True, "attn_pooler_heads": 8, "output_tokens": True}
DECODER = {"context_length": 76, "width": 512, "heads": 8, "layers": 12, "attn_pooler_heads": 8}
CLASS_TOKEN = {"context_length": 76, "embed_cls": True, "output_tokens": True}
COCA = config(vision=POOLED, text=CLASS_TOKEN, multimodal_cfg=DECODER, custom_text=True)
SIGLIP = {
    "embed_dim": 768,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map",
        "timm_model_pretrained": False, "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64, "vocab_size": 32000, "width": 768, "heads": 12, "layers": 12,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "no_causal_mask": True, "pool_type": "last",
    },
}  # fmt: skip
EVA = {
    **config(custom_text=True),
    "vision_cfg": {
        "image_size": 224, "timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "token",
        "timm_model_pretrained": False, "timm_proj": None,
    },
}  # fmt: skip
XLM_V = {"hf_tokenizer_name": "facebook/xlm-v-base", "vocab_size": 901_629}
MT5 = {"hf_tokenizer_name": "google/mt5-base", "vocab_size": 250_100}
EPSILON = {"norm_kwargs": {"eps": 1e-6}}
TANH = {"act_kwargs": {"approximate": "tanh"}}
# Of networks that are not OpenAI's: the config, our name, text positions.
OTHERS = {
    "coca_ViT-B-32": (COCA, "CoCa-ViT-B/32+gelu", 76),
    "EVA02-B-16": (EVA, "EVA02-B/16+gelu", 77),
    "ViT-B-32-worldwide": (
        config(text={**XLM_V, "pool_type": "eos", "eos_id": 2}, quick_gelu=True),
        "ViT-B/32+text-vocabulary901629+text-end2", 77,
    ),
    "mt5": (
        config(text={**MT5, "pool_type": "eos", "eos_id": 1}),
        "ViT-B/32+gelu+text-vocabulary250100+text-end1", 77,
    ),
    "custom text": (config(custom_text=True), "ViT-B/32+gelu", 77),
    "layer scale": (
        config(vision={"ls_init_value": 1e-4}, text={"ls_init_value": 0.1}),
        "ViT-B/32+gelu+image-scale+text-scale", 77,
    ),
    "mean of the patches": (
        config(
            vision={"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
            text={"no_causal_mask": True, "pool_type": "last"},
        ),
        "ViT-B/32+gelu+image-bare+image-mean+text-last+text-open", 77,
    ),
    "norms and activations": (
        config(vision={**EPSILON, **TANH, "pool_type": "avg"},
               text={**EPSILON, **TANH, "pool_type": "first", "proj_bias": True}),
        "ViT-B/32+gelu_tanh+image-normed-mean+image-eps6+text-first+text-bias+text-eps6", 77,
    ),
    "sine positions": (config(vision={"pos_embed_type": "sin_cos_2d"}), "ViT-B/32+gelu", 77),
    "sigmoid": (config(init_logit_bias=-10, nonscalar_logit_scale=True), "ViT-B/32+gelu", 77),
}  # fmt: skip


@pytest.mark.parametrize(("found", "name", "context"), OTHERS.values(), ids=OTHERS)
def test_a_network_that_is_not_openais_is_named_by_its_parts(found, name, context):
    size, positions = open_clip.size_of(found, WHERE)
    assert (sizes.name_of(size), positions) == (name, context)
    assert sizes.find(name) == size
    custom = open_clip.needs_custom_text(size)
    assert custom == (name.startswith(("CoCa", "EVA02")))
    written = json.loads(json.dumps(open_clip.config_of(size, context, custom=custom)))
    assert open_clip.size_of(written, WHERE) == (size, context)
    assert written["model_cfg"].get("custom_text", False) == custom


def test_an_eva_of_other_numbers_is_written_with_them():
    size = sizes.find("eva-32-8-w64-m100-l2-h2_text-w64-l2-h2_d32+gelu")
    written = json.loads(json.dumps(open_clip.config_of(size, 16, custom=True)))
    assert written["model_cfg"]["vision_cfg"]["timm_model_kwargs"]["depth"] == 2
    assert open_clip.size_of(written, WHERE) == (size, 16)
    assert isinstance(size.vision, EvaSize)


def other_eva(**changes):
    return EVA | {"vision_cfg": EVA["vision_cfg"] | changes}


REFUSED = {
    "coca without custom_text": (
        config(text={"embed_cls": True}), "text_cfg.embed_cls=True without custom_text"
    ),
    "other coca": (config(vision={"attentional_pool": "cascade"}), "attentional_pool='cascade'"),
    "pooled mean": (config(vision={**POOLED, "pool_type": "avg"}), "True with pool_type='avg'"),
    "mammut": (config(multimodal_cfg={"does_full_decoding": True}), "multimodal_cfg.does_full_dec"),
    "no decoder": (config(multimodal_cfg=3), "multimodal_cfg=3"),
    "siglip": (SIGLIP, "vit_base_patch16_siglip_224"),
    "eva": (other_eva(timm_model_name="eva02_tiny_patch14_224"), "eva02_tiny_patch14_224"),
    "eva pool": (other_eva(timm_pool="avg"), "vision_cfg.timm_pool='avg'.*EVA-02-CLIP is here"),
    "eva proj": (other_eva(timm_proj="linear"), "vision_cfg.timm_proj='linear'"),
    "eva size": (other_eva(image_size=336), "image_size=336, but eva02_base_.* takes 224"),
    "eva kwargs": (other_eva(timm_model_kwargs={"rope": 1}), "timm_model_kwargs={'rope': 1}"),
    "xlm": (config(text={"hf_model_name": "xlm-roberta-base"}), "hf_model_name='xlm-roberta-base'"),
    "modern": (config(text={"text_arch": "modern"}), "text_cfg.text_arch='modern'"),
    "clipa": (
        config(text={"tokenizer_kwargs": {"strip_sep_token": True}, "vocab_size": 32_000,
                     "pool_type": "last", "no_causal_mask": True}),
        "tokenizer_kwargs={'strip_sep_token': True}",
    ),
    "layer scale": (config(vision={"ls_init_value": "small"}), "ls_init_value='small'"),
    "mean": (config(vision={"global_average_pool": True}), "global_average_pool=True"),
    "patch norm": (config(vision={"input_patchnorm": True}), "input_patchnorm=True"),
    "block": (config(text={"qk_norm": True}), "text_cfg.qk_norm=True"),
    "norm": (config(text={"norm_kwargs": {"eps": 1e-4}}), r"norm_kwargs=\{'eps': 0.0001\}"),
    "act": (config(vision=TANH), "act_kwargs of vision_cfg and text_cfg that differ"),
    "quick act": (
        config(vision=TANH, text=TANH, quick_gelu=True), "act_kwargs with quick_gelu=True"
    ),
    "vocabulary": (
        config(text={"vocab_size": 901_629}), "vocab_size=901629 with pool_type='argmax'"
    ),
    "tokenizer": (config(text={"hf_tokenizer_name": "gpt2"}), "hf_tokenizer_name='gpt2'"),
    "eos": (config(text={"pool_type": "eos"}), "pool_type='eos' without eos_id"),
    "end": (
        config(text={"vocab_size": 9, "pool_type": "eos", "eos_id": 9}),
        "an end of text 9 in a vocabulary of 9",
    ),
    "case": (config(text={"tokenizer_kwargs": {"clean": "canonicalize"}}), "canonicalize"),
    "pool heads": (
        config(vision={**POOLED, "attn_pooler_heads": 7}), "does not divide into 7 heads of the a"
    ),
    "audio": (config(audio_cfg={"model": "HTSAT"}), "audio_cfg="),
    "unknown": (config(vision={"rotary": 0}), "vision_cfg.rotary=0"),
    "no true": (config(quick_gelu="yes"), "quick_gelu='yes'"),
    "no text": ({"embed_dim": 3, "vision_cfg": {}}, "no vision_cfg or text_cfg, only embed_dim"),
    "nothing": ({"model_cfg": []}, "no model_cfg"),
    "oblong": (config(vision={"image_size": [224, 112]}), r"image_size=\[224, 112\].*square"),
    "three": (config(vision={"layers": [3, 4, 6]}), r"layers=\[3, 4, 6\].*four stages"),
    "heads": (config(text={"heads": 7}), "text width 512 does not divide into 7 heads"),
    "head": (config(vision={"head_width": 800}), "vision width 768 does not divide into 0 heads"),
    "ratio": (config(vision={"mlp_ratio": 0}), "vision_cfg.mlp_ratio=0"),
    "written": (config(vision={"mlp_ratio": "4"}), "vision_cfg.mlp_ratio='4'"),
    "width": (config(vision={"width": 768.0}), "vision_cfg.width=768.0.*whole number"),
    "embedding": (config(None), "embed_dim=None"),
    "patch": (config(vision={"patch_size": None}), "vision_cfg.patch_size=None"),
}  # fmt: skip


@pytest.mark.parametrize(("found", "match"), REFUSED.values(), ids=REFUSED)
def test_another_network_is_refused_with_key_and_value(found, match):
    with pytest.raises(UserError, match=match) as caught:
        open_clip.size_of(found, WHERE)
    assert str(caught.value).startswith("model: the config of open_clip")


def test_a_preprocessing_that_is_no_object_is_refused():
    with pytest.raises(UserError, match=r"preprocess_cfg=\[0.5\], no object"):
        open_clip.size_of({"model_cfg": config(), "preprocess_cfg": [0.5]}, WHERE)


def test_another_normalisation_and_filter_come_in_and_go_out_again():
    half = {
        "mean": [0.5] * 3,
        "std": CLIP_STD,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    said = open_clip.processor_of({"model_cfg": config(), "preprocess_cfg": half}, WHERE)
    assert said.model == {
        "pixel_mean": (0.5,) * 3, "pixel_deviation": (), "interpolation": "bilinear",
    }  # fmt: skip
    assert said.data == {"pad": "squash"}
    size, context = open_clip.size_of({"model_cfg": config()}, WHERE)
    pixels = Normalisation((0.5,) * 3)
    written = open_clip.config_of(size, context, pixels, "bilinear")["preprocess_cfg"]
    assert written == {"mean": [0.5] * 3, "std": CLIP_STD, "interpolation": "bilinear"}


@pytest.mark.parametrize(
    "said, why",
    [
        ({"mean": 0.5}, "pixel_mean of 0.5; three numbers"),
        ({"std": [0.5, 0.5]}, "three numbers"),
        ({"std": [0.5, 0.5, 0]}, "deviation .* none of an image"),
        ({"interpolation": "lanczos"}, "interpolation='lanczos', and bilinear, bicubic"),
    ],
)
def test_pixels_that_no_config_says_are_refused(said, why):
    with pytest.raises(UserError, match=why):
        open_clip.size_of({"model_cfg": config(), "preprocess_cfg": said}, WHERE)
