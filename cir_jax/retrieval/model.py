# SPDX-License-Identifier: Apache-2.0
"""A loaded model: images and texts in, unit vectors and rankings out."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from numpy.typing import NDArray

from cir_jax import files
from cir_jax.contract import Functions
from cir_jax.convert import exporting
from cir_jax.data.pixels import AUTO, Preprocess
from cir_jax.errors import UserError, nearest
from cir_jax.params import Params
from cir_jax.retrieval import golden, identity, image_loading, load, pictures, ranking
from cir_jax.retrieval.pictures import Picture
from cir_jax.retrieval.retriever import Retriever

if TYPE_CHECKING:
    from cir_jax.retrieval.index.opened import Index

Floats: TypeAlias = NDArray[np.float32]
_NAMES_COMPARED = 10_000  # a hint is looked for among so many names: it takes seconds in a million


@dataclass(frozen=True)
class Source:
    """Where a model was loaded from, and what was said beside: see `cir_jax.load`."""

    places: tuple[str, ...]
    model: str | None = None
    tower: str | None = None
    pad: str | None = None
    loading: str | None = None


class Model:
    """A composed image retrieval model; `cir_jax.load` makes it.

    Axis letters: N images, Q queries, K rows of an image, D embedding. The score of a query and an
    image is the largest inner product of the query with the rows of the image.

    Nothing in it changes, so it may be used by several threads at once.

    Attributes:
      config: what it was loaded as: the sections `model` and `data` of a run's config.
      source: where it was loaded from; None for one that was put together.
    """

    def __init__(
        self,
        config: ConfigDict,
        functions: Functions,
        index: Params,
        query: Params,
        mesh: Mesh,
        *,
        preprocess: Preprocess,
        record: dict[str, Any],
        source: Source | None = None,
    ):
        self.config = config
        self._functions, self._index, self._query, self._mesh = functions, index, query, mesh
        self._tokenizer = load.tokenizer(config, functions)
        self._preprocess = preprocess
        self._record = record
        self.source = source

    def __repr__(self) -> str:
        devices = f"{self._mesh.size} {self._mesh.devices.flat[0].platform} device(s)"
        rows, width = self._functions.target_shape
        shape = f"{rows} x {width}" if rows > 1 else str(width)
        return f"<cir_jax.Model {self.name} {self.tower}, {shape} values per image, {devices}>"

    @property
    def name(self) -> str:
        """Name of the model, e.g. "clip_sum"; the path of its file if that is a file of yours."""
        return self.config.model.name

    @property
    def tower(self) -> str:
        """Size of its encoders, e.g. "ViT-L/14"."""
        return self.config.model.tower

    @property
    def embedding_dim(self) -> int:
        """D, the values of a row and of a query."""
        return self._functions.target_shape[1]

    @property
    def rows_per_image(self) -> int:
        """K, 1 for most models; the best of an image's rows is its score."""
        return self._functions.target_shape[0]

    @property
    def image_size(self) -> int:
        """Side of the square that an image becomes, in pixels."""
        return self._functions.image_size

    @property
    def pad(self) -> str:
        """How an image becomes a square: "target", "square", "none" (cropped) or "squash"."""
        return self._preprocess.pad

    @property
    def loading(self) -> str:
        """How a file becomes a picture: "released" or "natural", see `cir_jax.load`."""
        return self._preprocess.loading.name

    @property
    def preprocess(self) -> Preprocess:
        """What makes the input of an image file: path -> uint8 [S, S, 3]."""
        return self._preprocess

    def identity(self) -> dict[str, Any]:
        """What tells this model from another, see `cir_jax.retrieval.identity`; JSON."""
        trees = self._index, self._query
        return identity.of(self.config, self._functions, *trees, self._preprocess)

    @property
    def text_alone(self) -> bool:
        """Whether a text without a reference image has a meaning for it, see `encode_queries`."""
        return self._functions.text_alone

    @property
    def explains(self) -> bool:
        """Whether its query is a sum, so that a search can tell why an image was found."""
        return self._functions.sums

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """The tokens of each text, start and end included; its context is the limit."""
        return self._tokenizer.lengths(_texts(texts, 0))

    @files.permitted()
    def encode_images(
        self, images: Iterable[Picture], *, batch: int = 128, threads: int = 8
    ) -> Floats:
        """The rows of candidate images, to keep and to rank.

        Args:
          images: N paths, PIL images or uint8 arrays [H, W, 3], mixed as you like. A path that
            comes twice is read once.
          batch: images per call of the compiled model.
          threads: threads that read and decode files.

        Returns:
          [N, K, D] float32; each row has length 1.

        Raises:
          UserError: an image is missing, cannot be decoded, or is nothing of the above.
        """
        items = pictures.items(images)
        if not items:
            return np.zeros((0, *self._functions.target_shape), np.float32)
        rows = self.retriever(batch=batch, threads=threads, few=True).encode_gallery(items)
        rows.flags.writeable = True  # nobody else has them
        return rows

    @files.permitted()
    def encode_queries(
        self,
        images: Iterable[Picture] | None = None,
        texts: Iterable[str] | None = None,
        *,
        batch: int = 128,
        threads: int = 8,
    ) -> Floats:
        """Queries: each composed of a reference image and a text that says what to change.

        An image alone is composed with the empty text. (What looks most like an image, with no
        query at all, is `encode_images(images)[:, 0]` where K is 1.) A text alone is composed with
        a reference of zeros, as image-text pretraining does; models that cannot be pretrained so,
        because their text encoder looks at the reference image, refuse it.

        Args:
          images: Q reference images, as for `encode_images`; None for texts alone.
          texts: Q texts; None for images alone.
          batch: queries per call of the compiled model.
          threads: threads that read and decode files.

        Returns:
          [Q, D] float32 of length 1.

        Raises:
          UserError: neither is given, or not as many of one as of the other; a text is longer than
            the model's context; a text alone for a model that has no meaning for it; an image as
            for `encode_images`.
        """
        references = None if images is None else pictures.items(images)
        words = _texts(texts, 0 if references is None else len(references))
        if references is None and texts is None:
            raise UserError(
                "a query needs an image, a text or both: encode_queries(['a.jpg'], ['but red'])"
            )
        if references is not None and len(references) != len(words):
            raise UserError(
                f"{len(references)} images and {len(words)} texts; give as many of one as of the "
                "other, or leave one out"
            )
        if references is None and not self.text_alone:
            raise UserError(
                f"{self.name} composes a text with what it sees in the reference image, so a text "
                "alone has no meaning for it; give a reference image too, or use a model on CLIP"
            )
        if not words:
            return np.zeros((0, self.embedding_dim), np.float32)
        retriever = self.retriever(batch=batch, threads=threads, few=True)
        return retriever.encode_queries(references, words)

    def rank(
        self,
        queries: NDArray[Any],
        rows: NDArray[Any],
        k: int = 10,
        *,
        leave_out: Sequence[Iterable[int | str]] | None = None,
        names: Sequence[str] | None = None,
        block: int = 0,
    ) -> tuple[NDArray[np.int64], Floats]:
        """The best images for each query, by exact float32 scores.

        Equal scores are ordered by number. No array of [Q, N] is made: queries and images are
        worked off in blocks, and `rows` may be a memory-mapped file larger than the devices.

        Args:
          queries: [Q, D], see `encode_queries`.
          rows: [N, K, D], or [N, D] where K is 1, see `encode_images`.
          k: images to find for each query.
          leave_out: for each query the images that it must not find: their numbers, or their names
            if `names` is given.
          names: N names of the images, for `leave_out`.
          block: images on the devices at a time; 0 is 1 GiB of them.

        Returns:
          (order, scores): numbers of images [Q, k], best first, and their scores [Q, k].

        Raises:
          UserError: shapes that do not fit, fewer than `k` images that may be found, or an image to
            leave out that is none.
        """
        queries, rows = self._checked(queries, rows)
        left_out = _left_out(leave_out, names, len(queries), len(rows))
        fewest = len(rows) - max(map(len, left_out), default=0)
        if not 1 <= k <= fewest:
            remedy = f"give 1 to {fewest}" if fewest else "leave out fewer"
            raise UserError(
                f"k={k}, but a query may find {fewest} of the {len(rows)} images; {remedy}"
            )
        if block < 0:
            raise UserError(f"block={block} is below 0; give the images of a block, or 0")
        if not len(queries):
            return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
        return ranking.top_in_blocks(queries, rows, k, left_out, block=block, mesh=self._mesh)

    @files.permitted()
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a .safetensors file that `cir_jax.load` reads without being told anything.

        Raises:
          UserError: another suffix, or the file cannot be written.
        """
        (written,) = exporting.write(
            Path(path),
            self._functions,
            self._index,
            self._query,
            layout="safetensors",
            record=self._record,
            data=self.config.data.to_dict(),
            golden=self.golden().encoded(),
        )
        return written

    def golden(self) -> golden.Golden:
        """What this model makes of the golden inputs, see `cir_jax.retrieval.golden`."""
        return golden.of(self.retriever(few=True), self._preprocess)

    @files.permitted()
    def index(
        self,
        place: str | os.PathLike[str],
        out: str | os.PathLike[str] | None = None,
        *,
        titles: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        dtype: str = "float32",
        batch: int = 128,
        threads: int = 16,
    ) -> "Index":
        """Encodes a folder of images once, to search it; the same call again encodes what is new.

        Args:
          place: a folder of images, or a table that names some.
          out: folder of the index; None is a temporary one, which goes with the index: `save` it.
          titles: table of images, or several: their columns become fields, to show and filter by.
          dtype: of the rows that are kept, "float32", "float16" or "int8".
          batch, threads: see `encode_images`.

        Raises:
          UserError: there is no image, or the index in `out` is of another model.
        """
        from cir_jax.retrieval.index import making  # imports pyarrow, which takes a second

        return making.index(
            self, place, out, titles=titles, dtype=dtype, batch=batch, threads=threads
        )

    def retriever(
        self, *, batch: int = 128, threads: int = 8, few: bool = False, dataset: str = ""
    ) -> Retriever:
        """A new retriever with these parameters, as benchmarks take it; it keeps what it encodes.

        Args:
          batch, threads, few: see `Retriever`.
          dataset: name of the data set whose images they are. Weights that do not say how files
            become pictures take those of a published one as published runs did.
        """
        data, preprocess, tokenizer = self.config.data, self._preprocess, self._tokenizer
        if data.loading == AUTO:
            loading = image_loading.by_images(data, dataset)
            preprocess = preprocess.loaded(loading)
            if self._functions.embedder is not None:
                tokenizer = self._functions.embedder.tokenizer(loading)
        return Retriever(
            self._functions,
            self._index,
            self._query,
            tokenizer,
            pictures.Reader(preprocess),
            self._mesh,
            batch=batch,
            threads=threads,
            text_lengths=data.text_lengths,
            on_long=data.on_long,
            few=few,
        )

    def _checked(self, queries: NDArray[Any], rows: NDArray[Any]) -> tuple[Floats, NDArray[Any]]:
        queries, rows = np.asarray(queries), np.asanyarray(rows)
        rows = rows[:, None] if rows.ndim == 2 else rows
        shapes = queries.shape, rows.shape
        fits = queries.ndim == 2 and rows.ndim == 3 and shapes[0][-1] == shapes[1][-1]
        if not fits or not len(rows) or {queries.dtype.kind, rows.dtype.kind} - {*"fV"}:
            raise UserError(
                f"queries are {list(shapes[0])} {queries.dtype} and rows {list(shapes[1])} "
                f"{rows.dtype}; give the floats of encode_queries, [Q, D], and of encode_images, "
                "[N, K, D], of one model"
            )
        return queries.astype(np.float32, copy=False), rows


def _texts(texts: Iterable[str] | None, images: int) -> list[str]:
    """The texts; without any the empty text for every image."""
    if texts is None:
        return [""] * images
    if isinstance(texts, str):
        raise UserError(f"{texts!r} is one text, not a list of texts; give [{texts!r}]")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"text {number} is {text!r}, a {type(text).__name__}; give texts")
    return found


def _left_out(
    leave_out: Sequence[Iterable[int | str]] | None,
    names: Sequence[str] | None,
    queries: int,
    images: int,
) -> list[list[int]]:
    """Numbers of the images to leave out of each query; [] where none is left out at all."""
    if names is not None and len(names) != images:
        raise UserError(f"{len(names)} names of {images} images; give one for each")
    if leave_out is None:
        return []
    if len(leave_out) != queries:
        raise UserError(
            f"leave_out has {len(leave_out)} lists and there are {queries} queries; give a list "
            "for each, [] to leave nothing out"
        )
    numbers: dict[Any, list[int]] = {}
    for number, name in enumerate(() if names is None else names):
        numbers.setdefault(name, []).append(number)
    return [_numbers(query, out, names, numbers, images) for query, out in enumerate(leave_out)]


def _numbers(
    query: int,
    out: Iterable[int | str],
    names: Sequence[str] | None,
    numbers: dict[Any, list[int]],
    images: int,
) -> list[int]:
    where = f"leave_out of query {query}"
    if isinstance(out, str | int | np.integer):
        raise UserError(f"{where} is {out!r}; give a list of it")
    found: set[int] = set()
    for image in out:
        if names is not None:
            if image not in numbers:
                hint = nearest(str(image), names) if len(names) <= _NAMES_COMPARED else ""
                raise UserError(f"{where}: {image!r} is none of the {len(names)} names.{hint}")
            found.update(numbers[image])
        elif isinstance(image, int | np.integer) and 0 <= image < images:
            found.add(int(image))
        else:
            remedy = "give names=" if isinstance(image, str) else f"they are 0 to {images - 1}"
            raise UserError(f"{where}: {image!r} is no number of an image; {remedy}")
    return sorted(found)
