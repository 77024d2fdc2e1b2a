# SPDX-License-Identifier: Apache-2.0
"""A folder of transformers' EmbeddingGemma2Model: config.json, and its processor.

The published config is that of the defaults. What a config says that makes another function of the
same shapes (limits of the image encoder's linear layers, a standardisation of its soft tokens,
other waves of the rotations) is refused by name: no published EmbeddingGemma 2 has it.
"""

import math
from pathlib import Path
from typing import Any

from cir_jax.convert import remote_code
from cir_jax.convert.config_values import whole_number
from cir_jax.convert.sources import read_json
from cir_jax.convert.transformers_files import PREPROCESSOR, PROCESSOR, completed
from cir_jax.errors import UserError
from cir_jax.towers.gemma import bidirectional, sizes, vision
from cir_jax.towers.gemma.layers import EPSILON
from cir_jax.towers.gemma.sizes import GemmaSize, Marks, TextSize, VisionSize

CLASS = "EmbeddingGemma2Model"
KIND = "embedding_gemma2"
ACTIVATION = "gelu_pytorch_tanh"
BUDGETS = (70, 140, 280, 560, 1120)  # soft tokens of an image that the processor may be told
_SIDES = ("axial", "default")  # names of rotations by both sides: of now, and of older configs
BUDGET = 280  # what it is told where it says nothing
_WAVES = {
    "sliding_attention": ("default", bidirectional.LOCAL_THETA),
    "full_attention": ("default", bidirectional.GLOBAL_THETA),
}


def side_of(budget: int, patch: int, pool: int) -> int:
    """Pixels along a side of what the processor makes of a square image."""
    step = patch * pool
    return math.floor(math.sqrt(budget * pool**2 * patch**2) / step) * step


def budget_of(size: GemmaSize) -> int:
    """The soft tokens that the processor must be told to make squares of this size.

    Raises:
      UserError: it cannot make them.
    """
    v = size.vision
    sides = {side_of(budget, v.patch, v.pool): budget for budget in BUDGETS}
    if v.image not in sides:
        raise UserError(
            f"the processor of {CLASS} makes squares of {', '.join(map(str, sides))} pixels for "
            f"patches of {v.patch}, and this model is of {v.image}: it would be served with other "
            "pixels. Write --format safetensors, or train with a model.image_size of these"
        )
    return sides[v.image]


def size_of(config: dict[str, Any], where: Path) -> GemmaSize:
    """The size that a config.json says, for squares as the processor beside it makes them.

    Args:
      config: the JSON.
      where: folder it is from: its processor says the soft tokens of an image.

    Raises:
      UserError: it is of another kind of model, or of one that our encoders cannot be.
    """
    name = f"{where}: config.json"
    remote_code.check(config, name, CLASS)
    full = _complete(config, name)
    if full.vision_config is None:
        raise UserError(
            f"{name} has no vision_config: these weights read texts alone; give the whole "
            "EmbeddingGemma 2, or that with its image encoder"
        )
    _check_function(full, name)
    v, t = full.vision_config, full.text_config
    patch = whole_number(v.patch_size, "vision_config.patch_size", name)
    pool = whole_number(v.pooling_kernel_size, "vision_config.pooling_kernel_size", name)
    period = t.layer_types.index("full_attention") + 1
    local, last = t.per_layer_config[0], t.per_layer_config[period - 1]
    size = GemmaSize(
        VisionSize(
            side_of(_budget(where), patch, pool), patch, pool, v.hidden_size, v.intermediate_size,
            v.num_hidden_layers, v.num_attention_heads, v.head_dim, v.position_embedding_size,
        ),
        TextSize(
            t.vocab_size, t.hidden_size, t.intermediate_size, t.num_hidden_layers, period,
            t.num_attention_heads, local.num_key_value_heads, local.head_dim,
            last.num_key_value_heads, last.head_dim, t.sliding_window,
            t.hidden_size_per_layer_input,
        ),
        t.embedding_dim,
        Marks(full.image_token_id, full.boi_token_id, full.eoi_token_id),
    )  # fmt: skip
    sizes.check(size, name)
    return size


