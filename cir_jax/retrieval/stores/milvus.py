# SPDX-License-Identifier: Apache-2.0
"""Rows in Milvus: `--store milvus:FILE.db` is Milvus Lite, `milvus:http://HOST:19530` a server.

Milvus finds candidates, see `candidates`; the folder of the index scores them, so that the answer
is that of the embedded store. The collection has the images of the newest generation that was
written, and for a moment those that a writer adds or has not removed yet: a reader takes no notice
of an image that its own catalogue lacks. So a server goes on with the generation that it opened.

INDEX/milvus.json says which collection it is and whether the last writer came to its end.

Axis letters: N images, K rows of an image, D embedding, Q questions.
"""

import json
import re
import uuid
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cir_jax import files
from cir_jax.errors import UserError
from cir_jax.retrieval import scoring
from cir_jax.retrieval.milvus import candidates, connection
from cir_jax.retrieval.milvus.collection import Collection
from cir_jax.retrieval.milvus.connection import Connection
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.search.where import Clause
from cir_jax.retrieval.stores import embedded

if TYPE_CHECKING:
    import pyarrow

RECORD = "milvus.json"
_REPAIRED = 4096  # images that a repair reads at a time
place = connection.place


def opened(index: Any) -> "Store":
    """The store of an index that is there.

    Raises:
      UserError: Milvus is not there, or lacks rows of the index.
    """
    record = _read(Path(index.folder))
    again = "give the `cir-jax index` command of the index again, which fills it from the folder"
    where = Connection(index.store_place)
    try:
        name = record["collection"]
        found = Collection(where, name, index.rows_per_image, index.embedding)
        if not name or not found.there():
            raise UserError(f"Milvus at {where.place} has no collection of {index.folder}; {again}")
        found.load()
        need, has = len(index.catalogue.ids) * index.rows_per_image, len(found)
        if has < need:
            raise UserError(
                f"the collection {name} at {where.place} has {has:,} rows and the index in "
                f"{index.folder} {need:,}; {again}"
            )
    except BaseException:
        where.close()
        raise
    return Store(index, where, found)


def writer(folder: str | Path, place: str, rows_per_image: int, embedding: int) -> "Writer":
    """What writes the collection of an index folder; one that is not whole is mended first.

    Raises:
      UserError: Milvus is not there, or holds something else under that name.
    """
    where = Connection(place)
    try:
        return Writer(Path(folder), where, rows_per_image, embedding)
    except BaseException:
        where.close()
        raise


