# SPDX-License-Identifier: Apache-2.0
"""Keys of a model config of open_clip: which values of them are of a network that is here."""

from typing import Any

from cir_jax.errors import UserError
from cir_jax.towers.clip.sizes import VOCABULARY, EvaSize

EPSILONS = (1e-5, 1e-6)  # of LayerNorms: CLIP's, which is PyTorch's default, and another
TANH = {"approximate": "tanh"}  # PyTorch's GELU by its approximation
# Encoders of timm that are here, by the name that it has for them.
EVA = {
    "eva02_base_patch16_clip_224": EvaSize(224, 16, 768, 12, 12, 2048),
    "eva02_large_patch14_clip_224": EvaSize(224, 14, 1024, 24, 16, 2730),
    "eva02_large_patch14_clip_336": EvaSize(336, 14, 1024, 24, 16, 2730),
}
# Where timm is told other numbers than those of a name.
EVA_NUMBERS = {
    "img_size": "image", "patch_size": "patch", "embed_dim": "width", "depth": "layers",
    "num_heads": "heads",
}  # fmt: skip

# Key -> values with which the network is one of ours. A key in neither this nor READ or UNUSED
# is refused whatever its value: nobody knows what a later version means by it.
_BLOCKS = {
    "act_kwargs": (None, {}, TANH, {"approximate": "none"}),
    "norm_kwargs": (None, {}, *({"eps": epsilon} for epsilon in EPSILONS)),
    "block_type": (None, "default"),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn",
         "scale_fc"),
        (False,),
    ),
}  # fmt: skip
PLAIN: dict[str, dict[str, tuple]] = {
    "": {
        "quick_gelu": (False, True),
        "custom_text": (False, True),
        "nonscalar_logit_scale": (False, True),
    },
    "vision_cfg": {
        **_BLOCKS,
        "timm_model_name": (None, "", *EVA),
        "attentional_pool": (False, None, "", True),
        "pool_type": ("tok", "avg"),
        "final_ln_after_pool": (False, True),
        "pos_embed_type": ("learnable", "sin_cos_2d"),  # a tensor of the file in either case
        "no_ln_pre": (False, True),
        "input_patchnorm": (False,),
        "global_average_pool": (False,),
        "image_seq_len": (None,),
    },
    "text_cfg": {
        **_BLOCKS,
        "hf_model_name": (None, ""),
        "tokenizer_mode": (None,),
        "tokenizer_kwargs": (None, {}, {"clean": "lower"}),
        "tokenizer_type": (None, ""),
        "text_arch": ("clip",),
        "variable_text": (False,),
        "final_ln_after_pool": (False,),
        "embed_cls": (False, True),
        "no_causal_mask": (False, True),
        "pool_type": ("argmax", "eos", "first", "last"),
        "proj_type": ("linear",),
        "proj_bias": (False, True),
    },
    # CoCa's writer of captions, which is not read.
    "multimodal_cfg": {},
}
READ = {
    "": ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg"),
    "vision_cfg": (
        "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value",
        "attn_pooler_queries", "attn_pooler_heads", "timm_model_kwargs", "timm_pool", "timm_proj",
    ),
    "text_cfg": (
        "context_length", "width", "heads", "layers", "mlp_ratio", "vocab_size", "eos_id",
        "hf_tokenizer_name", "ls_init_value",
    ),
    "multimodal_cfg": (),
}  # fmt: skip
# No part of the function at inference, or settings of what PLAIN has switched off.
UNUSED = {
    "": ("init_logit_scale", "init_logit_bias", "output_dict", "cast_dtype"),
    "vision_cfg": (
        "patch_dropout", "output_tokens", "timm_model_pretrained", "timm_proj_bias", "timm_drop",
        "timm_drop_path",
    ),
    "text_cfg": (
        "pad_id", "bos_id", "output_tokens", "tiktoken_name", "hf_model_pretrained",
        "hf_proj_type", "hf_pooler_type", "hf_model_config",
    ),
    "multimodal_cfg": (
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "dim_head",
        "n_queries", "attn_pooler_heads", "ls_init_value",
    ),
}  # fmt: skip


def check_keys(model: dict[str, Any], name: str) -> None:
    """Raises UserError, which begins with `name`, for the keys of a network that is not here."""
    wrong = []
    for part, plain in PLAIN.items():
        keys = model.get(part, {}) if part else model
        if not is_object(keys):
            wrong.append(f"{part}={short(keys)}")
            continue
        known = (*READ[part], *UNUSED[part])
        for key, value in keys.items():
            if key not in known and not _among(value, plain.get(key, ())):
                wrong.append(f"{part}{part and '.'}{key}={short(value)}")
    wrong = wrong or _together(model)
    if wrong:
        raise UserError(
            f"{name} is not of a network that is here: {', '.join(wrong)}. There are OpenAI's two "
            "image encoders (ViT, ResNet), EVA-02's, and its text encoder, with the parts that "
            "cir_jax/towers/clip/sizes.py names; take weights of a model without these"
        )


def _together(model: dict[str, Any]) -> list[str]:
    """What is wrong about keys, each of which is allowed alone."""
    vision, text, wrong = model["vision_cfg"], model["text_cfg"], []
    if text.get("pool_type") == "eos" and text.get("eos_id") is None:
        wrong.append("text_cfg.pool_type='eos' without eos_id")
    own = text.get("vocab_size", VOCABULARY) != VOCABULARY
    if text.get("hf_tokenizer_name") and not own:
        wrong.append(f"text_cfg.hf_tokenizer_name={short(text['hf_tokenizer_name'])}")
    if own and text.get("pool_type", "argmax") == "argmax":
        wrong.append(f"text_cfg.vocab_size={short(text['vocab_size'])} with pool_type='argmax'")
    if text.get("embed_cls") and not model.get("custom_text"):
        wrong.append("text_cfg.embed_cls=True without custom_text")
    if vision.get("attentional_pool") and vision.get("pool_type", "tok") != "tok":
        wrong.append("vision_cfg.attentional_pool=True with pool_type='avg'")
    sides = [gelu_of(side) for side in (vision, text)]
    if not vision.get("timm_model_name") and sides[0] != sides[1]:
        wrong.append("act_kwargs of vision_cfg and text_cfg that differ")
    if model.get("quick_gelu") and TANH in (vision.get("act_kwargs"), text.get("act_kwargs")):
        wrong.append("act_kwargs with quick_gelu=True")
    return wrong


def gelu_of(part: dict[str, Any]) -> str:
    """The activation of a side that has a GELU."""
    return "gelu_tanh" if part.get("act_kwargs") == TANH else "gelu"


def _among(value: Any, allowed: tuple) -> bool:
    # Types too: 1 is no True, and a list can be in no set.
    return any(type(value) is type(one) and value == one for one in allowed)


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_object(value: Any) -> bool:
    """Whether a value of JSON is an object."""
    return isinstance(value, dict)
