# SPDX-License-Identifier: Apache-2.0
"""A sample of the rows of an index as the model gave them: what rows of fewer bytes cost.

The sample is the images whose checksums are the smallest, so it does not depend on the order in
which they came, nor on where an update was stopped. Each of its images asks the others, with its
first row as the query: scores of the rows as they are kept are compared with those of float32.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cir_jax import files
from cir_jax.retrieval.index import quantized

IMAGES = 512
_BYTES = 1 << 26  # of a sample
_FIRST = 10


class Sample:
    """The float32 rows of some images.

    Args:
      rows_per_image, embedding: of the index.
    """

    def __init__(self, rows_per_image: int, embedding: int):
        each = rows_per_image * embedding * 4
        self._most = max(2, min(IMAGES, _BYTES // each))
        self.contents = np.zeros((0, 2), np.uint64)
        self.rows = np.zeros((0, rows_per_image, embedding), np.float32)

    def add(self, contents: list[bytes], rows: NDArray[np.float32]) -> None:
        """Takes images in, if their checksums are among the smallest.

        Args:
          contents: checksums of n files.
          rows: [n, K, D].
        """
        fresh = np.frombuffer(b"".join(contents), ">u8").reshape(-1, 2).astype(np.uint64)
        if len(self.contents) == self._most:
            chosen = fresh[:, 0] <= self.contents[-1, 0]
            fresh, rows = fresh[chosen], rows[chosen]
        self._keep(np.concatenate([self.contents, fresh]), np.concatenate([self.rows, rows]))

    def _keep(self, contents: NDArray[np.uint64], rows: NDArray[np.float32]) -> None:
        _, first = np.unique(contents, axis=0, return_index=True)  # ascending
        self.contents, self.rows = contents[first[: self._most]], rows[first[: self._most]]

    def only(self, contents: list[bytes]) -> None:
        """Leaves out images whose files have none of these checksums."""
        there = np.frombuffer(b"".join(contents), ">u8").reshape(-1, 2).astype(np.uint64)
        held = np.isin(self.contents[:, 0], there[:, 0])
        self.contents, self.rows = self.contents[held], self.rows[held]

    def loss(self, dtype: str) -> dict[str, Any] | None:
        """What keeping rows as `dtype` costs; None for too few images, or nothing.

        Returns:
          "images" of the sample; the "largest" and the "mean" difference of a score; "first_kept",
          the share of the "first" answers that stay among them.
        """
        count = len(self.rows)
        first = min(_FIRST, count - 1)
        if dtype == "float32" or count < 2:
            return None
        kept = quantized.restored(*quantized.stored(self.rows, dtype))
        queries = self.rows[:, 0]
        exact, other = (
            np.einsum("qd,nkd->qnk", queries, rows, optimize=True).max(axis=-1)
            for rows in (self.rows, kept)
        )
        difference = np.abs(exact - other)
        stay = 0
        for query in range(count):
            one, two = exact[query].copy(), other[query].copy()
            one[query] = two[query] = -np.inf  # the image itself
            stay += len({*np.argsort(-one)[:first]} & {*np.argsort(-two)[:first]})
        return {
            "images": count,
            "largest": float(difference.max()),
            "mean": float(difference.mean()),
            "first": first,
            "first_kept": stay / (count * first),
        }

    def write(self, path: Path) -> None:
        """Writes the sample.

        Raises:
          UserError: the disk is full.
        """
        with files.whole(path) as file:
            np.savez(file, contents=self.contents, rows=self.rows)

    def read(self, path: Path) -> None:
        """Takes in a sample that was written; one that is not there or is damaged is left out."""
        try:
            with np.load(path) as held:
                contents, rows = held["contents"], held["rows"]
        except (OSError, ValueError, KeyError, EOFError):
            return
        if rows.shape[1:] == self.rows.shape[1:] and len(rows) == len(contents):
            self._keep(np.concatenate([self.contents, contents]), np.concatenate([self.rows, rows]))


def in_words(loss: dict[str, Any], dtype: str) -> str:
    """What a loss means, in one line."""
    return (
        f"{dtype} rows: on a sample of {loss['images']:,} images scores differ by at most "
        f"{loss['largest']:.1e} (mean {loss['mean']:.1e}) from those of float32, and "
        f"{loss['first_kept']:.1%} of the first {loss['first']} answers stay"
    )
