# SPDX-License-Identifier: Apache-2.0
"""A bank loss over sampled negatives: n rows per query, drawn anew at every step.

Used for the ablation of the number of negatives (figure 4 of arXiv 2404.11317). Drawing is exact:
every set of n allowed rows is equally likely, and no row occurs twice.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cir_jax.errors import UserError
from cir_jax.negatives.in_bank import own_rows
from cir_jax.runtime.mesh import AXES

_CHUNK = 64  # negatives per query whose rows are held at a time


def sample_negatives(
    key: jax.Array,
    label: jax.Array,
    count: int,
    rows: int,
    exclude: jax.Array | None = None,
) -> jax.Array:
    """Rows drawn uniformly without replacement, never the positive nor an excluded row.

    Floyd's algorithm draws `count` distinct numbers below the number of allowed rows in O(count)
    memory per query; they are then moved past the forbidden rows in ascending order.

    Args:
      key: random key.
      label: [B] row of the positive.
      count: n, negatives per query.
      rows: valid rows of the bank.
      exclude: [B, E] rows that may not be drawn, -1 for none.

    Returns:
      [B, n] int32.

    Raises:
      UserError: fewer than n rows are certain to be allowed.
    """
    forbidden = label[:, None]
    if exclude is not None:
        forbidden = jnp.concatenate([forbidden, exclude], axis=1)
    limit = rows - forbidden.shape[1]
    if not 1 <= count <= limit:
        raise UserError(
            f"loss.bank_negatives={count}, but a bank of {rows} images leaves {limit} negatives; "
            f"use 1 to {limit}, or 0 for the whole bank"
        )
    # Duplicates and -1 are moved past the end, where they forbid nothing.
    forbidden = jnp.sort(jnp.where(forbidden < 0, rows, forbidden), axis=1)
    again = jnp.pad(forbidden[:, 1:] == forbidden[:, :-1], ((0, 0), (1, 0)))
    forbidden = jnp.sort(jnp.where(again, rows, forbidden), axis=1)
    allowed = rows - (forbidden < rows).sum(axis=1)  # [B]

    def draw(i: jax.Array, chosen: jax.Array) -> jax.Array:
        last = allowed - count + i
        value = jax.random.randint(jax.random.fold_in(key, i), label.shape, 0, last + 1)
        taken = (chosen == value[:, None]).any(axis=1)
        return chosen.at[:, i].set(jnp.where(taken, last, value))

    chosen = jnp.full((label.shape[0], count), -1, jnp.int32)
    chosen = jax.lax.fori_loop(0, count, draw, chosen)
    for column in range(forbidden.shape[1]):
        chosen = chosen + (chosen >= forbidden[:, column, None])
    return chosen


def sampled_bank_loss(
    query: jax.Array,
    bank: jax.Array,
    label: jax.Array,
    negative_id: jax.Array,
    temperature: jax.Array | float,
    *,
    mesh: Mesh,
) -> jax.Array:
    """Cross-entropy of each query over its positive and its own negatives.

    Args:
      query: [B, D] unit queries.
      bank: [N, K, D] unit rows, sharded over all devices.
      label: [B] row of the positive.
      negative_id: [B, n] rows of the negatives.
      temperature: scalar.
      mesh: the device mesh.

    Returns:
      [B] float32; gradients reach the query and the temperature.
    """
    ids = jnp.concatenate([label[:, None], negative_id], axis=1)
    logits = row_scores(query, bank, ids, mesh) / temperature
    return jax.nn.logsumexp(logits, axis=1) - logits[:, 0]


def row_scores(query: jax.Array, bank: jax.Array, ids: jax.Array, mesh: Mesh) -> jax.Array:
    """Scores of each query with its own rows, [B, D], [N, K, D] and [B, n] -> [B, n] float32.

    Rows are looked up a few at a time and again in the backward pass: memory is [B, 64, K, D].
    """
    count = ids.shape[1]
    chunk = min(_CHUNK, count)
    padded = jnp.pad(ids, ((0, 0), (0, -count % chunk)), constant_values=-1)
    chunks = padded.reshape(ids.shape[0], -1, chunk).swapaxes(0, 1)

    def on_device(query: jax.Array, local: jax.Array, chunks: jax.Array) -> jax.Array:
        @jax.checkpoint
        def one(part: jax.Array) -> jax.Array:
            rows = jax.lax.psum(own_rows(local, part).astype(jnp.float32), AXES)
            return jnp.einsum("bd,bnkd->bnk", query, rows, precision="highest").max(axis=2)

        return jax.lax.map(one, chunks)

    everywhere = PartitionSpec()
    scores = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(everywhere, PartitionSpec(AXES), everywhere),
        out_specs=everywhere,
        check_vma=False,
    )(query.astype(jnp.float32), jax.lax.stop_gradient(bank), chunks)
    return scores.swapaxes(0, 1).reshape(ids.shape[0], -1)[:, :count]
