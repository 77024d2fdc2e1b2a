# SPDX-License-Identifier: Apache-2.0
"""A tiny random EmbeddingGemma 2 of transformers, its inputs, and a tokenizer beside it."""

import functools

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import EmbeddingGemma2Config, EmbeddingGemma2Model
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from cir_jax import config, contract, weights
from cir_jax.towers.gemma import huggingface, sizes

# A window of 7 leaves most tokens of an image out of sight; two periods of three layers.
TOWER = "gemma-48-2-3-w16-m24-l2-h2x8-n24_v64-w16-m24-l6x3-h4-k2x8-k1x12-r7-s8_d12_t61-62-63"
SIZE = sizes.find(TOWER)
IMAGE, BEGIN, END = 61, 62, 63
WORDS = ("a", "red", "blue", "dress", "not")


def torch_gemma(seed=0, **changes):
    """An EmbeddingGemma2Model of the sizes above; every parameter and every number is random."""
    sized = EmbeddingGemma2Config.from_dict(huggingface.config_of(SIZE) | changes)
    sized._attn_implementation = "eager"
    model = EmbeddingGemma2Model(sized).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.6, 1.4)
    return model


@functools.cache
def shared():
    """One such model, for tests that do not change it."""
    return torch_gemma()


@functools.cache
def functions(folder="", *changes):
    """The functions of our model of this size, in float32, with the tokenizer of a folder."""
    base = (f"model.tower={TOWER}", "model.name=gemma_embedding", "model.dtype=float32")
    loaded = config.load("base", [*base, *changes])
    return contract.build(weights.resolve(loaded, str(folder)).model)


def squares(count=2, side=48, seed=0):
    """uint8 [count, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


@functools.cache
def image_processor():
    """transformers' own, told of our patches."""
    return Gemma4ImageProcessorPil(
        patch_size=SIZE.vision.patch, pooling_kernel_size=SIZE.vision.pool, max_soft_tokens=70
    )


def expanded(text):
    """Ids of a text whose image token is replaced as transformers' processor does it."""
    return [
        part
        for token in text
        for part in ([BEGIN, *[IMAGE] * SIZE.vision.rows, END] if token == IMAGE else [token])
    ]


def theirs(model, texts, pictures=None):
    """[B, D] means over all tokens, raw: what is cut and made unit of transformers' output.

    Args:
      model: the model.
      texts: ids of each text, with at most one image token.
      pictures: uint8 [B, S, S, 3]; None for none.
    """
    rows = [expanded(text) for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    seen = {}
    if pictures is not None:
        seen = image_processor()(list(pictures), return_tensors="pt")
        del seen["num_soft_tokens_per_image"]
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, **seen).last_hidden_state
    weight = mask[..., None].float()
    return ((out * weight).sum(1) / weight.sum(1)).numpy()


def unit(x):
    """[B, D] over its norm."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def write_tokenizer(folder, image=IMAGE, end=True):
    """A tokenizer.json of a few words, with the marks of an image and `<eos>` behind a text."""
    letters = {chr(97 + n): 10 + n for n in range(26)}
    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "▁": 4} | letters
    made = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    filler = [f"<unused{n}>" for n in range(len(words), image)]
    marks = ["<|image|>", "<|image>", "<image|>"]
    made.add_special_tokens([*filler, *marks])
    behind = " <eos>" if end else ""
    made.post_processor = processors.TemplateProcessing(
        f"<bos> $A{behind}", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return made
