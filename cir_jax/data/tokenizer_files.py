# SPDX-License-Identifier: Apache-2.0
"""A tokenizer that came with weights: `tokenizer.json`, or a SentencePiece model, in a folder.

What the file says is done: its own words, special tokens and casing, with what
`tokenizer_config.json` beside it adds, as transformers reads both. What a text tower itself decides
(its context, the id that fills up, lower case) is `Rules`.

A run keeps these files in its own folder, and a file of ours inside itself, as tensors of bytes; in
each case they are known by a checksum of their content.
"""

import functools
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import xxhash
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from cir_jax.data import json_files
from cir_jax.data.tokens import FILE, Tokenizer
from cir_jax.errors import UserError, nearest

FAST = "tokenizer.json"
PIECES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
PIECE_SUFFIXES = (".model", ".spm")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PREFIX = "file:"  # before the names of these files in a .safetensors of ours
_SETTINGS = SETTINGS[0]
_ENDLESS = 100_000  # a `model_max_length` above it says that there is none
# Classes of transformers whose ids are those of the SentencePiece model itself ->
# whether they put (start, end) around a text.
PIECE_CLASSES = {
    "SiglipTokenizer": (False, True),
    "T5Tokenizer": (False, True),
    "GemmaTokenizer": (True, False),
    "LlamaTokenizer": (True, False),
    "Tipsv2Tokenizer": (False, False),
}
_CANONICAL = ("SiglipTokenizer",)  # takes capitals, punctuation and spaces out of a text first
_LOWER = ("Siglip2Tokenizer",)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Rules:
    """What a tower decides of its tokenizer.

    Attributes:
      context: most tokens of a text, special ones included; 0 is left to the files.
      pad: the id that fills up to the context; None is left to the files.
      lower: texts are written in lower case first, whatever the files say.
      words: rows of the table of tokens: no id may be above them; 0 is not checked.
      end: the id behind a text, where it is read; None where it is not read there.
    """

    context: int = 0
    pad: int | None = None
    lower: bool = False
    words: int = 0
    end: int | None = None


ANY = Rules()


def read(place: str | Path) -> dict[str, bytes]:
    """Name -> content of the files of the tokenizer at a place.

    Args:
      place: a folder, the file of the vocabulary in one, or a .safetensors file of ours.

    Raises:
      UserError: there is no tokenizer.
    """
    path = Path(place)
    if path.suffix == ".safetensors":
        found = _inside(path)
    elif path.is_file():
        found = {path.name: path.read_bytes()} | _settings(path.parent)
    else:
        found = {p.name: p.read_bytes() for p in vocabularies(path)} | _settings(path)
    if not any(_is_vocabulary(name) for name in found):
        raise UserError(
            f"{place} holds no tokenizer: {FAST}, or a SentencePiece model ({', '.join(PIECES)}); "
            "fetch it with the weights, or name its folder: --set model.tokenizer=FOLDER"
        )
    return found


