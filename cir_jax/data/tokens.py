# SPDX-License-Identifier: Apache-2.0
"""Text -> token ids, offline: the vocabularies are part of the package, or came with weights.

CLIP's byte-pair tokenizer ("clip"), exactly: text is repaired (ftfy), HTML entities are resolved
twice, white space is collapsed, everything is lower-cased. BERT's WordPiece for BLIP ("bert_enc")
and for BLIP-2 ("bert_lavis"), see `cir_jax.data.wordpiece`. One that comes with weights is read by
`cir_jax.data.tokenizer_files`.

Nothing is cut silently: a text over the context is an error that names its record, as in the
released code, unless truncation is asked for. BLIP-2 alone was trained on texts that are cut.
"""

import gzip
import html
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import ftfy
import numpy as np
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from cir_jax.data import wordpiece
from cir_jax.errors import UserError, nearest

NAMES = ("clip", "bert_enc", "bert_lavis")
FILE = "file"  # the name of one that came with weights
CLIP_CONTEXT = 77
BATCH = 4096  # texts encoded at a time: the tokenizer keeps much more than ids of each
_CLIP_MERGES = 48_894  # 49,408 ids: 2 x 256 bytes, the merges, start and end of text
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of fixed context.

    Attributes:
      name: as in `load`, or FILE.
      context: most tokens of a text, start and end included.
      start, end, pad: their ids; None where no start, or no end, is put around a text.
      backend: its vocabulary and rules.
      cuts: its model was trained on texts that are cut at the context, so that is no error.
      identity: what tells one that came with weights from every other; "" of those of the package.
    """

    name: str
    context: int
    start: int | None
    end: int | None
    pad: int
    backend: Any
    _clean: Callable[[str], str]
    cuts: bool = False
    identity: str = ""
    reads_references = False  # what an embedder of others does, see `cir_jax.embedders.inputs`

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text between start and end; of any length."""
        cleaned = [self._clean(t) for t in texts]
        encoded = self.backend.encode_batch(cleaned, add_special_tokens=False)
        first, last = ([] if mark is None else [mark] for mark in (self.start, self.end))
        return [[*first, *e.ids, *last] for e in encoded]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, start and end included."""
        return [len(ids) for ids in self.encode(texts)]


class Joined:
    """Parts of int32 arrays behind each other, which are not copied.

    Args:
      arrays: one-dimensional.
      parts: int64 [P, 3]: array, first place and end of each part.

    Attributes:
      dtype: that of the arrays.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, arrays: Sequence[np.ndarray], parts: np.ndarray):
        self._arrays, self._parts = tuple(arrays), parts
        self._starts = np.concatenate([[0], np.cumsum(parts[:, 2] - parts[:, 1])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place: np.ndarray | slice) -> np.ndarray:
        """The values at some places, in the shape of `place`, or from a place to another."""
        if isinstance(place, slice):
            place = np.arange(*place.indices(len(self)))
        places = np.asarray(place)
        part = np.searchsorted(self._starts, places, side="right") - 1
        array, first, _ = np.moveaxis(self._parts[part], -1, 0)
        inside = places - self._starts[part] + first
        found = np.empty(places.shape, self.dtype)
        for number in np.unique(array):
            here = array == number
            found[here] = self._arrays[number][inside[here]]
        return found

    def blocks(self) -> Iterator[np.ndarray]:
        """All values, in arrays behind each other."""
        for array, first, end in self._parts.tolist():
            yield self._arrays[array][first:end]


@dataclass(frozen=True)
class TokenTable:
    """Tokenised texts, without padding: a text of 12 tokens takes 56 bytes of memory, not 308.

    Attributes:
      flat: int32, the ids of all texts one behind the other, start and end included; an array, or
        `Joined` arrays of mapped files.
      start: int64 [M + 1], where each begins.
      context: most tokens of a text.
      pad: the id that fills up.
    """

    flat: "np.ndarray | Joined"
    start: np.ndarray
    context: int
    pad: int

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [M] tokens of each text."""
        return np.diff(self.start)

    def blocks(self) -> Iterator[np.ndarray]:
        """The ids of `flat`, in arrays behind each other."""
        if isinstance(self.flat, Joined):
            yield from self.flat.blocks()
        else:
            yield self.flat

    def texts(self, index: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """int32 [its tokens] ids of each of some texts."""
        index = np.asarray(index)
        first, lengths = self.start[:-1][index], self.start[1:][index] - self.start[:-1][index]
        behind = np.cumsum(lengths)
        place = np.arange(int(lengths.sum())) + np.repeat(first - behind + lengths, lengths)
        return np.split(self.flat[place], behind[:-1])

    def rows(self, index: np.ndarray | slice, length: int) -> np.ndarray:
        """int32 [m, length] ids of some texts, padded; longer ones are cut."""
        first = self.start[:-1][index][:, None]
        end = self.start[1:][index][:, None]
        place = first + np.arange(length)[None]
        if not len(self.flat):  # empty texts, of a tokenizer that puts nothing around them
            return np.full(place.shape, self.pad, np.int32)
        last = len(self.flat) - 1
        return np.where(place < end, self.flat[np.minimum(place, last)], self.pad).astype(np.int32)


def load(name: str, context: int = 0) -> Tokenizer:
    """The tokenizer called `name`, one of NAMES; `context` 0 means its own.

    Raises:
      UserError: no such tokenizer.
    """
    if name not in NAMES:
        raise UserError(
            f"no tokenizer {name!r}; there are: {', '.join(NAMES)}.{nearest(name, NAMES)}"
        )
    if name == "clip":
        bpe, start, end = _clip()
        return Tokenizer(name, context or CLIP_CONTEXT, start, end, 0, bpe, clean)
    backend, end, pad = wordpiece.load(), wordpiece.END, wordpiece.PAD
    if name == "bert_enc":
        context = context or wordpiece.CONTEXT
        return Tokenizer(name, context, wordpiece.ENC, end, pad, backend, str)
    context, own = context or wordpiece.BLIP2_CONTEXT, wordpiece.clean_as_blip2
    return Tokenizer(name, context, wordpiece.START, end, pad, backend, own, cuts=True)


def table(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    on_long: str = "error",
    where: Callable[[int], str] = "text {}".format,
    references: Sequence[Any] | None = None,
) -> TokenTable:
    """Tokenises all texts at once.

    Args:
      texts: M strings.
      tokenizer: see `load`.
      on_long: "error", or "truncate" (the end token stays last), which a tokenizer that `cuts`
        does anyhow.
      where: index of a text -> how messages name it.
      references: the reference image of each text, for a tokenizer that `reads_references`.

    Raises:
      UserError: a text is over the context, or `on_long` is unknown.
    """
    pieces, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for first in range(0, max(len(texts), 1), BATCH):
        some = texts[first : first + BATCH]
        images = None if references is None else references[first : first + BATCH]
        ids, counts = encoded(some, tokenizer, on_long, where, first, images)
        pieces.append(ids)
        lengths.append(counts)
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    return TokenTable(np.concatenate(pieces), start, tokenizer.context, tokenizer.pad)


def encoded(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    on_long: str,
    where: Callable[[int], str],
    before: int = 0,
    references: Sequence[Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(int32 ids of some texts one behind the other, int64 how many each has); see `table`.

    `before` texts were encoded already, for `where`.
    """
    if on_long not in ("error", "truncate"):
        raise UserError(f"on_long={on_long!r} is unknown; use error or truncate")
    found: list[Any] = (
        tokenizer.encode_with(references, texts)  # type: ignore[attr-defined]
        if references is not None and tokenizer.reads_references
        else tokenizer.encode(texts)
    )
    for i, ids in enumerate(found):
        if len(ids) > tokenizer.context:
            if on_long == "error" and not tokenizer.cuts:
                raise UserError(
                    f"{where(before + i)}: {len(ids)} tokens, the limit is {tokenizer.context} "
                    f"with start and end: {texts[i][:80]!r}...; shorten it, or set "
                    "data.on_long=truncate"
                )
            last = [] if tokenizer.end is None else [tokenizer.end]
            found[i] = [*ids[: tokenizer.context - len(last)], *last]
    if found and isinstance(found[0], np.ndarray):  # vectors in place of ids
        return np.concatenate(found), np.asarray([len(one) for one in found], np.int64)
    flat = np.fromiter(itertools.chain.from_iterable(found), np.int32)
    return flat, np.fromiter(map(len, found), np.int64, len(found))


def fit(length: int, context: int, allowed: Sequence[int]) -> int:
    """The smallest allowed length that holds `length` tokens; the context is always allowed."""
    return min(n for n in (*allowed, context) if length <= n <= context)


def clean(text: str) -> str:
    """CLIP's normalisation of a text before its words are split."""
    if may_need_repair(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text.strip()).strip().lower()


def may_need_repair(text: str) -> bool:
    """Whether ftfy or an HTML entity may change a text; False for printable ASCII without "&".

    What each rule of ftfy looks for is not in such a text: it returns ASCII before it looks for
    wrong encodings, entities and `html.unescape` begin at "&", terminal escapes and line breaks are
    control characters, and ligatures, wide letters, curled quotes, surrogates, C1 controls and what
    normalisation changes are no ASCII. Its other rules make such a text from another one.
    """
    return not (text.isascii() and text.isprintable()) or "&" in text


@lru_cache(maxsize=1)
def _clip() -> tuple[Backend, int, int]:
    file = resources.files("cir_jax.data") / "vocabulary" / "clip_bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [(a, b) for a, b in map(str.split, lines[1 : 1 + _CLIP_MERGES])]
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(m) for m in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    bpe = Backend(
        models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return bpe, vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]


def _byte_letters() -> list[str]:
    """The printable stand-in of every byte, in the order of CLIP's vocabulary.

    Printable bytes stand for themselves; the others follow as code points from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(hidden))]
