# SPDX-License-Identifier: Apache-2.0
"""Tiny tokenizers as they lie beside weights: a tokenizer.json as Gemma's is made, and a
SentencePiece model as SigLIP's is."""

import atexit
import functools
import io
import json
import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

CONTEXT = 16
WORDS = 128  # at most, as the tiny towers have
TEXTS = ["is red and has, no", "A blue Thing!", "the red dress", "make it grey", "", "Ünïcödé"]
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-▁"


def gemma(folder, pad="<pad>", **settings):
    """Writes a tokenizer.json of pieces that begin with a space, and its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [("▁", "r"), ("▁r", "e"), ("▁re", "d"), ("▁", "i"), ("▁i", "s")]
    words = [*special, *_LETTERS, *(a + b for a, b in pieces)]
    made = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, pieces, unk_token="<unk>")
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    made.save(str(folder / "tokenizer.json"))
    said = {
        "tokenizer_class": "GemmaTokenizer", "pad_token": pad, "eos_token": "<eos>",
        "bos_token": "<bos>", "unk_token": "<unk>", "model_max_length": CONTEXT,
        "padding_side": "right", **settings,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


@functools.cache
def kept():
    """A folder as `gemma` writes it, for all tests of this process."""
    folder = tempfile.mkdtemp(prefix="tokenizer")
    atexit.register(shutil.rmtree, folder)
    return gemma(Path(folder))


def pieces(folder, **settings):
    """Writes a spiece.model, trained on a few captions, and its settings."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    corpus = [
        f"the {what} is {color}, and has no {other}"
        for what in ("dress", "shirt", "thing", "shoe") for color in ("red", "blue", "grey")
        for other in ("sleeve", "button", "collar")
    ]  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=60, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    said = {
        "tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>",
        "unk_token": "<unk>", "model_max_length": CONTEXT, **settings,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder
