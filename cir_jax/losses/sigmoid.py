# SPDX-License-Identifier: Apache-2.0
"""The sigmoid loss: every pair of the global batch is one yes-or-no question.

    z_ij = <query_i, target_j> / tau + b,    loss_i = -log sigmoid(z_ii) - sum over j != i of
                                                      log sigmoid(-z_ij)

The scores of all rows of the batch are not compared with each other, so no sum over them is needed
first, and pairs may be gone through in any order. Each device keeps its own queries and passes its
targets on to the next one, until it has seen all: no device ever holds [B, B] scores, nor a row of
them. `sigmoid_loss_plain` is the definition, kept as the oracle of the tests.

Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023 (arXiv 2303.15343),
algorithm 1 and section 3.3. There tau and b are learned, from 1 / 10 and -10 on.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cir_jax.losses.scores import scores
from cir_jax.runtime.mesh import DATA

_BLOCK = 1024  # rows of targets whose scores a device has at a time, 4 KB for each of its queries
_SHARED = PartitionSpec(DATA)
_ALL = PartitionSpec()


def sigmoid_loss_plain(
    query: jax.Array,
    targets: jax.Array,
    temperature: jax.Array | float,
    bias: jax.Array | float,
) -> jax.Array:
    """The definition of `sigmoid_loss`, which holds [B, B, K]; arguments as there."""
    logits = scores(query, targets) / temperature + bias
    signs = 2 * jnp.eye(len(query)) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum(axis=1)


def sigmoid_loss(
    query: jax.Array,
    targets: jax.Array,
    temperature: jax.Array | float,
    bias: jax.Array | float,
    *,
    mesh: Mesh,
    block: int = 0,
) -> jax.Array:
    """The sigmoid loss of query i with the batch's targets, of which i is its own.

    Args:
      query: [B, D] unit queries, sharded over "data".
      targets: [B, K, D] unit rows of the positives, sharded likewise; the best of K counts.
      temperature: scalar.
      bias: scalar, added to each score over the temperature.
      mesh: the device mesh; B divides over its axis "data".
      block: targets x K whose scores a device holds at a time; 0 is 1024. Sums are rounded
        otherwise for others, and that is all.

    Returns:
      [B] float32. A target that occurs twice in a batch is a negative of its twin, as in
      `in_batch_loss`.
    """
    static = partial(_on_device, block or _BLOCK, mesh.shape[DATA])
    numbers = (jnp.asarray(x, jnp.float32) for x in (temperature, bias))
    return jax.shard_map(
        static,
        mesh=mesh,
        in_specs=(_SHARED, _SHARED, _ALL, _ALL),
        out_specs=_SHARED,
        check_vma=False,
    )(query, targets, *numbers)


def _on_device(
    block: int,
    shards: int,
    query: jax.Array,
    targets: jax.Array,
    temperature: jax.Array,
    bias: jax.Array,
) -> jax.Array:
    """[b] losses of this device's queries."""
    each, per_row = targets.shape[:2]
    size = next(n for n in range(max(min(block // per_row, each), 1), 0, -1) if each % n == 0)
    starts = jnp.arange(0, each, size)
    rows = jnp.arange(each)[:, None]

    # Scores are made again in the backward pass: kept, they would be those of all pairs.
    @jax.checkpoint
    def some(start: jax.Array, held: jax.Array, own: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(held, start, size)
        logits = scores(query, part) / temperature + bias
        positive = own & (rows == start + jnp.arange(size)[None])
        return jax.nn.softplus(jnp.where(positive, -logits, logits)).sum(axis=1)

    def all_of(loss: jax.Array, held: jax.Array, own: jax.Array) -> jax.Array:
        body = lambda loss, start: (loss + some(start, held, own), None)
        return jax.lax.scan(body, loss, starts)[0]

    nothing = jnp.zeros(len(query), jnp.float32)
    if shards == 1:  # a loop of one turn: all in it would be taken out of it, and kept
        return all_of(nothing, targets, jnp.bool_(True))
    around = [(i, (i + 1) % shards) for i in range(shards)]

    def turn(carry: tuple, step: jax.Array) -> tuple:
        loss, held = carry
        loss = all_of(loss, held, step == 0)
        return (loss, jax.lax.ppermute(held, DATA, around)), None

    (loss, _), _ = jax.lax.scan(turn, (nothing, targets), jnp.arange(shards))
    return loss