def vocabularies(folder: Path) -> list[Path]:
    """The files of vocabularies in a folder; [] where there are none."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and _is_vocabulary(path.name))


def checksum(files: Mapping[str, bytes]) -> str:
    """What tells the files of a tokenizer from others."""
    digest = xxhash.xxh3_128()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def load(place: str, content: str = "", rules: Rules = ANY) -> Tokenizer:
    """The tokenizer at a place.

    Args:
      place: see `read`; "" is refused.
      content: the checksum that its files must have; "" for any.
      rules: of the tower.

    Raises:
      UserError: there is none, it is damaged, another one than `content` says, or not one that the
        tower's ids can be of.
    """
    if not place:
        raise UserError(
            "this tower reads texts by a tokenizer that comes with its weights, and none is known; "
            f"name the folder or file of it: --set model.tokenizer=FOLDER, which has {FAST} or a "
            f"SentencePiece model ({', '.join(PIECES)})"
        )
    files = read(place)
    found = checksum(files)
    if content and found != content:
        raise UserError(
            f"{place}: the tokenizer there ({', '.join(files)}, checksum {found}) is not the one "
            f"that this model was trained with (checksum {content}); bring that one back"
        )
    return _made(str(place), found, rules)


@functools.lru_cache(maxsize=4)
def _made(place: str, content: str, rules: Rules) -> Tokenizer:
    files = read(place)
    said = _Said(place, files)
    names = sorted((n for n in files if _is_vocabulary(n)), key=_order)
    vocabulary = _Fast(place, files[FAST], said, rules) if names[0] == FAST else None
    words: _Fast | _Pieces = vocabulary or _Pieces(place, names[0], files[names[0]], said, rules)
    pad = said.token("pad_token", words.number)
    if pad is None:
        pad = words.pad
    if rules.pad is not None and pad not in (None, rules.pad):
        raise UserError(
            f"{place} fills texts up with {pad}, and the text tower was trained with {rules.pad}: "
            "this is the tokenizer of another model; take the one that came with the weights"
        )
    if rules.words and words.count > rules.words:
        raise UserError(
            f"{place} has {words.count:,} words, and the text tower has {rules.words:,} of them: "
            "this is the tokenizer of another model; take the one that came with the weights"
        )
    start, end = words.around
    if rules.end not in (None, end):
        raise UserError(
            f"{place} ends a text with {'no token' if end is None else end}, and the text tower "
            f"reads one at {rules.end}: this is the tokenizer of another model, or its "
            f"{_SETTINGS} is missing; take the one that came with the weights"
        )
    return Tokenizer(
        FILE, rules.context or said.context or _no_context(place), start, end,
        next((p for p in (rules.pad, pad, end) if p is not None), 0), words, words.clean,
        identity=f"{content} {rules}",
    )  # fmt: skip


def _no_context(place: str) -> int:
    raise UserError(
        f"{place} does not say how long a text may be (model_max_length of {_SETTINGS}); set "
        "model.context to the positions that the text tower was trained with"
    )


class _Said:
    """What the settings beside a vocabulary say.

    Attributes:
      kind: class of the tokenizer, without "Fast"; "" where it is not said.
      context: most tokens of a text; 0 where it is not said.
      lower: texts are to be in lower case.
    """

    def __init__(self, place: str, files: Mapping[str, bytes]):
        self._place = place
        self._settings = _json(place, _SETTINGS, files)
        self._special = _json(place, SETTINGS[1], files)
        kind = self._settings.get("tokenizer_class")
        self.kind = kind.removesuffix("Fast") if isinstance(kind, str) else ""
        longest = self._settings.get("model_max_length")
        if not isinstance(longest, int) or isinstance(longest, bool):
            longest = 0
        self.context = longest if 0 < longest <= _ENDLESS else 0
        self.lower = self._settings.get("do_lower_case") is True or self.kind in _LOWER

    def around(self) -> tuple[bool, bool] | None:
        """Whether a start and an end are added; None where that is left to the vocabulary."""
        keys = "add_bos_token", "add_eos_token"
        if not any(isinstance(self._settings.get(key), bool) for key in keys):
            return None
        first, last = (self._settings.get(key) is True for key in keys)
        return first, last

    def token(self, key: str, number: Callable[[str], int | None]) -> int | None:
        """The id of a special token; None where there is none.

        Raises:
          UserError: it is no word of the vocabulary.
        """
        word = self._settings.get(key) or self._special.get(key)
        word = word.get("content") if isinstance(word, dict) else word
        if not isinstance(word, str):
            return None
        found = number(word)
        if found is None:
            raise UserError(
                f"{self._place}: {key}={word!r} is no word of the vocabulary; fetch the files of "
                "the tokenizer again"
            )
        return found


class _Fast:
    """A tokenizer.json.

    Attributes:
      around: (start, end) ids that are put around a text, None where there is none.
      pad: the id that it says fills up; None where it says none.
      count: one more than the largest id.
    """

    def __init__(self, place: str, content: bytes, said: _Said, rules: Rules):
        self._backend = backend = damaged(place, lambda: Backend.from_buffer(content))
        padding = backend.padding
        self.pad = padding["pad_id"] if padding else None
        backend.no_truncation()
        backend.no_padding()
        if said.lower or rules.lower:
            own = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        self.number = backend.token_to_id
        self.count = 1 + max(backend.get_vocab().values(), default=-1)
        self.clean = str
        self.around = self._around(place, said)

    def _around(self, place: str, said: _Said) -> tuple[int | None, int | None]:
        if (asked := said.around()) is not None:
            first = said.token("bos_token", self.number) if asked[0] else None
            return first, said.token("eos_token", self.number) if asked[1] else None
        whole = damaged(place, lambda: self._backend.encode("a")).ids
        inner = damaged(place, lambda: self._backend.encode("a", add_special_tokens=False)).ids
        length = len(inner)
        places = [n for n in range(len(whole) - length + 1) if whole[n : n + length] == inner]
        before = places[0] if places else 2
        after = len(whole) - before - len(inner)
        if max(before, after) > 1:
            raise UserError(
                f"{place} puts {whole} around {inner}: at most one token before a text and one "
                "behind it are possible here; take other weights"
            )
        return whole[0] if before else None, whole[-1] if after else None

    def encode_batch(self, texts: list[str], add_special_tokens: bool = False) -> list[Any]:
        """As the backend."""
        found: list[Any] = self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        return found


class _Pieces:
    """A SentencePiece model; attributes as of `_Fast`."""

    def __init__(self, place: str, name: str, content: bytes, said: _Said, rules: Rules):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise UserError(
                f"{place}: {name} is a SentencePiece model, and sentencepiece is not installed; "
                f"run pip install 'cir_jax[sentencepiece]', or put its {FAST} beside it"
            ) from None
        if said.kind and said.kind not in PIECE_CLASSES:
            raise UserError(
                f"{place}: {name} is of a {said.kind}, which may number the pieces otherwise than "
                f"the model does; put its {FAST} beside it.{nearest(said.kind, PIECE_CLASSES)}"
            )
        self._model = model = damaged(place, lambda: SentencePieceProcessor(model_proto=content))
        lower = said.lower or rules.lower
        self.clean = _canonical if said.kind in _CANONICAL else str.lower if lower else str
        first, last = said.around() or PIECE_CLASSES.get(said.kind, (False, True))
        ends = model.bos_id() if first else -1, model.eos_id() if last else -1
        self.around = tuple(n if n >= 0 else None for n in ends)
        self.pad = model.pad_id() if model.pad_id() >= 0 else None
        self.count = model.get_piece_size()
        self._unknown = model.unk_id()

    def number(self, word: str) -> int | None:
        """The id of a piece."""
        found = self._model.piece_to_id(word)
        known = found != self._unknown or self._model.id_to_piece(found) == word
        return found if known else None

    def encode_batch(self, texts: list[str], add_special_tokens: bool = False) -> list[Any]:
        """As a backend of `tokenizers`; special tokens are put around by the `Tokenizer`."""
        del add_special_tokens
        return [SimpleNamespace(ids=ids) for ids in self._model.encode(texts, out_type=int)]


def _canonical(text: str) -> str:
    """A text as SigLIP was given texts: Zhai et al., arXiv 2303.15343, by its released code."""
    return re.sub(r"\s+", " ", text.lower().translate(_NO_PUNCTUATION)).strip()


def damaged(place: str | Path, make: Callable[[], Any]) -> Any:
    """make(), or a UserError; tokenizers and sentencepiece raise plain exceptions."""
    try:
        return make()
    except BaseException as error:
        # A panic of Rust code is no Exception, and its class has no public name.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{place} cannot be read as a tokenizer ({error}); fetch its files again"
        ) from None


def _is_vocabulary(name: str) -> bool:
    return name == FAST or name.endswith(PIECE_SUFFIXES)


def _order(name: str) -> tuple[int, str]:
    known = (FAST, *PIECES)
    return (known.index(name) if name in known else len(known)), name


def _settings(folder: Path) -> dict[str, bytes]:
    return {n: (folder / n).read_bytes() for n in SETTINGS if (folder / n).is_file()}


def _inside(path: Path) -> dict[str, bytes]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(PREFIX)]
            return {n.removeprefix(PREFIX): file.get_tensor(n).tobytes() for n in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the file again") from None


def _json(place: str, name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        found = json_files.loads(files[name].decode())
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise UserError(f"{place}: {name} is no sound JSON ({error}); fetch it again") from None
    return found
