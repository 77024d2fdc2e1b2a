# SPDX-License-Identifier: Apache-2.0
"""An index that is open: its images, their rows, its model."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cir_jax import files
from cir_jax.data import places
from cir_jax.errors import UserError
from cir_jax.retrieval import store as stores
from cir_jax.retrieval.index import (
    copying,
    questions,
    reading,
    records,
    segments,
    update,
    vectors,
)
from cir_jax.retrieval.index.options import Options
from cir_jax.retrieval.index.segments import Segment
from cir_jax.retrieval.pictures import Picture
from cir_jax.retrieval.search import answering
from cir_jax.retrieval.search.asking import Question
from cir_jax.retrieval.search.results import Answer, Hit

_SHOWN = 5  # damaged images in a message
_TRIES = 3  # an update may remove the generation that is being opened


class Index:
    """One generation of an index. It does not change: see `newer`.

    Axis letters: N images, K rows of an image, D embedding.

    Args:
      folder: of the index.
      load: the record of an index -> its model, called when the model is first needed; None for
        an index that is used without.
      model: instead: the model, which must be that of the index.
      check: compare all rows with their checksums, 0.1 s per GB that is in memory already.
      share: the index that this is a newer generation of: what it has checked is not checked again.
      keep: what must live as long as the index, such as a temporary folder.

    Attributes:
      folder: of the index.
      record: what `index.json` says.
      generation: number of the generation.
      state: its record.
      state: its record.
      catalogue: its images.
      segments: their rows.
      recall: the share of the best that an approximate ranking on a TPU or GPU aims at; to be set
        before the first question.

    Raises:
      UserError: there is no index, it is damaged, or it is of another model.
    """

    def __init__(
        self,
        folder: str | Path,
        load: Callable[[dict[str, Any]], Any] | None = None,
        *,
        model: Any = None,
        check: bool = True,
        share: "Index | None" = None,
        keep: Any = None,
    ):
        self.folder = Path(folder)
        self._load = load
        self._given, self._keep = model, keep
        self.recall: float = stores.RECALL if share is None else share.recall
        self.record = records.read(folder)
        if model is not None:
            reading.check_model(self.folder, self.record, model.identity())
        for attempt in range(_TRIES):
            number = records.current(folder)
            try:
                self._open(number, check, share)
                break
            except (FileNotFoundError, UserError) as error:
                if attempt + 1 < _TRIES and records.current(folder) != number:
                    continue  # an update has removed what was being opened
                if isinstance(error, UserError):
                    raise
                raise records.damaged(folder, f"{error.filename} is missing") from None

    def _open(self, number: int, check: bool, share: "Index | None") -> None:
        if not number:
            raise UserError(
                f"the index in {self.folder} was begun and is not finished; give its `cir-jax "
                "index` command again, which goes on"
            )
        self.state = records.generation(self.folder, number)
        self.generation = number
        self.catalogue = reading.catalogue(self.folder, self.state)
        arrays = segments.shapes(self.dtype, self.rows_per_image, self.embedding)
        known = {} if share is None else {one.number: one for one in share.segments}
        found, damaged = reading.rows(
            self.folder, self.state, self.catalogue, arrays, check=check, known=known
        )
        if damaged.any():
            raise self._damaged(damaged)
        self.segments: tuple[Segment, ...] = tuple(found)

    def _damaged(self, damaged: np.ndarray) -> UserError:
        names = self.catalogue.names.filter(pa.array(damaged)).to_pylist()
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        return UserError(
            f"the index in {self.folder} is damaged: rows of {len(names):,} of "
            f"{len(damaged):,} images are not what was written ({', '.join(names[:_SHOWN])}{more})"
            f"; `cir-jax index --out {self.folder}` encodes these anew"
        )

    def __len__(self) -> int:
        return len(self.catalogue)

    def __repr__(self) -> str:
        return f"<cir_jax.Index {self.folder}, {len(self):,} images, generation {self.generation}>"

    @property
    def dtype(self) -> str:
        """Type of the rows: "float32", "float16" or "int8"."""
        return str(self.record["dtype"])

    @property
    def rows_per_image(self) -> int:
        """K."""
        return int(self.record["model"]["rows_per_image"])

    @property
    def embedding(self) -> int:
        """D."""
        return int(self.record["model"]["embedding"])

    @property
    def root(self) -> Path:
        """The folder that names of images are paths from."""
        return Path(self.record["folder"])

    @property
    def fields(self) -> tuple[dict[str, str], ...]:
        """[{"name", "type"}] of what is known of images; types are text, number and boolean."""
        return self.state.fields

    @property
    def loss(self) -> dict[str, Any] | None:
        """What the type of the rows costs, as measured when they were written; None for float32."""
        return self.state.loss

    @property
    def store_place(self) -> str:
        """Where a store of another program is, "http://..." of "milvus:http://..."; "" for ours."""
        return str(self.record["store"]).partition(":")[2]

    @cached_property
    def store(self) -> Any:
        """What ranks the rows, see `cir_jax.retrieval.store`."""
        return stores.load(str(self.record["store"]).partition(":")[0]).opened(self)

    @cached_property
    def model(self) -> Any:
        """The model, loaded from where its weights were.

        Raises:
          UserError: they are not there any more, are another model now, or give other vectors here
            than when the rows were made.
        """
        if self._given is not None:
            return self._given
        if self._load is None:
            raise UserError(f"the index in {self.folder} was opened without a model; give it one")
        found = self._load(self.record)
        reading.check_model(self.folder, self.record, found.identity())
        vectors.check(self.folder, found)
        return found

    @cached_property
    def queries(self) -> list[dict[str, Any]]:
        """[{"reference": id, "text", "targets": [ids]}] with known right answers, if any."""
        return questions.read(self.folder, self.catalogue)

    def rows(self, ids: Any) -> np.ndarray:
        """float32 [n, K, D] of images, in the order of `ids`.

        Raises:
          UserError: there is no such image.
        """
        at = self.catalogue.positions(ids)
        found = np.empty((len(at), self.rows_per_image, self.embedding), np.float32)
        for segment in self.segments:
            here = np.flatnonzero(self.catalogue.segment[at] == segment.number)
            found[here] = segment.take(self.catalogue.row[at[here]])
        return found

    def path_of(self, id: int) -> str:
        """The file of an image.

        Raises:
          UserError: there is no such image, or its file leads out of the folder that was indexed.
        """
        name = self.catalogue.name(id)
        path = os.path.join(self.root, name)
        if not self.record["allow_outside"]:
            where = f"image {id} of the index"
            places.Written(places.roots(self.root)).check(path, name, where)
        return path

    @files.permitted()
    def search(
        self,
        image: Picture | int | Sequence[Picture | int] | None = None,
        text: str = "",
        **options: Any,
    ) -> list[Hit]:
        """The images that an image, a text or both find, best first.

        Args:
          image: a reference image, an id of the index, or a list of them; None for a text alone.
          text: what to change; without an image, what to find.
          options: "k" (10), "avoid" (words), "where", "min_score", "offset", "fold" (True),
            "keep_reference" (False), "exact" (True), "why" (False), "query_weight" (1),
            "image_weight" (0), "avoid_weight" (0.5); see `cir_jax.retrieval.search.asking`.

        Raises:
          UserError: there is no such option, or see `answer`.
        """
        return answering.search(self, image, text, **options)

    @files.permitted()
    def answer(self, asked: Sequence[Question]) -> list[Answer]:
        """The answers of several questions, which share the calls of the model.

        Raises:
          UserError: a question cannot be answered, see `cir_jax.retrieval.search.answering`.
        """
        return answering.answer(self, asked)

    @files.permitted()
    def update(self, place: str | os.PathLike[str] | None = None, **options: Any) -> "Index":
        """Encodes what is new or has changed, and opens the index as it is then.

        Args:
          place: folder or table of the images; None for the one it was made of.
          options: see `cir_jax.retrieval.index.options.Options`.

        Raises:
          UserError: another process writes the index, or see `Model.index`.
        """
        update.update(self.folder, Options(place=place, **options), model=self.model)
        return self.newer() or self

    @files.permitted()
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copies the index to a folder that does not exist yet, or is empty.

        Raises:
          UserError: there is something, or it cannot be written.
        """
        return copying.save(self, path)

    @files.permitted()
    def export(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes `rows.npy` and `images.parquet`, which other programs read; see the README.

        Returns:
          The files.

        Raises:
          UserError: they cannot be written.
        """
        return copying.export(self, path)

    def newer(self) -> "Index | None":
        """The generation that an update has made since; None if there is none.

        Raises:
          UserError: it is damaged.
        """
        if records.current(self.folder) == self.generation:
            return None
        found = Index(self.folder, self._load, model=self._given, share=self, keep=self._keep)
        if "model" in self.__dict__ and found.record["model"] == self.record["model"]:
            found.__dict__["model"] = self.model
        return found