class Store:
    """See `cir_jax.retrieval.store.Store`; made by `opened`."""

    def __init__(self, index: Any, where: Connection, collection: Collection):
        self._index, self._where, self._collection = index, where, collection
        weakref.finalize(self, where.close)

    def __len__(self) -> int:
        return len(self._index.catalogue.ids)

    def top(
        self, queries: Sequence[Terms], k: int, exact: bool = True
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `cir_jax.retrieval.store.Store`; always exact, since the index of Milvus is FLAT."""
        scoring.check(queries, k, self._index.embedding)
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        if len(self):
            found = candidates.top(queries, k, self._index, self._nearest)
            for number, best in enumerate(found):
                if best is None:  # Milvus does not give enough rows to be certain
                    own, of_own = self._folder.top([queries[number]], k)
                    best = own[0], of_own[0]
                ids[number], scores[number] = best
        return ids, scores

    def rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See `cir_jax.retrieval.store.Store`."""
        found: NDArray[np.float32] = self._index.rows(ids)
        return found

    def count(self, where: Clause | None) -> int:
        """See `cir_jax.retrieval.store.Store`."""
        return len(self) if where is None else int(where.mask(self._index.catalogue.table).sum())

    def close(self) -> None:
        """Ends the connection; with Milvus Lite another process can have the file then."""
        self._where.close()

    def _nearest(
        self, vectors: NDArray[np.float32], most: int, condition: str
    ) -> list[tuple[NDArray[np.int64], float]]:
        last = int(self._index.catalogue.ids[-1])
        return self._collection.nearest(vectors, most, last, condition)

    @cached_property
    def _folder(self) -> embedded.Store:
        """The rows of the folder, ranked here, for the questions that Milvus cannot answer."""
        return embedded.opened(self._index)


class Writer:
    """Writes images to a collection; see `cir_jax.retrieval.store.Writer`; made by `writer`."""

    def __init__(self, folder: Path, where: Connection, each: int, width: int):
        self._folder, self._where, self._each, self._width = folder, where, each, width
        self._record = _read(folder)
        self._collection = Collection(where, self._record["collection"], each, width)
        self._mend()

    def add(self, ids: Sequence[int], rows: NDArray[np.float32], fields: "pyarrow.Table") -> None:
        """See `cir_jax.retrieval.store.Writer`."""
        self._begun()
        self._collection.add(ids, rows, fields)

    def remove(self, ids: Sequence[int]) -> None:
        """See `cir_jax.retrieval.store.Writer`."""
        if len(ids):
            self._begun()
            self._collection.remove(ids)

    def commit(self) -> None:
        """See `cir_jax.retrieval.store.Writer`; Milvus keeps what it has answered for."""
        self._keep(self._record["collection"], finished=True)

    def close(self) -> None:
        """Ends the connection."""
        self._where.close()

    def _begun(self) -> None:
        if self._record["finished"]:
            self._keep(self._record["collection"], finished=False)

    def _keep(self, name: str, finished: bool) -> None:
        here = str(self._folder.absolute())
        self._record = {"collection": name, "finished": finished, "folder": here}
        files.put(self._folder / RECORD, json.dumps(self._record).encode())

    def _mend(self) -> None:
        """Makes the collection hold the images of the folder's generation and no others."""
        index = _generation(self._folder)
        ids = np.zeros(0, np.int64) if index is None else index.catalogue.ids
        unknown = not self._record["collection"] or _copied(self._record, self._folder)
        if unknown or not self._collection.there():
            self._create()
        self._collection.load()
        if self._record["finished"] and len(self._collection) == len(ids) * self._each:
            return
        self._begun()
        last = int(ids[-1]) if len(ids) else -1
        self._collection.remove_after(last)
        lacking, surplus = np.ones(len(ids), bool), []
        for found, rows in self._collection.images(last):
            whole = found[rows == self._each]
            lacking &= ~np.isin(ids, whole)
            surplus.append(found[~np.isin(found, ids)])
        self._collection.remove(np.concatenate([np.zeros(0, np.int64), *surplus]).tolist())
        if lacking.any():
            self._fill(index, np.flatnonzero(lacking))
        self._keep(self._record["collection"], finished=True)

    def _create(self) -> None:
        """A new collection under a name that was never used.

        The name is kept first, so that no collection is left that nobody knows. One that Milvus
        Lite was killed over is there for it and is not, so that its name is used up.
        """
        self._keep(f"cir_jax_{uuid.uuid4().hex}", finished=False)
        self._collection = Collection(
            self._where, self._record["collection"], self._each, self._width
        )
        self._collection.create()

    def _fill(self, index: Any, positions: NDArray[np.int64]) -> None:
        for start in range(0, len(positions), _REPAIRED):
            part = positions[start : start + _REPAIRED]
            ids = index.catalogue.ids[part].tolist()
            self._collection.add(ids, index.rows(ids), index.catalogue.table.take(part))


def _generation(folder: Path) -> Any:
    """The generation of a folder that is in use, without its model; None before the first."""
    from cir_jax.retrieval.index import opened as indexes
    from cir_jax.retrieval.index import records

    return indexes.Index(folder, None, check=False) if records.current(folder) else None


def _copied(record: dict[str, Any], folder: Path) -> bool:
    """Whether the folder is a copy of another, which goes on with the collection; moved is not."""
    of, here = Path(record["folder"]), folder.absolute()
    if of == here or (of.exists() and of.samefile(here)):
        return False
    try:
        return bool(_read(of)["collection"] == record["collection"])
    except UserError:
        return False


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text())
        name, finished, of = found["collection"], found["finished"], found["folder"]
    except (FileNotFoundError, NotADirectoryError):
        return {"collection": "", "finished": False, "folder": ""}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / RECORD} cannot be read ({error}); restore it, or delete it and give the "
            "`cir-jax index` command again, which makes a new collection"
        ) from None
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name, re.ASCII):
        raise UserError(
            f"{folder / RECORD} names no collection ({name!r}); delete it and give the `cir-jax "
            "index` command again, which makes a new one"
        )
    return {"collection": name, "finished": finished is True, "folder": str(of)}
