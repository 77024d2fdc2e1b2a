# SPDX-License-Identifier: Apache-2.0
"""Files and texts -> vectors of an embedder, where other models make pixels and token ids of them.

So whatever takes a preprocessing and a tokenizer takes an embedder: banks, galleries, queries and
indexes. A vector of D values travels in the arrays that are there for pixels and ids:

    pixels   float32 [S, S, 3]: its values, then zeros, S a side that holds them
    ids      int32 [D]: the bits of its values; what a text with its reference image gives where the
             embedder composes, of the text alone where the model does
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cir_jax.data import picture_files
from cir_jax.data.pixels import Loading
from cir_jax.embedders.cache import Cache
from cir_jax.embedders.embedder import PROBE, Embedder, Vectors
from cir_jax.embedders.folder import Folder
from cir_jax.embedders.forms import FORMS
from cir_jax.embedders.items import Item, Kind
from cir_jax.embedders.prompts import Prompts, find
from cir_jax.embedders.server import Server
from cir_jax.errors import UserError
from cir_jax.servers import pictures

SERVER, SUM = COMPOSITIONS = ("server", "sum")
NAME = "vectors"  # of the tokenizer
_LEAST = 8


class Inputs:
    """What makes vectors of files and texts.

    Args:
      section: the section `model` of a config, with the keys of `cir_jax.models.served`.

    Raises:
      UserError: values that do not go together; they are named.
    """

    def __init__(self, section: Any):
        if not section.tower:
            raise UserError(
                "model.tower is empty; give the server's name of the model, and its address in "
                "model.url, or a folder of sentence-transformers"
            )
        self._prompts: Prompts = find(section.prompts)
        self.composition, self._max_side = section.composition, section.max_side
        embedder: Embedder = Server(section) if section.url else Folder(section)
        if self.composition == SERVER and not embedder.composes:
            able = ", ".join(name for name, form in FORMS.items() if form.composes)
            raise UserError(
                f"model.composition=server sends an image with a text, and model.form="
                f"{section.form} has no place for both; set model.composition=sum, or a form that "
                f"has: {able}"
            )
        told = [kind for kind, prompt in self._prompts.of.items() if prompt.system]
        if told and not embedder.tells:
            able = ", ".join(name for name, form in FORMS.items() if form.tells)
            raise UserError(
                f"model.prompts={section.prompts} has words of a system, and model.form="
                f"{section.form} has no place for them; use a form that has: {able}"
            )
        identity = {"prompts": self._prompts.name, "composition": self.composition}
        self.vectors = Vectors(embedder, Cache(section.cache, embedder.identity), section.width)
        self._identity = {**embedder.identity, **identity, "max_side": self._max_side}

    def width(self) -> int:
        """D; asks for one vector if nobody has said it."""
        if not self.vectors.width:
            self.vectors.of([Item(b"", "", PROBE, "", "text", "the probe")])
        return self.vectors.width

    def preprocess(self, loading: Loading) -> "Preprocess":
        """Files -> vectors of images."""
        return Preprocess(self, loading)

    def tokenizer(self, loading: Loading) -> "Tokenizer":
        """Texts, with reference images, -> bits of vectors."""
        return Tokenizer(self, loading)

    def fingerprint(self) -> str:
        """Names everything that changes a vector, but for the loading of images."""
        said = " ".join(f"{key}={value}" for key, value in self._identity.items())
        return f"{said} {self._prompts.identity()}"

    def facts(self) -> dict[str, Any]:
        """What the vectors are of, what they came as and what they cost; JSON."""
        return {**self.vectors.facts(), **self._identity}

    def words(self) -> str:
        """For people: what was asked in this process, and what the vectors came as."""
        vectors = self.vectors
        values = vectors.cache.fact("values") or {"type": "unknown", "encoding": "nothing"}
        return (
            f"{vectors.embedder.who}: {vectors.cost.words()}; the values are {values['type']} in "
            f"{values['encoding']}, kept in {vectors.cache.path}"
        )

    def item(self, kind: Kind, text: str, source: Any, loading: Loading) -> Item:
        """What is asked for.

        Raises:
          UserError: the image cannot be read; the file is named.
        """
        form, content, name = "", b"", f"the text {text[:60]!r}"
        if source is not None:
            form, content = pictures.encoded(source, self._max_side, loading)
            picture = isinstance(source, Image.Image)
            name = "an image" if picture else f"image {picture_files.named(source)}"
        prompt = self._prompts.of[kind]
        return Item(content, form, prompt.around(text), prompt.system, kind, name)


class Preprocess:
    """Callable: image -> float32 [S, S, 3]; stands wherever a `data.pixels.Preprocess` may.

    Attributes:
      size: S.
      pad, target_ratio, resize: nothing is padded or resized here.
      loading: how files become pictures.
      keeps: False, since what is made of an image is kept as a vector.
    """

    pad, target_ratio, resize, keeps = "none", 1.0, "pillow", False

    def __init__(self, inputs: Inputs, loading: Loading):
        self._inputs, self.loading = inputs, loading
        self.size = side(inputs.width())
        self._keys: dict[Any, bytes] = {}  # of sources that were prepared

    def __call__(self, source: Any) -> NDArray[np.float32]:
        """The vector of an image, its values first.

        Raises:
          UserError: the image cannot be read, or the embedder has no vector for it.
          ServerError: the embedder gives none at all.
        """
        vectors = self._inputs.vectors
        held = self._keys.get(known) if (known := _name(source)) is not None else None
        [row] = vectors.of([self._item(source)]) if held is None else vectors.rows([held])
        found = np.zeros(self.size * self.size * 3, np.float32)
        found[: len(row)] = row
        return found.reshape(self.size, self.size, 3)

    def prepare(self, sources: Sequence[Any]) -> None:
        """Asks for the vectors of all images together, as far as they are not there.

        What is wrong with one of them is said when it is its turn.

        Raises:
          ServerError: the embedder gives none.
        """
        readable: list[Any] = []

        def items() -> Iterator[Item]:
            for source in sources:
                with suppress(UserError):
                    item = self._item(source)
                    readable.append(_name(source))
                    yield item

        keys = self._inputs.vectors.ask(items(), len(sources))
        self._keys |= dict(zip(readable, keys, strict=True))
        self._keys.pop(None, None)

    def _item(self, source: Any) -> Item:
        return self._inputs.item("image", "", source, self.loading)

    def loaded(self, loading: Loading) -> "Preprocess":
        """The same with another loading."""
        return Preprocess(self._inputs, loading)

    def fingerprint(self) -> str:
        """Names everything that changes a vector."""
        return f"{self._inputs.fingerprint()} {self.loading.fingerprint()}"

    def made_by(self) -> str:
        """Names what else may change one: nothing that is here."""
        return ""


class Tokenizer:
    """Texts -> bits of vectors; stands wherever a `data.tokens.Tokenizer` may.

    Attributes:
      context: D.
      reads_references: whether the vectors are of texts with their reference images.
    """

    name, start, end, pad, cuts, backend, identity = NAME, 0, 0, 0, False, None, ""

    def __init__(self, inputs: Inputs, loading: Loading):
        self._inputs, self._loading = inputs, loading
        self.context = inputs.width()
        self.reads_references = inputs.composition == SERVER

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """int32 [D] of each text alone; of an empty one zeros, which are no vector.

        Raises:
          UserError: the embedder has no vector for a text.
          ServerError: it gives none at all.
        """
        return self.encode_with([None] * len(texts), texts)

    def encode_with(
        self, references: Sequence[Any], texts: Sequence[str]
    ) -> list[NDArray[np.int32]]:
        """int32 [D] of each text with its reference image; see `encode`.

        An image with an empty text is the image alone.

        Args:
          references: an image for each, as a preprocessing takes it; None for a text alone.
          texts: as many.
        """
        both = list(zip(references, texts, strict=True))
        said = [source is not None or bool(text.strip()) for source, text in both]

        def items() -> Iterator[Item]:
            for source, text in itertools.compress(both, said):
                kind: Kind = "text" if source is None else "both" if text.strip() else "image"
                yield self._inputs.item(kind, text, source, self._loading)

        vectors = self._inputs.vectors
        rows = iter(vectors.rows(vectors.ask(items(), sum(said))))
        none = np.zeros(self.context, np.int32)
        return [next(rows).view(np.int32) if there else none for there in said]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """D of each; nothing is asked for."""
        return [self.context] * len(texts)


def side(width: int) -> int:
    """S, the least with S * S * 3 >= width, and at least as many as golden pictures have fields."""
    return max(math.isqrt(-(-width // 3) - 1) + 1, _LEAST)


def _name(source: Any) -> Any:
    """What a source is remembered by: a file as it is now. None of one that was decoded."""
    if isinstance(source, str | Path):
        with suppress(OSError):
            now = os.stat(source)
            return str(source), now.st_mtime_ns, now.st_size
        return None
    return None if isinstance(source, Image.Image | bytes) else source