def config_of(size: GemmaSize, dtype: str = "float32") -> dict[str, Any]:
    """config.json of an EmbeddingGemma2Model of this size, as transformers writes it.

    Args:
      size: of the model.
      dtype: type in which transformers is to load it.
    """
    from transformers import EmbeddingGemma2Config  # takes seconds, and other formats do without

    v, m = size.vision, size.marks
    config = EmbeddingGemma2Config(
        text_config=text_config_of(size, dtype),
        vision_config={
            "model_type": "gemma4_vision",
            "hidden_size": v.width,
            "intermediate_size": v.mlp,
            "num_hidden_layers": v.layers,
            "num_attention_heads": v.heads,
            "num_key_value_heads": v.heads,
            "head_dim": v.head,
            "hidden_activation": ACTIVATION,
            "rms_norm_eps": EPSILON,
            "pooling_kernel_size": v.pool,
            "patch_size": v.patch,
            "position_embedding_size": v.positions,
            "use_clipped_linears": False,
            "standardize": False,
        },
        audio_config=None,
        image_token_id=m.image,
        boi_token_id=m.begin,
        eoi_token_id=m.end,
        architectures=[CLASS],
        dtype=dtype,
    )
    return config.to_dict()


def text_config_of(size: GemmaSize, dtype: str = "float32") -> dict[str, Any]:
    """config.json of an EmbeddingGemma2TextModel of this size; arguments as of `config_of`."""
    from transformers import EmbeddingGemma2TextConfig

    t = size.text
    kinds = ["sliding_attention"] * (t.period - 1) + ["full_attention"]
    wide = {"head_dim": t.global_head, "num_key_value_heads": t.global_keys}
    layers: dict[str, Any] = {  # of which transformers' class does not tell a type checker
        "per_layer_config": dict.fromkeys(range(t.period - 1, t.layers, t.period), wide)
    }
    config = EmbeddingGemma2TextConfig(
        vocab_size=t.vocabulary,
        hidden_size=t.width,
        intermediate_size=t.mlp,
        num_hidden_layers=t.layers,
        num_attention_heads=t.heads,
        num_key_value_heads=t.keys,
        head_dim=t.head,
        hidden_activation=ACTIVATION,
        rms_norm_eps=EPSILON,
        sliding_window=t.window,
        layer_types=kinds * (t.layers // t.period),
        hidden_size_per_layer_input=t.signal,
        embedding_dim=size.embedding,
        architectures=["EmbeddingGemma2TextModel"],
        dtype=dtype,
        **layers,
    )
    return config.to_dict()


def image_settings(folder: Path) -> dict[str, Any]:
    """What the processor beside the weights says of images; {} where there is none."""
    for name in (PROCESSOR, PREPROCESSOR):
        path = folder / name
        if path.is_file():
            found = read_json(path)
            inner = found.get("image_processor", found)
            if isinstance(inner, dict) and inner.keys() & {"max_soft_tokens", "patch_size"}:
                return inner
    return {}


def check_images(folder: Path, size: GemmaSize) -> None:
    """Raises UserError if a folder's processor makes other pixels than the model gets here."""
    found, v = image_settings(folder), size.vision
    wanted: dict[str, tuple[Any, ...]] = {
        "patch_size": (v.patch,),
        "pooling_kernel_size": (v.pool,),
        "do_resize": (True,),
        "do_rescale": (True,),
        "do_normalize": (False,),
        "resample": (3,),  # Pillow's number of bicubic
    }
    wrong = [
        f"{key}={found[key]!r} (here {values[0]!r})"
        for key, values in wanted.items()
        if found.get(key) is not None and found[key] not in values
    ]
    factor = found.get("rescale_factor")
    if factor is not None and not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        wrong.append(f"rescale_factor={factor!r} (here 1/255)")
    if wrong:
        raise UserError(
            f"{folder}: its image processor has {'; '.join(wrong)}: other pixels than the model "
            "gets here; correct the file, or take it out of the folder"
        )


def processor_of(size: GemmaSize) -> dict[str, Any]:
    """An image processor that makes of squares what we do.

    Raises:
      UserError: there is none.
    """
    v = size.vision
    return {
        "image_processor_type": "Gemma4ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "patch_size": v.patch,
        "pooling_kernel_size": v.pool,
        "max_soft_tokens": budget_of(size),
    }


def _budget(folder: Path) -> int:
    budget = image_settings(folder).get("max_soft_tokens") or BUDGET
    if budget not in BUDGETS:
        raise UserError(
            f"{folder}: its image processor has max_soft_tokens={budget!r}; there are "
            f"{', '.join(map(str, BUDGETS))}; correct the file, or take it out of the folder"
        )
    return int(budget)


def _complete(config: dict[str, Any], name: str) -> Any:
    """The config with every default of transformers."""
    from transformers import EmbeddingGemma2Config

    kind, built = config.get("model_type"), config.get("architectures")
    if kind != KIND or (built and CLASS not in built):
        raise UserError(
            f"{name} has model_type={kind!r} and architectures={built!r}; an EmbeddingGemma 2 is "
            f"needed, as transformers' {CLASS} saves it"
        )

    def make(some: dict[str, Any]) -> Any:
        full: Any = EmbeddingGemma2Config.from_dict(some)
        _ = [one.head_dim for one in full.text_config.per_layer_config]
        return full

    return completed(config, name, make)


def _check_function(full: Any, name: str) -> None:
    """Raises UserError for every key that makes another function of the same shapes."""
    v, t = full.vision_config, full.text_config
    wrong = [
        f"{part}.{key}={getattr(side, key)!r} (here {want!r})"
        for part, side, key, want in (
            ("vision_config", v, "hidden_activation", ACTIVATION),
            ("vision_config", v, "rms_norm_eps", EPSILON),
            ("vision_config", v, "use_clipped_linears", False),
            ("vision_config", v, "standardize", False),
            ("vision_config", v, "attention_bias", False),
            ("vision_config", v, "num_key_value_heads", v.num_attention_heads),
            ("text_config", t, "hidden_activation", ACTIVATION),
            ("text_config", t, "rms_norm_eps", EPSILON),
            ("text_config", t, "attention_bias", False),
            ("text_config", t, "pad_token_id", sizes.PAD),
        )
        if getattr(side, key) != want
    ]  # fmt: skip
    waves = v.rope_parameters or {}
    if waves.get("rope_type") not in _SIDES or waves.get("rope_theta") != vision.THETA:
        wrong.append(f"vision_config.rope_parameters={waves!r} (here {vision.THETA} by both sides)")
    for kind, (form, theta) in _WAVES.items():
        found = (t.rope_parameters or {}).get(kind)
        want = {"rope_type": form, "rope_theta": theta}
        if kind in t.layer_types and found != want:
            wrong.append(f"text_config.rope_parameters[{kind!r}]={found!r} (here {want!r})")
    wrong += _odd_layers(t)
    if wrong:
        raise UserError(
            f"{name} is of an EmbeddingGemma that this project cannot be: {'; '.join(wrong)}. Take "
            "other weights, or correct the config if it is not what the weights were trained with"
        )


def _odd_layers(t: Any) -> list[str]:
    """Why the layers are not some local ones and a global one, again and again; [] if they are."""
    kinds = list(t.layer_types)
    if "full_attention" not in kinds:
        return [f"text_config.layer_types={kinds} without a global layer"]
    period = kinds.index("full_attention") + 1
    wanted = ["sliding_attention"] * (period - 1) + ["full_attention"]
    if len(kinds) % period or kinds != wanted * (len(kinds) // period):
        return [f"text_config.layer_types={kinds} (here a global one behind each {period - 1})"]
    for n, one in enumerate(t.per_layer_config):
        same = t.per_layer_config[n % period if n % period == period - 1 else 0]
        for key in ("head_dim", "num_key_value_heads"):
            if getattr(one, key) != getattr(same, key):
                return [f"text_config.per_layer_config[{n}].{key}={getattr(one, key)!r}"]
    return []
