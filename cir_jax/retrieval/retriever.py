# SPDX-License-Identifier: Apache-2.0
"""The retriever: a model, its parameters and the mesh, as "encode" and "rank".

It knows the contract of a model and nothing of a benchmark: index parameters encode gallery and
references, query parameters compose. Every gallery image is encoded once; what index parameters
have encoded is kept until they change (but large references, see `_LIGHT_BYTES`), so stage two,
whose index is constant, encodes its gallery once in a run.

Galleries are large (CIRCO with 32 rows an image: 4 GB): rows are kept in the arrays they were
encoded into, `encode_gallery` shows these and copies nothing where it can, and the devices get a
gallery once for all rankings of it.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cir_jax.contract import Functions
from cir_jax.data import tokens
from cir_jax.params import Params
from cir_jax.retrieval import memory, ranking
from cir_jax.runtime import encode, sharding
from cir_jax.runtime import mesh as meshes

# References up to this size are made and kept with every image. Larger ones (BLIP: 577 x 768
# floats, 1.8 MB; of FashionIQ's 6,016 queries 10.7 GB) last as long as their batch: their queries
# are composed from pixels. Every evaluation then runs the same programs on the same batches, the
# first one too, so that equal parameters give equal numbers; references rounded to bfloat16 would
# not give those of training. It costs one reading and encoding of each query's reference in each
# evaluation, on FashionIQ 6,016 images, 0.4 of what the gallery costs once; and the image tower is
# compiled with each length of texts.
_LIGHT_BYTES = 2**16


class Retriever:
    """Encodes images and queries, and ranks.

    Args:
      functions: the model, see `cir_jax.contract`.
      index: index parameters.
      query: query parameters; `index` again where one tree is both.
      tokenizer: the model's, see `cir_jax.data.tokens`.
      preprocess: path -> uint8 [S, S, 3], see `cir_jax.data.pixels`.
      mesh: devices to use.
      batch: images or queries per program call, over all devices; rounded up to their number.
      batch_key: what messages call `batch`; may be set afterwards.
      threads: threads that read and decode images.
      text_lengths: a text is padded to the smallest of these that holds it.
      on_long: "error" or "truncate", for texts over the context.
      few: fill up less than a batch to a power of two, so that many calls with a few images or
        queries each share a few compiled programs.
    """

    def __init__(
        self,
        functions: Functions,
        index: Params,
        query: Params,
        tokenizer: tokens.Tokenizer,
        preprocess: Callable[[Any], np.ndarray],
        mesh: Mesh,
        *,
        batch: int = 128,
        batch_key: str = "batch",
        threads: int = 8,
        text_lengths: Sequence[int] = (16, 24, 32, 48, 77),
        on_long: str = "error",
        few: bool = False,
    ):
        self.functions = functions
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.mesh = mesh
        self.text_lengths = tuple(text_lengths)
        self.on_long = on_long
        self._few = few
        self.batch_key = batch_key
        self._batch = batch  # of queries of one length: the same on any number of devices
        size = meshes.rounded(batch, mesh, batch_key)
        # What asks others for the vectors of images asks for those of all together.
        self.prepare = getattr(preprocess, "prepare", lambda sources: None)
        self._options: dict[str, Any] = {"batch": size, "threads": threads, "mesh": mesh}
        self._targets: dict[Any, _Row] = {}
        self._references: dict[Any, np.ndarray] = {}
        self._ranked: tuple[weakref.ref, ranking.Placed] | None = None
        self._ran: dict[tuple[Callable, int], int] = {}  # (program, tokens) -> rows it was run with
        self._given: Params = {}
        self.set_index(index)
        self.set_query(query)

    def set_index(self, index: Params) -> None:
        """Takes these index parameters; what others encoded is dropped.

        Parameters are "the same" if every array that images are encoded by is the same object: a
        stage hands on the very arrays it froze, and comparing values would cost more than it saves.
        """
        read = self.functions.index_paths
        same = all(p in self._given and self._given[p] is index[p] for p in read)
        self._given = dict(index)
        self._index = self._placed(index)
        if not same:
            self._targets, self._references = {}, {}

    def set_query(self, query: Params) -> None:
        """Takes these query parameters. Arrays that are also index parameters are shared."""
        shared = {p: self._index[p] for p, x in query.items() if self._given.get(p) is x}
        self._query = self._placed({**query, **shared})

    def _placed(self, params: Params) -> Params:
        """Host arrays go to every device now, not at every batch; others stay where they are."""
        host = {p: x for p, x in params.items() if not isinstance(x, jax.Array)}
        if not host:
            return dict(params)
        everywhere = dict.fromkeys(host, meshes.replicated(self.mesh))
        with memory.loading(self.functions, self.mesh):
            return {**params, **sharding.place(host, everywhere)}

    @property
    def batch(self) -> int:
        """Images per program call, over all devices."""
        return int(self._options["batch"])

    def stream(
        self,
        items: Sequence[Any],
        load: Callable[[Any], dict[str, np.ndarray]],
        least: int = 0,
        prepare: Callable[[Sequence[Any]], None] | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Target rows of any number of images, none of which is kept.

        Args:
          items: what `load` takes.
          load: item -> {"pixels": uint8 [S, S, 3]}, run in threads, ahead of the devices.
          least: images that a batch has even of fewer items.
          prepare: see `encode.encode`.

        Yields:
          (number of the batch's first item, float32 [n, K, D]), in order.
        """
        program = _programs(self.functions).target
        options = {"least": least, "prepare": prepare, **self._options}
        with self._encoding("encoding images"):
            for start, out in encode.stream(program, self._index, items, load, **options):
                yield start, out["target"].astype(np.float32, copy=False)

    def encode_gallery(self, paths: Sequence[Any]) -> np.ndarray:
        """[G, K, D] float32 target rows of the images, in the order of `paths`; read-only.

        Reference rows of a few values are made in the same pass, so that `encode_queries` opens
        none of these images again.

        Args:
          paths: G images, as `preprocess` takes them; one that comes twice is encoded once.
        """
        self._encode_images([p for p in dict.fromkeys(paths) if p not in self._targets])
        shape = (len(paths), *self.functions.target_shape)
        with memory.ranking("putting the gallery together", shape, self.mesh):
            return _in_order([self._targets[p] for p in paths])

    def encode_queries(
        self,
        references: Sequence[Any] | None,
        texts: Sequence[str],
        where: Callable[[int], str] = "query {}".format,
    ) -> np.ndarray:
        """[Q, D] float32 unit queries.

        Args:
          references: Q images; None composes with references of zeros, as stage zero does.
          texts: Q modification texts.
          where: number of a query -> how messages name it.

        Raises:
          UserError: a text is over the context, or an image cannot be read.
        """
        programs = _programs(self.functions)
        both = programs.compose, programs.compose_pixels
        rows = np.empty((len(texts), self.functions.target_shape[1]), np.float32)
        return self._composed(references, texts, where, both, rows)

    def encode_halves(self, references: Sequence[Any] | None, texts: Sequence[str]) -> np.ndarray:
        """[Q, 2, D] float32: what the image gives to each query and what the text does.

        Their sum is what `encode_queries` gives; only of models that `sums`.
        """
        programs = _programs(self.functions)
        both = programs.halves, programs.halves_pixels
        rows = np.empty((len(texts), 2, self.functions.target_shape[1]), np.float32)
        return self._composed(references, texts, "query {}".format, both, rows)

    def _composed(
        self,
        references: Sequence[Any] | None,
        texts: Sequence[str],
        where: Callable[[int], str],
        programs: tuple[Callable, Callable],
        rows: np.ndarray,
    ) -> np.ndarray:
        """Fills `rows` by the first program, or by the second where no references are kept."""
        table = tokens.table(texts, self.tokenizer, self.on_long, where, self._sources(references))
        if self._kept and references is not None:
            self._encode_images([p for p in dict.fromkeys(references) if p not in self._references])
        for members, length in self._by_length(table.lengths):
            ids = table.rows(slice(None), length)
            rows[members] = self._compose(references, ids, members, *programs)
        return rows

    def encode_few(
        self, images: Sequence[Any], texts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """([F, K, D] target rows, [F, D] queries) of F images, each composed with its text.

        They are padded to the images and tokens of programs that were run before, if there are any
        that hold them: a few more vectors after an evaluation cost no compilation. Nothing of them
        is kept, no bar is shown, and texts over the context are cut.
        """
        sources = self._sources(images)
        table = tokens.table(texts, self.tokenizer, "truncate", references=sources)
        need, context = int(table.lengths.max()), self.tokenizer.context
        usual = context
        if self.functions.inputs.cut_padding:
            usual = tokens.fit(need, context, self.text_lengths)
        programs, members = _programs(self.functions), range(len(images))
        first = programs.image if self._kept else programs.target
        last = programs.compose if self._kept else programs.compose_pixels
        ran = [length for program, length in self._ran if program is last and length >= need]
        ids = table.rows(slice(None), min(ran, default=usual))
        load = lambda i: {"pixels": self.preprocess(images[i])}
        out = self._encode(first, self._index, members, load, "", again=True)
        targets = out["target"].astype(np.float32, copy=False)
        if self._kept:
            params: Any = self._query
            load = lambda i: {"reference": out["reference"][i], "text": ids[i]}
        else:
            params = self._index, self._query
            load = lambda i: {"pixels": self.preprocess(images[i]), "text": ids[i]}
        rows = self._encode(last, params, members, load, "", ids.shape[1], again=True)
        return targets, rows

    def ranks(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        target: np.ndarray,
        removed: np.ndarray | None = None,
    ) -> np.ndarray:
        """[Q] candidates ahead of each target, see `ranking.count_ranks`."""
        with memory.ranking("ranking", gallery.shape, self.mesh):
            return ranking.count_ranks(
                query, self._on_devices(gallery), target, removed, mesh=self.mesh
            )

    def top(
        self, query: np.ndarray, gallery: np.ndarray, k: int, removed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores [Q, k], best first, see `ranking.top_rows`."""
        with memory.ranking("ranking", gallery.shape, self.mesh):
            return ranking.top_rows(query, self._on_devices(gallery), k, removed, mesh=self.mesh)

    def _on_devices(self, gallery: np.ndarray) -> ranking.Placed:
        """The gallery on the devices: placed once for all calls, until the caller drops it.

        One that can still be written, or a second one, is placed anew: it may hold other values.
        """
        if self._ranked is not None and self._ranked[0]() is gallery:
            return self._ranked[1]
        self._ranked = None  # frees what is there before there is more
        # A view: on a CPU, devices may hold on to what they are given, and so never free `gallery`.
        placed = ranking.place(gallery[:], self.mesh)
        if not gallery.flags.writeable:
            self._ranked = weakref.ref(gallery, self._drop), placed
        return placed

    def _drop(self, dead: weakref.ref) -> None:
        if self._ranked is not None and self._ranked[0] is dead:
            self._ranked = None

    @property
    def _kept(self) -> bool:
        """Whether reference rows are kept, see `_LIGHT_BYTES`; those of a triplet never are."""
        rows, width = self.functions.reference_shape
        return not self.functions.per_triplet and rows * width * 4 <= _LIGHT_BYTES

    def _encode_images(self, paths: Sequence[Any]) -> None:
        if not paths:
            return
        programs = _programs(self.functions)
        out = self._encode(
            programs.image if self._kept else programs.target,
            self._index,
            paths,
            lambda path: {"pixels": self.preprocess(path)},
            "encoding images",
            prepare=self.prepare,
        )
        rows = out["target"].astype(np.float32, copy=False)
        self._targets |= {path: _Row(rows, i) for i, path in enumerate(paths)}
        if self._kept:
            self._references |= dict(zip(paths, out["reference"], strict=True))

    def _compose(
        self,
        references: Sequence[Any] | None,
        ids: np.ndarray,
        members: Sequence[int],
        program: Callable,
        from_pixels: Callable,
    ) -> np.ndarray:
        """[q, ...] of the queries `members`; `ids` are the padded tokens of all."""
        title = "composing queries"
        if references is None:
            rows = np.zeros(self.functions.reference_shape, np.float32)
            load = lambda i: {"reference": rows, "text": ids[i]}
        elif self._kept:
            load = lambda i: {"reference": self._references[references[i]], "text": ids[i]}
        else:
            load = lambda i: {"pixels": self.preprocess(references[i]), "text": ids[i]}
            params = self._index, self._query
            return self._encode(from_pixels, params, members, load, title, ids.shape[1])
        return self._encode(program, self._query, members, load, title, ids.shape[1])

    def _encode(
        self,
        program: Callable,
        params: Any,
        items: Any,
        load: Callable[[Any], dict[str, np.ndarray]],
        title: str,
        length: int = 0,
        again: bool = False,
        prepare: Callable[[Sequence[Any]], None] | None = None,
    ) -> Any:
        """`encode.encode` of texts of `length` tokens; `again`: with the rows it was run with."""
        least = self._ran.get((program, length), 0) if again else 0
        if not least and self._few and len(items) <= self._batch:
            least, title = 1 << (len(items) - 1).bit_length(), ""  # and no bar for one batch
        self._ran[program, length] = min(max(len(items), least), self._options["batch"])
        options = {"least": least, "title": title, "prepare": prepare, **self._options}
        with self._encoding(title or "encoding"):
            return encode.encode(program, params, items, load, **options)

    def _sources(self, references: Sequence[Any] | None) -> list[Any] | None:
        """The images as `preprocess` opens them, for a tokenizer that reads them too."""
        source = getattr(self.preprocess, "source", lambda reference: reference)
        return None if references is None else [source(one) for one in references]

    def _encoding(self, doing: str) -> AbstractContextManager[None]:
        return memory.encoding(doing, self.functions, self.mesh, self.batch_key, self._batch)

    def _by_length(self, lengths: np.ndarray) -> Iterator[tuple[list[int], int]]:
        """(queries, padded length) pairs: short texts are not padded to the longest of all.

        Fewer queries than a batch join the next length: they would not repay their own program.
        """
        context = self.tokenizer.context
        if not self.functions.inputs.cut_padding:
            yield list(range(len(lengths))), context
            return
        fitted = np.asarray([tokens.fit(n, context, self.text_lengths) for n in lengths])
        waiting = np.zeros(0, np.int64)
        for length in np.unique(fitted):
            waiting = np.concatenate([waiting, np.flatnonzero(fitted == length)])
            if len(waiting) >= self._batch or length == fitted.max():
                yield waiting.tolist(), int(length)
                waiting = waiting[:0]


class _Row(NamedTuple):
    """Row `number` of the array that its images were encoded into."""

    array: np.ndarray
    number: int


def _in_order(rows: Sequence[_Row]) -> np.ndarray:
    """The rows as one read-only array: a view if they lie one after the other, else a copy."""
    array, first = rows[0]
    if all(row.array is array and row.number == first + i for i, row in enumerate(rows)):
        found = array[first : first + len(rows)]
    else:
        found = np.stack([row.array[row.number] for row in rows])
    found.flags.writeable = False
    return found


class _Programs(NamedTuple):
    image: Callable
    target: Callable
    compose: Callable
    compose_pixels: Callable
    halves: Callable
    halves_pixels: Callable


@lru_cache(maxsize=16)
def _programs(functions: Functions) -> _Programs:
    """The model's functions as `encode.encode` takes them; one set per model, for its jit cache."""

    def image(index, fields):
        pixels = fields["pixels"]
        text = jnp.zeros((pixels.shape[0], 1), jnp.int32)  # a per-image reference does not read it
        reference = functions.reference(index, pixels, text)
        return {"target": functions.target(index, pixels), "reference": reference}

    def target(index, fields):
        return {"target": functions.target(index, fields["pixels"])}

    def compose(query, fields):
        return functions.compose(query, fields["reference"], fields["text"]).astype(jnp.float32)

    def compose_pixels(params, fields):
        index, query = params
        reference = functions.reference(index, fields["pixels"], fields["text"])
        return functions.compose(query, reference, fields["text"]).astype(jnp.float32)

    def halves(query, fields):
        both = functions.halves(query, fields["reference"], fields["text"])
        return jnp.stack(both, axis=1).astype(jnp.float32)

    def halves_pixels(params, fields):
        index, query = params
        reference = functions.reference(index, fields["pixels"], fields["text"])
        return halves(query, {"reference": reference, "text": fields["text"]})

    return _Programs(image, target, compose, compose_pixels, halves, halves_pixels)
