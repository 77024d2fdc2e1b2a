# SPDX-License-Identifier: Apache-2.0
"""The rows of an index in a collection of Milvus: written, found by a vector, counted.

A row of an image is an entity: `pk` = id * K + number of the row, `image` its id, `row` its vector
under a FLAT index of inner products, and the fields of the image (`expressions.entries`).

Axis letters: n images, K rows of an image, D embedding, P vectors.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cir_jax.errors import UserError
from cir_jax.retrieval.milvus import expressions
from cir_jax.retrieval.milvus.connection import Connection

if TYPE_CHECKING:
    import pyarrow

MOST = 16_384  # rows that a server of Milvus returns for one vector
_CALL = 120.0  # seconds that one call may take
_LOADING = 1800.0  # seconds until a collection is in the memory of a server
_SENT = 8 << 20  # bytes of vectors in one request; a server takes 64 MB in all
_FOUND = 200_000  # rows that one request may find; a server answers with at most 100 MB
_PAGE = {
    True: 1_000_000,
    False: MOST,
}  # ids asked for at a time: Milvus Lite looks at all each time


class Collection:
    """One collection.

    Args:
      connection: to where it is.
      name: of it; letters, digits and "_".
      each: K.
      width: D.
    """

    def __init__(self, connection: Connection, name: str, each: int, width: int):
        self._connection, self._client = connection, connection.client
        self._name, self._each, self._width = name, each, width

    def there(self) -> bool:
        """Whether it exists.

        Raises:
          UserError: it does, and holds vectors of another width.
        """
        with self._connection.told():
            if not self._client.has_collection(self._name, timeout=_CALL):
                return False
            fields = self._client.describe_collection(self._name, timeout=_CALL)["fields"]
        widths = {f["name"]: int(f["params"].get("dim", 0)) for f in fields}
        if widths.get("row") != self._width:
            raise UserError(
                f"the collection {self._name} at {self._connection.place} holds vectors of width "
                f"{widths.get('row')}, the index has {self._width}; drop it, and give the index "
                "command again"
            )
        return True

    def create(self) -> None:
        """Makes it; see the module for what it holds."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("pk", DataType.INT64, is_primary=True)
        schema.add_field("image", DataType.INT64)
        schema.add_field("row", DataType.FLOAT_VECTOR, dim=self._width)
        with self._connection.told():
            # Strong: who reads after a commit sees all of it.
            self._client.create_collection(
                self._name, schema=schema, consistency_level="Strong", timeout=_CALL
            )

    def load(self) -> None:
        """Makes it ready to be asked."""
        from pymilvus import MilvusClient

        index = MilvusClient.prepare_index_params()
        index.add_index("row", index_type="FLAT", metric_type="IP")
        with self._connection.told():
            if not self._client.list_indexes(self._name, "row", timeout=_CALL):
                # A new collection is empty, so that there is nothing to wait for.
                self._client.create_index(self._name, index, timeout=_CALL, sync=False)
            self._client.load_collection(self._name, timeout=_LOADING)

    def __len__(self) -> int:
        """The rows that it holds, of all images."""
        with self._connection.told():
            [found] = self._client.query(
                self._name, filter="", output_fields=["count(*)"], timeout=_CALL
            )
        return int(found["count(*)"])

    def images(self, last: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Ids up to `last` that have rows, ascending, by pages, with how many rows of each."""
        step = max(1, _PAGE[self._connection.local] // self._each)
        for start in range(0, last + 1, step):
            with self._connection.told():
                found = self._client.query(
                    self._name,
                    filter=f"image >= {start} and image < {min(start + step, last + 1)}",
                    output_fields=["image"],
                    timeout=_CALL,
                )
            ids = np.array([entity["image"] for entity in found], np.int64)
            yield np.unique(ids, return_counts=True)

    def add(self, ids: Sequence[int], rows: NDArray[np.float32], fields: "pyarrow.Table") -> None:
        """Adds images; one that is there is replaced.

        Args:
          ids: n of them.
          rows: [n, K, D].
          fields: n lines.

        Raises:
          UserError: a row is not finite, fields of an image are too long, or Milvus fails.
        """
        images = np.asarray(ids, np.int64)
        bad = ~np.isfinite(rows).all((1, 2))
        if bad.any():
            raise UserError(
                f"image {images[bad][0]} has a row that is not finite, which Milvus does not keep; "
                "look at the model and at that image"
            )
        step = max(1, _SENT // (4 * self._each * self._width))
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            entries = expressions.entries(images[part], fields.slice(start, step))
            self._insert(images[part], rows[part], entries)

    def _insert(self, ids: Any, rows: Any, entries: Iterator[dict[str, Any]]) -> None:
        sent = [
            {"pk": int(image) * self._each + k, "image": int(image), "row": row, **entry}
            for image, of_image, entry in zip(ids, rows, entries, strict=True)
            for k, row in enumerate(of_image)
        ]
        # Not upsert: that of Milvus Lite keeps old keys of the dynamic field.
        keys = [entity["pk"] for entity in sent]
        with self._connection.told():
            there = self._client.get(self._name, keys, output_fields=["pk"], timeout=_CALL)
            if there:
                old = [entity["pk"] for entity in there]
                self._client.delete(self._name, ids=old, timeout=_CALL)
            self._client.insert(self._name, sent, timeout=_CALL)

    def remove(self, ids: Sequence[int]) -> None:
        """Removes images, also those of which not all rows are there, and those that are not."""
        keys = (np.asarray(ids, np.int64)[:, None] * self._each + np.arange(self._each)).ravel()
        for start in range(0, len(keys), MOST):
            with self._connection.told():
                self._client.delete(
                    self._name, ids=keys[start : start + MOST].tolist(), timeout=_CALL
                )

    def remove_after(self, last: int) -> None:
        """Removes all images with ids above `last`."""
        with self._connection.told():
            self._client.delete(self._name, filter=f"image > {last}", timeout=_CALL)

    def nearest(
        self, vectors: NDArray[np.float32], most: int, last: int, condition: str
    ) -> list[tuple[NDArray[np.int64], float]]:
        """The rows with the largest products with each vector.

        Args:
          vectors: [P, D].
          most: rows to find for each; at most MOST.
          last: only images with ids up to this one.
          condition: an expression, "" for none.

        Returns:
          For each vector, ids of the images whose rows they are, each once, and a bound: the
          product of no other row is larger. It is -inf where there is no other.
        """
        found: list[tuple[NDArray[np.int64], float]] = []
        condition = f"image <= {last}" + (f" and {condition}" if condition else "")
        step = max(1, _FOUND // most)
        for start in range(0, len(vectors), step):
            with self._connection.told():
                lists = self._client.search(
                    self._name,
                    data=list(vectors[start : start + step]),
                    anns_field="row",
                    limit=most,
                    filter=condition,
                    search_params={"metric_type": "IP"},
                    timeout=_CALL,
                )
            for hits in lists:
                keys = np.array([hit["pk"] for hit in hits], np.int64)
                bound = hits[-1]["distance"] if len(hits) == most else -np.inf
                found.append((np.unique(keys // self._each), float(bound)))
        return found
