# SPDX-License-Identifier: Apache-2.0
"""Images at given ranks of similarity, for sets whose N x N similarities do not fit into memory.

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

from cir_jax import progress
from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes


def at_ranks(
    features: np.ndarray,
    ranks: Sequence[np.ndarray],
    *,
    rows: np.ndarray | None = None,
    mesh: Mesh,
    block: int = 256,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images at some ranks of the similarity to each of some images.

    Rank 0 is the image itself, whatever rounding makes of its similarity to a near twin; of equal
    similarities the lower number comes first.

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
    if len(ranks) != len(rows):
        raise ValueError(f"ranks of {len(ranks)} images for {len(rows)} rows")
    with ThreadPoolExecutor(os.cpu_count() or 1) as workers:
        total = -(-len(rows) // (block * mesh.size))
        bar = progress.bar(similarities(features, rows, mesh, block), total, "ranking images")
        for start, scores in bar:
            part = slice(start, start + len(scores))
            found += workers.map(_select, scores, ranks[part], rows[part])
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
    size = min(block, -(-len(rows) // mesh.size)) * mesh.size
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


def unit_rows(features: np.ndarray, where: str) -> np.ndarray:
    """A float32 copy of [N, C] whose rows have unit length.

    Raises:
      UserError: a row is not finite, or all zeros; `where` names the features.
    """
    with np.errstate(over="ignore"):  # float64 beyond float32 is not finite, and refused below
        rows = np.array(features, np.float32)
    # Not np.linalg.norm: it would hold all the squares, as much again as the features.
    length = np.sqrt(np.einsum("nc,nc->n", rows, rows))
    wrong = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(wrong):
        raise UserError(
            f"{where}: {len(wrong)} of {len(rows)} rows are zero or not finite, row "
            f"{wrong[0]} the first; make the features again"
        )
    rows /= length[:, None]
    return rows


@lru_cache(maxsize=4)
def _product(mesh: Mesh) -> Callable:
    def product(features, rows):
        return jnp.dot(features[rows], features.T, precision="highest")

    return jax.jit(product, out_shardings=meshes.row_sharding(mesh))


def _select(scores: np.ndarray, ranks: np.ndarray, own: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores at `ranks` of the row of image `own`."""
    scores, itself = scores.copy(), scores[own]
    scores[own] = np.inf
    places = len(scores) - 1 - np.asarray(ranks)
    values = np.partition(scores, np.unique(places))[places]
    numbers = np.empty(len(places), np.int64)
    for i, (rank, value) in enumerate(zip(ranks, values, strict=True)):
        equal = np.flatnonzero(scores == value)
        ahead = 0 if len(equal) == 1 else rank - np.count_nonzero(scores > value)
        numbers[i] = equal[ahead]
    return numbers, np.where(numbers == own, itself, values)
