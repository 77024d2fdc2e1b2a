# SPDX-License-Identifier: Apache-2.0
"""Images at given ranks of similarity, for sets whose N x N similarities fit nowhere.

The similarities of a block of images with all others are one matrix product on the mesh. What is
at rank r of each row is then found on the host by partial selection, which is linear in N: the
full sort of the released code needs 8 N^2 bytes and is thrown away but for one entry per row.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import progress


def at_ranks(
    features: np.ndarray,
    ranks: Sequence[np.ndarray],
    *,
    rows: np.ndarray | None = None,
    mesh: Mesh,
    block: int = 256,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images at some ranks of the similarity to each of some images.

    Rank 0 is the image itself, or one that is as similar; of equal similarities the lower number
    comes first.

    Args:
      features: [N, C] float32, unit rows.
      ranks: for each of the rows, the ranks that are wanted, each 0 to N - 1, in any order.
      rows: [n] images whose rankings are asked; None for all.
      mesh: devices for the products; the features are on each of them.
      block: rows of similarities at a time on each device. A block needs 4 x N bytes a row, and
        three are under way.

    Returns:
      (image numbers, similarities) for each row, in the order of its ranks.
    """
    rows = np.arange(len(features)) if rows is None else np.asarray(rows)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as workers:
        total = -(-len(rows) // (block * mesh.size))
        bar = progress.bar(similarities(features, rows, mesh, block), total, "ranking images")
        for start, scores in bar:
            wanted = ranks[start : start + len(scores)]
            found += workers.map(_select, scores, wanted)
    return found


def similarities(
    features: np.ndarray, rows: np.ndarray, mesh: Mesh, block: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(first of `rows`, [b, N] float32 similarities to all images) for one block after the other.

    The next block is computed while the caller works on this one.
    """
    program = _product(mesh)
    everywhere, split = meshes.replicated(mesh), meshes.row_sharding(mesh)
    whole = jax.device_put(np.asarray(features, np.float32), everywhere)
    size = block * mesh.size
    ahead: deque = deque()
    for start in range(0, len(rows), size):
        # The last block repeats its last row, so that there is one program.
        part = rows[np.minimum(np.arange(start, start + size), len(rows) - 1)]
        ahead.append((start, program(whole, jax.device_put(part.astype(np.int32), split))))
        if len(ahead) > 1:
            first, scores = ahead.popleft()
            yield first, np.asarray(scores)[: len(rows) - first]
    while ahead:
        first, scores = ahead.popleft()
        yield first, np.asarray(scores)[: len(rows) - first]


def unit(features: np.ndarray, where: str) -> np.ndarray:
    """[N, C] float32 with rows of unit length.

    Raises:
      UserError: a row is not finite, or all zeros; `where` names the features.
    """
    features = np.asarray(features, np.float32)
    length = np.linalg.norm(features, axis=1)
    wrong = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(wrong):
        raise UserError(
            f"{where}: {len(wrong)} of {len(features)} rows are zero or not finite, row "
            f"{wrong[0]} the first; make the features again"
        )
    return features / length[:, None]


@lru_cache(maxsize=4)
def _product(mesh: Mesh) -> Callable:
    def product(features, rows):
        return jnp.dot(features[rows], features.T, precision="highest")

    return jax.jit(product, out_shardings=meshes.row_sharding(mesh))


def _select(scores: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores at `ranks` of one row."""
    count = len(scores)
    ranks = np.asarray(ranks)
    ordered = np.partition(scores, np.unique(count - 1 - ranks))
    values = ordered[count - 1 - ranks]
    numbers = np.empty(len(ranks), np.int64)
    for i, (rank, value) in enumerate(zip(ranks, values, strict=True)):
        equal = np.flatnonzero(scores == value)
        ahead = 0 if len(equal) == 1 else rank - np.count_nonzero(scores > value)
        numbers[i] = equal[ahead]
    return numbers, values
