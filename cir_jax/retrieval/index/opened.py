# SPDX-License-Identifier: Apache-2.0
"""An index that is open: its images, their rows, its model."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cir_jax import files, plugins
from cir_jax.data import places
from cir_jax.errors import UserError
from cir_jax.retrieval import identity
from cir_jax.retrieval.index import records, segments
from cir_jax.retrieval.index.catalogue import Catalogue
from cir_jax.retrieval.index.segments import Segment
from cir_jax.retrieval.pictures import Picture
from cir_jax.retrieval.search import answering
from cir_jax.retrieval.search.asking import Question
from cir_jax.retrieval.search.results import Answer, Hit
from cir_jax.runtime import checksums

STORES = "cir_jax.retrieval.stores"
_SHOWN = 5  # damaged images in a message
_TRIES = 3  # an update may remove the generation that is being opened


class Index:
    """One generation of an index. It does not change: see `newer`.

    Axis letters: N images, K rows of an image, D embedding.

    Args:
      folder: of the index.
      load: the record of an index -> its model, called when the model is first needed.
      model: instead: the model, which must be that of the index.
      check: compare all rows with their checksums, 0.1 s per GB that is in memory already.
      share: the index that this is a newer generation of: what it has checked is not checked again.

    Attributes:
      folder: of the index.
      record: what `index.json` says.
      generation: number of the generation.
      catalogue: its images.
      segments: their rows.

    Raises:
      UserError: there is no index, it is damaged, or it is of another model.
    """

    def __init__(
        self,
        folder: str | Path,
        load: Callable[[dict[str, Any]], Any],
        *,
        model: Any = None,
        check: bool = True,
        share: "Index | None" = None,
    ):
        self.folder = Path(folder)
        self._load = load
        self._given = model
        self.record = records.read(folder)
        if model is not None:
            check_model(self.folder, self.record, model.identity())
        for attempt in range(_TRIES):
            number = records.current(folder)
            try:
                self._open(number, check, share)
                break
            except FileNotFoundError as error:
                if attempt == _TRIES - 1 or records.current(folder) == number:
                    raise records.damaged(folder, f"{error.filename} is missing") from None

    def _open(self, number: int, check: bool, share: "Index | None") -> None:
        if not number:
            raise UserError(
                f"the index in {self.folder} was begun and is not finished; give its `cir-jax "
                "index` command again, which goes on"
            )
        self._state = records.generation(self.folder, number)
        self.generation = number
        self.catalogue = catalogue_of(self.folder, self._state)
        arrays = segments.shapes(self.dtype, self.rows_per_image, self.embedding)
        known = {} if share is None else {one.number: one for one in share.segments}
        opened, damaged = [], np.zeros(len(self.catalogue), bool)
        for one, entry in self._state.segments.items():
            if one in known:  # segments never change
                opened.append(known[one])
                continue
            segment, bad = open_segment(self.folder, one, entry, arrays, check)
            here = self.catalogue.segment == one
            damaged[here] = bad[self.catalogue.row[here]]
            if segment is not None:
                opened.append(segment)
        if damaged.any():
            raise self._damaged(damaged)
        self.segments: tuple[Segment, ...] = tuple(opened)

    def _damaged(self, damaged: np.ndarray) -> UserError:
        names = self.catalogue.names.filter(pa.array(damaged)).to_pylist()
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        return UserError(
            f"the index in {self.folder} is damaged: rows of {len(names):,} of "
            f"{len(damaged):,} images are not what was written ({', '.join(names[:_SHOWN])}{more})"
            "; give its `cir-jax index` command again, which encodes these anew"
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
        return self._state.fields

    @property
    def loss(self) -> dict[str, Any] | None:
        """What the type of the rows costs, as measured when they were written; None for float32."""
        return self._state.loss

    @property
    def store_place(self) -> str:
        """Where a store of another program is, "http://..." of "milvus:http://..."; "" for ours."""
        return str(self.record["store"]).partition(":")[2]

    @cached_property
    def store(self) -> Any:
        """What ranks the rows, see `cir_jax.retrieval.store`."""
        name = str(self.record["store"]).partition(":")[0]
        return plugins.load(STORES, name, marker="opened").opened(self)

    @cached_property
    def model(self) -> Any:
        """The model, loaded from where its weights were.

        Raises:
          UserError: they are not there any more, or are another model now.
        """
        if self._given is not None:
            return self._given
        found = self._load(self.record)
        check_model(self.folder, self.record, found.identity())
        return found

    @cached_property
    def queries(self) -> list[dict[str, Any]]:
        """[{"reference": id, "text", "targets": [ids]}] with known right answers, if any."""
        return records.lines(self.folder / records.QUERIES)

    def rows(self, ids: Any) -> np.ndarray:
        """float32 [n, K, D] of images, in the order of `ids`.

        Raises:
          UserError: there is no such image.
        """
        at = np.asarray([self.catalogue.position(int(one)) for one in ids], np.int64)
        found = np.empty((len(at), self.rows_per_image, self.embedding), np.float32)
        for segment in self.segments:
            here = np.flatnonzero(self.catalogue.segment[at] == segment.number)
            found[here] = segment.take(self.catalogue.row[at[here]])
        return found

    def path_of(self, number: int) -> str:
        """The file of an image.

        Raises:
          UserError: there is no such image, or its file leads out of the folder that was indexed.
        """
        name = self.catalogue.name(number)
        path = os.path.join(self.root, name)
        if not self.record["allow_outside"]:
            where = f"image {number} of the index"
            places.Written(places.roots(self.root)).check(path, name, where)
        return path

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

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers of several questions, which share the calls of the model.

        Raises:
          UserError: a question cannot be answered, see `cir_jax.retrieval.search.answering`.
        """
        return answering.answer(self, questions)

    def newer(self) -> "Index | None":
        """The generation that an update has made since; None if there is none.

        Raises:
          UserError: it is damaged.
        """
        if records.current(self.folder) == self.generation:
            return None
        found = Index(self.folder, self._load, model=self._given, share=self)
        if "model" in self.__dict__ and found.record["model"] == self.record["model"]:
            found.__dict__["model"] = self.model
        return found


