# SPDX-License-Identifier: Apache-2.0
"""A bank loss over sampled negatives: n rows per query, drawn anew at every step.

For ablations of the number of negatives. Drawing is exact: every set of n allowed rows is equally
likely, and no row occurs twice. The released code draws them with a Python loop over the batch.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cir_jax.errors import UserError
from cir_jax.losses.matryoshka import cut
from cir_jax.losses.rows import own_rows
from cir_jax.runtime.mesh import AXES

_CHUNK = 64  # bank rows x K per query that are held at a time


def sample_negatives(
    key: jax.Array,
    label: jax.Array,
    count: int,
    rows: int,
    exclude: jax.Array | None = None,
) -> jax.Array:
    """Rows drawn uniformly without replacement, never the positive nor an excluded row.

    `count` distinct numbers below the number of allowed rows are drawn for each query, in O(count)
    memory, and then moved past its forbidden rows. Where more than half of the rows are wanted, the
    ones to leave out are drawn instead, so that no draw is wasted on what was drawn before.

    Args:
      key: random key.
      label: [B] row of the positive.
      count: n, negatives per query.
      rows: valid rows of the bank.
      exclude: [B, E] rows that may not be drawn, -1 for none.

    Returns:
      [B, n] int32, ascending in each row.

    Raises:
      UserError: fewer than n rows are certain to be allowed.
    """
    forbidden = label[:, None]
    if exclude is not None:
        forbidden = jnp.concatenate([forbidden, exclude], axis=1)
    limit = rows - forbidden.shape[1]
    if not 1 <= count <= limit:
        beside = f" beside up to {exclude.shape[1]} excluded ones" if exclude is not None else ""
        raise UserError(
            f"loss.bank_negatives={count}, but a bank of {rows} images leaves {limit} negatives"
            f"{beside}; use 1 to {limit}, or 0 for the whole bank"
        )
    # Duplicates and -1 are moved past the end, where they forbid nothing.
    forbidden = jnp.sort(jnp.where(forbidden < 0, 2 * rows, forbidden), axis=1)
    again = jnp.pad(forbidden[:, 1:] == forbidden[:, :-1], ((0, 0), (1, 0)))
    forbidden = jnp.sort(jnp.where(again, 2 * rows, forbidden), axis=1)
    allowed = rows - (forbidden < rows).sum(axis=1)  # [B]

    if 2 * count <= limit:
        drawn = _distinct(key, allowed, jnp.full_like(allowed, count), count)
    else:  # at most one row, the positive, is forbidden to every query: the width below holds all
        left_out = _distinct(key, allowed, allowed - count, rows - 1 - count)
        drawn = _past(jnp.broadcast_to(jnp.arange(count)[None], (len(label), count)), left_out)
    return _past(drawn, forbidden).astype(jnp.int32)


def _distinct(key: jax.Array, below: jax.Array, count: jax.Array, width: int) -> jax.Array:
    """[B, width] ascending: `count[b]` distinct numbers of 0 .. below[b] - 1, then larger ones.

    Numbers that occur twice are drawn again until there are none. What is kept are the first
    `count` different values of a stream of independent uniform draws, and those are, by symmetry,
    a uniform subset.
    """
    slot = jnp.arange(width)[None]
    closed = below[:, None] + slot  # unused slots: distinct, and no possible draw

    def draw(turn: jax.Array | int) -> jax.Array:
        return jax.random.randint(jax.random.fold_in(key, turn), closed.shape, 0, below[:, None])

    def again(values: jax.Array) -> jax.Array:
        return jnp.pad(values[:, 1:] == values[:, :-1], ((0, 0), (1, 0)))

    def redraw(state: tuple) -> tuple:
        values, turn = state
        return jnp.sort(jnp.where(again(values), draw(turn), values), axis=1), turn + 1

    start = jnp.sort(jnp.where(slot < count[:, None], draw(0), closed), axis=1)
    return jax.lax.while_loop(lambda state: again(state[0]).any(), redraw, (start, 1))[0]


def _past(values: jax.Array, gaps: jax.Array) -> jax.Array:
    """The `values[b]`-th number that is not in `gaps[b]`: [B, n] and ascending [B, G] -> [B, n]."""
    before = gaps - jnp.arange(gaps.shape[1])[None]  # numbers that are no gaps, ahead of each gap
    method = "compare_all" if gaps.shape[1] <= 32 else "scan"

    def count(before: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.searchsorted(before, values, side="right", method=method)

    return values + jax.vmap(count)(before, values)


def sampled_bank_loss(
    query: jax.Array,
    bank: jax.Array,
    label: jax.Array,
    negative_id: jax.Array,
    temperature: jax.Array | float,
    *,
    mesh: Mesh,
    per_row: int = 1,
    width: int = 0,
) -> jax.Array:
    """Cross-entropy of each query over its positive and its own negatives.

    Args:
      query: [B, D] unit queries.
      bank: [N K, D] unit rows, sharded over all devices, see `cir_jax.losses.rows`.
      label: [B] candidate of the positive.
      negative_id: [B, n] candidates that are negatives.
      temperature: scalar.
      mesh: the device mesh.
      per_row: K.
      width: of the queries where they are cut, see `cir_jax.losses.matryoshka`: rows are then cut
        to it; 0 takes both as they are.

    Returns:
      [B] float32; gradients reach the query and the temperature.
    """
    ids = jnp.concatenate([label[:, None], negative_id], axis=1)
    logits = row_scores(query, bank, ids, mesh, per_row, width) / temperature
    return jax.nn.logsumexp(logits, axis=1) - logits[:, 0]


def row_scores(
    query: jax.Array,
    bank: jax.Array,
    ids: jax.Array,
    mesh: Mesh,
    per_row: int = 1,
    width: int = 0,
) -> jax.Array:
    """Scores of each query with candidates of its own, [B, D], [N K, D], [B, n] -> [B, n] float32.

    Each device scores the rows it holds, a few at a time and again in the backward pass: memory is
    [B, 64, D], and only scores travel.
    """
    count = ids.shape[1]
    chunk = min(max(_CHUNK // per_row, 1), count)
    padded = jnp.pad(ids, ((0, 0), (0, -count % chunk)), constant_values=-1)
    chunks = padded.reshape(ids.shape[0], -1, chunk).swapaxes(0, 1)

    def on_device(query: jax.Array, local: jax.Array, chunks: jax.Array) -> jax.Array:
        @jax.checkpoint
        def one(part: jax.Array) -> jax.Array:
            # Rows of other devices are zeros here, and so are their scores.
            rows = cut(own_rows(local, part, per_row), width).astype(jnp.float32)
            flat = rows.reshape(len(rows), -1, rows.shape[-1])
            products = jnp.einsum("bd,bmd->bm", query, flat, precision="highest")
            return products.reshape(rows.shape[:3]).max(axis=2)

        return jax.lax.psum(jax.lax.map(one, chunks), AXES)

    everywhere = PartitionSpec()
    scores = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(everywhere, PartitionSpec(AXES), everywhere),
        out_specs=everywhere,
        check_vma=False,
    )(query.astype(jnp.float32), jax.lax.stop_gradient(bank), chunks)
    return scores.swapaxes(0, 1).reshape(ids.shape[0], -1)[:, :count]
