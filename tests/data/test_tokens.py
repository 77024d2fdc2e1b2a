# SPDX-License-Identifier: Apache-2.0
"""CLIP's tokenizer, offline: golden ids, an independent byte-pair oracle, lengths and limits."""

import gzip
import html
import itertools
import random
import re
from importlib import resources

import ftfy
import numpy as np
import pytest
import regex

from cir_jax.data import tokens
from cir_jax.errors import UserError

# Ids of the released code, without start and end of text.
GOLDEN = {
    "is darker and has, no": [533, 18737, 537, 791, 267, 871],
    "A red dress. instead of A blue dress.": [320, 736, 2595, 269, 4191, 539, 320, 1746, 2595, 269],
    "Unlike A cat, I want two dogs": [16694, 320, 2368, 267, 328, 1280, 1237, 3255],
    "": [],
}
ODD = [
    "It's the dogs' 2nd   day,\n isn't it?!",
    "caf\u00e9 na\u00efve \u4f60\u597d \U0001f468\U0001f3ff\u200d\u2696\ufe0f",
    "&amp;lt;b&amp;gt; fish &amp; chips",
    "schÃ¶n",
    "x" * 60 + " 1234567890 ...!!!???",
    "\u00a0tabs\tand\u2003wide spaces ",
]


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.load("clip")


@pytest.mark.parametrize("text", GOLDEN)
def test_golden(tokenizer, text):
    assert tokenizer.encode([text]) == [[49406, *GOLDEN[text], 49407]]


@pytest.mark.parametrize("text", [*GOLDEN, *ODD])
def test_equals_plain_byte_pair_merging(tokenizer, text):
    assert tokenizer.encode([text])[0][1:-1] == plain_ids(text)


def plain_ids(text):
    """Byte-pair encoding by its definition: join the pair of lowest rank until none is left."""
    file = resources.files("cir_jax.data") / "vocabulary" / "clip_bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")[1:48895]
    ranks = {tuple(line.split()): i for i, line in enumerate(lines)}
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    letter = {b: chr(b) for b in printable}
    order = list(printable)
    for b in range(256):
        if b not in letter:
            letter[b] = chr(256 + len(order) - len(printable))
            order.append(b)
    words = [letter[b] for b in order]
    words += [w + "</w>" for w in words] + ["".join(pair) for pair in ranks]
    number = {word: i for i, word in enumerate(words)}
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    found = []
    for word in regex.findall(pattern, " ".join(text.split()).lower()):
        parts = [letter[b] for b in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: ranks.get(pair, 1 << 30))
            if best not in ranks:
                break
            at = pairs.index(best)
            parts[at : at + 2] = ["".join(best)]
        found += [number[p] for p in parts]
    return found


def repaired(text):
    """CLIP's normalisation with ftfy for every text, as the released code has it."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip().lower()


def test_ftfy_is_left_out_for_printable_ascii_alone():
    """Of all characters, those that need no repair are these; and one by one, nor do pairs."""
    planes = map(chr, range(0x40000))
    free = [letter for letter in planes if not tokens.may_need_repair(letter)]
    assert "".join(free) == "".join(map(chr, range(32, 127))).replace("&", "")
    assert tokens.may_need_repair("\U00100000") and tokens.may_need_repair("\ud800")
    for pair in itertools.product(free, repeat=2):
        text = "".join(pair)
        assert ftfy.fix_text(text) == html.unescape(text) == text
        assert tokens.clean(text) == repaired(text)


def test_clean_is_as_with_ftfy_for_every_text():
    """Fuzzed: mojibake, entities in entities, escapes, control characters, wide and odd letters."""
    drawn = random.Random(0)
    plain = [
        "a red dress",
        "  two  spaces ",
        "<b>",
        "A&B",
        "&amp;",
        "&amp;lt;",
        "&#233;",
        "&#x26;",
        ";",
    ]
    odd = [
        "caf\u00e9",
        "\u201cquoted\u201d",
        "\ufb01",
        "\uff21",
        "\u00a0",
        "\u3000",
        "\x1b[31m",
        "\x85",
    ]
    odd += [
        "\r\n",
        "\t",
        "\x00",
        "\x7f",
        "\ud83d",
        "\u0301",
        "\ufeff",
        "\u2028",
        "\U0001f468",
        "\\u00e9",
    ]
    words, wrong = ("\u00e9t\u00e9 \u2019s", "\u4f60\u597d"), ("latin-1", "cp1252", "mac-roman")
    broken = [word.encode().decode(codec, "ignore") for word in words for codec in wrong]
    pieces = [*plain * 4, *odd, *broken, "%C3%A9", "\\x41", "=E9", "U+0041", "x" * 70]
    for _ in range(1500):
        text = "".join(drawn.choices(pieces, k=drawn.randint(0, 5)))
        assert tokens.clean(text) == repaired(text), repr(text)
    for _ in range(800):
        text = "".join(map(chr, drawn.choices(range(0x250), k=drawn.randint(1, 6))))
        assert tokens.clean(text) == repaired(text), repr(text)


def test_table_pads_with_zero(tokenizer):
    table = tokens.table(["a cat", ""], tokenizer)
    assert len(table) == 2 and table.lengths.tolist() == [4, 2] and table.flat.nbytes == 24
    rows = table.rows(np.asarray([1, 0]), 5)
    assert rows.dtype == np.int32
    assert rows.tolist() == [[49406, 49407, 0, 0, 0], [49406, 320, 2368, 49407, 0]]
    assert table.rows(slice(None), 2).tolist() == [[49406, 320], [49406, 49407]]
    assert tokens.table([], tokenizer).rows(slice(None), 3).shape == (0, 3)


def test_texts_are_encoded_some_at_a_time(tokenizer, monkeypatch):
    texts = [f"a cat and {'very ' * (i % 5)}{i} dogs" for i in range(23)]
    whole = tokens.table(texts, tokenizer)
    monkeypatch.setattr(tokens, "BATCH", 5)
    parts = tokens.table(texts, tokenizer)
    assert parts.flat.tolist() == whole.flat.tolist()
    assert parts.start.tolist() == whole.start.tolist()
    with pytest.raises(UserError, match="record 22: 102 tokens"):
        tokens.table([*texts[:22], "very " * 100], tokenizer, where=lambda i: f"record {i}")


def test_too_long_names_the_record(tokenizer):
    texts = ["short", "very " * 100]
    with pytest.raises(UserError, match=r"record 1: 102 tokens, the limit is 77.*on_long=truncate"):
        tokens.table(texts, tokenizer, where=lambda i: f"record {i}")
    cut = tokens.table(texts, tokenizer, "truncate")
    assert cut.lengths.tolist() == [3, 77] and cut.rows([1], 77)[0, -1] == 49407
    with pytest.raises(UserError, match="on_long='cut'"):
        tokens.table(texts, tokenizer, "cut")


def test_fit():
    assert [tokens.fit(n, 77, (16, 24, 100)) for n in (2, 16, 17, 25, 77)] == [16, 16, 24, 77, 77]


def test_unknown_tokenizer():
    with pytest.raises(UserError, match=r"are: clip, bert_enc, bert_lavis. Did you mean 'clip'"):
        tokens.load("clp")
