# SPDX-License-Identifier: Apache-2.0
"""Images at given ranks of similarity, for sets whose N x N similarities do not fit into memory.

The similarities of a block of images with all others are one matrix product on the mesh. What is
at rank r of each row is found there, too, by counting: 16 times it is asked how many similarities
are at least so large, two bits of the answer each time, and what is known at the end is exact. Only
the images found come to the host. The full sort of the released code needs 8 N^2 bytes and is
thrown away but for one entry per row.

Axis letters: N images, C width, n rows that are asked, b rows of a block, r ranks of a row.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cir_jax import progress
from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes

_COUNTED = 32  # ranks of a row: more are found by sorting the row, which takes about as long
_EQUAL = 16  # images of one similarity that are gone through one by one; more, by halving
_LOWEST = np.int32(-(2**31))  # the key of an image itself, below those of all similarities


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
        four are under way.

    Returns:
      (image numbers, similarities) for each row, in the order of its ranks.
    """
    rows = np.arange(len(features)) if rows is None else np.asarray(rows)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    if len(ranks) != len(rows):
        raise ValueError(f"ranks of {len(ranks)} images for {len(rows)} rows")
    split, ahead = meshes.row_sharding(mesh), deque[tuple[int, tuple[jax.Array, jax.Array]]]()

    def finish() -> None:
        start, out = ahead.popleft()
        numbers, similar = (np.asarray(x) for x in out)
        for i, wanted in enumerate(ranks[start : start + len(numbers)]):
            mine = slice(len(wanted))
            found.append((numbers[i, mine].astype(np.int64), similar[i, mine]))

    total = -(-len(rows) // (block * mesh.size))
    bar = progress.bar(similarities(features, rows, mesh, block), total, "ranking images")
    for start, scores in bar:
        wanted = _table(ranks[start : start + len(scores)], len(scores))
        own = _repeated(rows, start, len(scores))
        program = _selection(mesh, wanted.shape[1] > _COUNTED)
        ahead.append((start, program(scores, *jax.device_put((own, wanted), split))))
        if len(ahead) > 1:
            finish()
    while ahead:
        finish()
    return found


def similarities(
    features: np.ndarray, rows: np.ndarray, mesh: Mesh, block: int
) -> Iterator[tuple[int, jax.Array]]:
    """(first of `rows`, [b, N] float32 similarities to all images) for one block after the other.

    They are on the devices, a share of the rows on each. The last block repeats its last row, so
    that there is one program. The next block is begun before the caller gets this one.
    """
    program = _product(mesh)
    everywhere, split = meshes.replicated(mesh), meshes.row_sharding(mesh)
    whole = jax.device_put(np.asarray(features, np.float32), everywhere)
    size = min(block, -(-len(rows) // mesh.size)) * mesh.size
    ahead: deque[tuple[int, jax.Array]] = deque()
    for start in range(0, len(rows), size):
        part = jax.device_put(_repeated(rows, start, size), split)
        ahead.append((start, program(whole, part)))
        if len(ahead) > 1:
            yield ahead.popleft()
    while ahead:
        yield ahead.popleft()


def _repeated(rows: np.ndarray, start: int, size: int) -> np.ndarray:
    """[size] int32: rows from `start` on; the last one again and again behind the end."""
    return rows[np.minimum(np.arange(start, start + size), len(rows) - 1)].astype(np.int32)


def _table(ranks: Sequence[np.ndarray], size: int) -> np.ndarray:
    """[size, r] int32: ranks of some rows, filled up with rank 0; r is a power of two, so that
    there are few programs."""
    most = max((len(wanted) for wanted in ranks), default=1)
    table = np.zeros((size, 1 << max(most - 1, 0).bit_length()), np.int32)
    for i, wanted in enumerate(ranks):
        table[i, : len(wanted)] = wanted
    return table


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


@lru_cache(maxsize=8)
def _selection(mesh: Mesh, sorts: bool) -> Callable:
    """(similarities [b, N], own image [b], ranks [b, r]) -> image numbers and similarities [b, r].

    Each device works on its rows alone: a loop that waited for others would take as long as the
    slowest of them, every time.
    """

    def select(scores, own, ranks):
        column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        keys = jnp.where(column == own[:, None], _LOWEST, _keys(scores))
        numbers = _sorted(keys, column, ranks) if sorts else _counted(keys, ranks)
        # The image itself is the last of its row by its key, and the first by what is asked.
        numbers = jnp.where(ranks == 0, own[:, None], numbers)
        return numbers, jnp.take_along_axis(scores, numbers, axis=1)

    along = PartitionSpec(meshes.AXES)
    return jax.jit(
        jax.shard_map(
            select,
            mesh=mesh,
            in_specs=(along, along, along),
            out_specs=(along, along),
            check_vma=False,
        )
    )


def _keys(scores: jax.Array) -> jax.Array:
    """Whole numbers in the order of float32 numbers, none of which is NaN; equal of equal ones.

    Floats are not compared where an answer is put together bit by bit: some devices take numbers
    next to zero for zero.
    """
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    bits = jnp.where(bits == _LOWEST, 0, bits)  # -0.0, which equals 0.0
    return jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)


def _sorted(keys: jax.Array, column: jax.Array, ranks: jax.Array) -> jax.Array:
    """[b, r] columns at ranks from 1 on, by sorting the rows."""
    # The complement turns the order round; stable, so equal ones stay in the order of columns.
    order = jax.lax.sort((~keys, column), num_keys=1, is_stable=True)[1]
    return jnp.take_along_axis(order, jnp.maximum(ranks - 1, 0), axis=1)


def _counted(keys: jax.Array, ranks: jax.Array) -> jax.Array:
    """[b, r] columns at ranks from 1 on, by counting."""
    place = jnp.maximum(ranks - 1, 0)  # among the others
    keys = keys[:, None]  # [b, 1, N], against [b, r, 1]
    # The largest value that more than `place` keys reach. Its bits are those of a number without a
    # sign, whose order is that of numbers with one if the first bit is turned round.
    value, above = _largest(
        32,
        lambda values: _sums([keys >= _signed(one)[..., None] for one in values]),
        lambda reached: reached > place,
        place.shape,
    )
    value = _signed(value)[..., None]
    behind = place - above  # so manieth of the equal ones
    return jax.lax.cond(
        behind.max() < _EQUAL,
        lambda: _step_to(keys, value, behind),
        lambda: _halve_to(keys, value, behind),
    )


def _signed(value: jax.Array) -> jax.Array:
    """The int32 whose place in the order of all int32 is that of a uint32 among its own."""
    return jax.lax.bitcast_convert_type(value ^ jnp.uint32(2**31), jnp.int32)


def _largest(
    bits: int,
    count: Callable[[list[jax.Array]], Sequence[jax.Array]],
    fits: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """The largest numbers whose count fits, if the count of 0 does, two bits at a time.

    Args:
      bits: of the numbers, even.
      count: numbers, in rising order -> the count of each; where one does not fit, no larger does.
      fits: count -> whether it does.
      shape: of the numbers.

    Returns:
      (numbers, uint32; the count of the number behind each, 0 behind the last of all).
    """

    def two_bits(i, state):
        number, behind = state
        shift = (bits - 2 - 2 * i).astype(jnp.uint32)
        tried = [number | (jnp.uint32(digit) << shift) for digit in (1, 2, 3)]
        counts = count(tried)
        for one, counted in zip(reversed(tried), reversed(counts), strict=True):
            behind = jnp.where(fits(counted), behind, counted)
            number = jnp.where(fits(counted), jnp.maximum(number, one), number)
        return number, behind

    nothing = jnp.zeros(shape, jnp.uint32), jnp.zeros(shape, jnp.int32)
    return jax.lax.fori_loop(0, bits // 2, two_bits, nothing)


def _sums(chosen: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """[b, r] how many of each [b, r, N] are true.

    By one reduction: what they look at is read once, and a CPU takes a fifth of the time.
    """
    zeros = tuple(jnp.int32(0) for _ in chosen)
    numbers = tuple(one.astype(jnp.int32) for one in chosen)
    return jax.lax.reduce(
        numbers, zeros, lambda a, b: tuple(i + j for i, j in zip(a, b, strict=True)), (2,)
    )


def _step_to(keys: jax.Array, value: jax.Array, behind: jax.Array) -> jax.Array:
    """[b, r] columns of the keys equal to a value that have so many of them in front, in steps."""
    column = jax.lax.broadcasted_iota(jnp.int32, (1, 1, keys.shape[2]), 2)

    def step(state):
        done, at = state
        # Compared in here: written down, these would be as many as all keys for each rank.
        later = (keys == value) & (column > at[..., None])
        following = jnp.argmax(later, axis=2).astype(jnp.int32)
        return done + 1, jnp.where(done <= behind, following, at)

    start = jnp.int32(0), jnp.full(behind.shape, -1, jnp.int32)
    return jax.lax.while_loop(lambda state: state[0] <= behind.max(), step, start)[1]


def _halve_to(keys: jax.Array, value: jax.Array, behind: jax.Array) -> jax.Array:
    """As `_step_to`, bit by bit: the largest column with at most so many of them in front."""
    column = jax.lax.broadcasted_iota(jnp.uint32, (1, 1, keys.shape[2]), 2)
    bits = (keys.shape[2] - 1).bit_length()
    return _largest(
        bits + bits % 2,
        lambda columns: _sums([(keys == value) & (column < one[..., None]) for one in columns]),
        lambda in_front: in_front <= behind,
        behind.shape,
    )[0].astype(jnp.int32)