def check_model(
    folder: str | Path, record: dict[str, Any], now: dict[str, Any], rows_alone: bool = False
) -> None:
    """Raises UserError unless `now` is the model of the index; the message names what differs.

    Args:
      folder: of the index.
      record: its record.
      now: the identity of a model.
      rows_alone: one that makes the same rows will do.
    """
    differ = identity.differences(record["model"], now)
    if not differ or (rows_alone and set(differ) <= {*identity.QUERY_PARTS}):
        return
    said = identity.in_words(differ, record["model"], now)
    remedy = "make an index of it in another folder, --out OTHER"
    if set(differ) <= {*identity.QUERY_PARTS}:
        remedy = (
            f"`cir-jax index {record['place']} --model WEIGHTS --out {folder}` with its weights "
            "keeps all rows, as its image side is the same"
        )
    raise UserError(f"the index in {folder} is of another model: {said}; {remedy}")


def catalogue_of(folder: str | Path, state: records.Generation) -> Catalogue:
    """The catalogue of a generation.

    Raises:
      FileNotFoundError: it is not there (any more).
      UserError: it is damaged, or cannot be read.
    """
    path = Path(folder) / state.catalogue
    try:
        if checksums.of_file(path) != state.catalogue_sum:
            raise records.damaged(folder, f"{state.catalogue} is not what was written")
        return Catalogue.read(path)
    except FileNotFoundError:
        raise
    except pa.ArrowException as error:
        raise records.damaged(folder, f"{state.catalogue}: {error}") from None
    except OSError as error:
        raise records.unreadable(folder, error) from None


def open_segment(
    folder: str | Path, number: int, entry: dict[str, Any], arrays: Any, check: bool
) -> tuple[Segment | None, np.ndarray]:
    """(segment, bool [n] its damaged rows); None where a whole file is missing or damaged.

    Raises:
      UserError: it cannot be read.
    """
    try:
        found = segments.opened(folder, number, entry, arrays)
        if not check:
            return found, np.zeros(entry["rows"], bool)
        return found, segments.damaged_rows(folder, found, entry)
    except checksums.Damaged:
        return None, np.ones(entry["rows"], bool)
    except (KeyError, TypeError) as error:
        raise records.damaged(folder, f"segment {number}: {error}") from None
    except OSError as error:
        raise records.unreadable(folder, error) from None


def size(folder: str | Path) -> str:
    """The bytes of a folder, for people."""
    found = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return files.gigabytes(found)
