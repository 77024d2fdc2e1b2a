# SPDX-License-Identifier: Apache-2.0
"""A tokenizer of a few words, as it lies beside weights that have one of their own."""

import json

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnop"


def write(folder, start=None, end=None, pad="<pad>", **settings):
    """tokenizer.json and its settings; ids are those of `special`, then one per letter.

    Args:
      folder: where they go.
      start, end: (word, id) around a text, or None.
      pad: the word that fills up; its id is 0 or 1.
      settings: of tokenizer_config.json.
    """
    special = {word: number for word, number in filter(None, (start, end))}
    words = special | {w: n for n, w in enumerate([pad, "<unk>"]) if not special}
    words |= {w: n for w, n in ((pad, 1), ("<unk>", 3)) if special}
    words |= {letter: len(words) + n for n, letter in enumerate(LETTERS)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.normalizer = normalizers.Lowercase()
    if special:
        single = f"{start[0]} $A {end[0]}"
        made.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=list(special.items())
        )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    said = {"pad_token": pad, "model_max_length": 16, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return len(words)


def xlm(folder):
    """As XLM-V begins and ends a text, which MetaCLIP 2 reads; 20 words."""
    return write(folder, ("<s>", 0), ("</s>", 2), bos_token="<s>", eos_token="</s>")


def tips(folder):
    """Without start and end, filled up with 0, in lower case; 18 words."""
    return write(folder, tokenizer_class="Tipsv2Tokenizer")
