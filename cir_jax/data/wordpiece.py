# SPDX-License-Identifier: Apache-2.0
"""BERT's WordPiece tokenizer (bert-base-uncased), offline, and the text cleaning of BLIP-2.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", arXiv 1810.04805. Text is freed of control characters, every CJK character becomes
a word, accents are taken off, all is lower-cased, and words are cut into the longest known pieces.
Words that spell a mark, such as "[SEP]", are text like any other: a caption cannot forge one.
"""

import gzip
import re
from functools import lru_cache
from importlib import resources

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

FILE = "bert_base_uncased_vocab.txt.gz"
PAD, START, END = 0, 101, 102  # [PAD], [CLS] and [SEP]
WORDS = 30_522
# Behind the words BLIP and BLIP-2 add [DEC], which no text here has; BLIP adds [ENC] as well, which
# stands in the place of [CLS].
ENC = WORDS + 1
CONTEXT = 512  # positions of BERT-base
BLIP2_CONTEXT = 32  # longest text of BLIP-2's query transformer, marks included
LONGEST_WORD = 100  # characters; a longer word is [UNK]

_BLIP2_WORDS = 50
_BLIP2_SPACES = re.compile(r"[.!\"()*#:;~]")


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """The vocabulary; the place of a word is its id."""
    file = resources.files("cir_jax.data") / "vocabulary" / FILE
    return tuple(gzip.decompress(file.read_bytes()).decode("utf-8").removesuffix("\n").split("\n"))


@lru_cache(maxsize=1)
def load() -> Tokenizer:
    """The tokenizer of the `tokenizers` library, which adds no marks."""
    vocabulary = {word: i for i, word in enumerate(words())}
    made = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=True)  # which takes accents off as well
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def clean_as_blip2(text: str) -> str:
    """A caption as BLIP-2 was given captions: lower case, less punctuation, 50 words at most.

    Source: the caption processor of LAVIS (Li et al., ACL 2023), with which BLIP-2 was trained.
    """
    text = _BLIP2_SPACES.sub(" ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:_BLIP2_WORDS])
