# SPDX-License-Identifier: Apache-2.0
"""The loss of stage two: cross-entropy of a query over a static bank of every candidate.

    loss = logsumexp_j(s_j / tau) - s_p / tau,      s_j = max_k <query, bank[j, k]>

The bank is constant, so the gradient (sum_j softmax_j k_j - k_p) / tau is known as soon as the
softmax is. It is accumulated in the same pass over the bank that computes the loss, block by block
with a running maximum: two matrix products per block instead of three, and no array of [B, N].
Bank rows are sharded over every device; each device passes over its own rows, and only [B] and
[B, D] pieces are exchanged. `bank_loss_plain` is the definition, kept as the oracle of the tests.
Source: the second stage of arXiv 2404.11317; the accumulation is that of fused cross-entropy
kernels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cir_jax.losses.matryoshka import cut
from cir_jax.losses.rows import own_rows
from cir_jax.losses.scores import scores
from cir_jax.runtime.mesh import AXES

# Bank rows x K of a block on a CPU: products of some hundred queries stay in its cache.
_BLOCK_CPU = 4096
# Bytes elsewhere of the largest part of a block: its products, or its rows in float32. The more a
# device does in a turn of the loop, the less the turns cost; a GPU starts several programs in each.
_BLOCK_BYTES = {"tpu": 2**25, "gpu": 2**27}
_LEAST = -1e30  # start of a running maximum: finite, so that (masked - maximum) is never nan
_ROWS = PartitionSpec(AXES)
_ALL = PartitionSpec()


def bank_loss_plain(
    query: jax.Array,
    bank: jax.Array,
    label: jax.Array,
    temperature: jax.Array | float,
    exclude: jax.Array | None = None,
    rows: int | None = None,
) -> jax.Array:
    """The definition of `bank_loss`, holding [B, N, K]; `bank` is [N, K, D], the rest as there."""
    logits = scores(query, jax.lax.stop_gradient(bank)) / temperature
    if exclude is not None or rows not in (None, bank.shape[0]):
        ids = jnp.arange(bank.shape[0])
        drop = jnp.broadcast_to((ids >= (rows or bank.shape[0]))[None], logits.shape)
        if exclude is not None:
            drop |= (exclude[:, :, None] == ids[None, None]).any(axis=1)
        logits = jnp.where(drop & (ids[None] != label[:, None]), -jnp.inf, logits)
    positive = jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - positive


def bank_loss(
    query: jax.Array,
    bank: jax.Array,
    label: jax.Array,
    temperature: jax.Array | float,
    *,
    mesh: Mesh,
    per_row: int = 1,
    rows: int | None = None,
    exclude: jax.Array | None = None,
    block: int = 0,
    width: int = 0,
) -> jax.Array:
    """Cross-entropy of each query over all rows of the bank.

    Gradients reach `query` and `temperature`; the bank is constant. Where several of a candidate's
    K rows have the highest score, its gradient goes through the first of them.

    Args:
      query: [B, D] unit queries.
      bank: [N K, D] unit rows, the K of a candidate one after the other, sharded over both axes; N
        a multiple of the number of devices. See `cir_jax.losses.rows`.
      label: [B] candidate of the positive, 0 to N - 1.
      temperature: scalar.
      mesh: the device mesh.
      per_row: K.
      rows: valid candidates; the rest is padding. All if None.
      exclude: [B, E] candidates that are no negatives of a query, -1 for none. The positive stays
        even if it is named here.
      block: bank rows x K that a device holds products of at a time, [B, block] float32; blocks
        are made equal, of at most 1.5 times as many. 0 chooses, see `block_size`. Another block is
        another order of sums, and so changes a loss by rounding and by nothing else.
      width: of the queries where they are cut, see `cir_jax.losses.matryoshka`: the rows are cut to
        it block by block; 0 takes both as they are.

    Returns:
      [B] float32.
    """
    if exclude is not None:
        exclude = jnp.where(exclude == label[:, None], -1, exclude)
    block = block or block_size(len(query), bank.shape[1], mesh)
    static = (mesh, per_row, rows or bank.shape[0] // per_row, block, width)
    return _loss(static, query, jnp.asarray(temperature, jnp.float32), bank, label, exclude)


def block_size(batch: int, width: int, mesh: Mesh) -> int:
    """Bank rows x K of a block where none are asked for, the same on every process.

    Args:
      batch: B, queries over all devices.
      width: D.
      mesh: the device mesh; what is chosen depends on its kind of device.
    """
    platform = mesh.devices.flat[0].platform
    if platform == "cpu":
        return _BLOCK_CPU
    room = _BLOCK_BYTES.get(platform, min(_BLOCK_BYTES.values()))
    return 1 << max(room // (4 * max(batch, width)), 1).bit_length() - 1


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(static: tuple, query: Any, temperature: Any, bank: Any, label: Any, exclude: Any) -> Any:
    return _sharded(static, False, query, temperature, bank, label, exclude)[0]


def _loss_forward(static: tuple, *arguments: Any) -> tuple[Any, Any]:
    loss, *gradient = _sharded(static, True, *arguments)
    return loss, (gradient, arguments[0])


def _loss_backward(static: tuple, saved: Any, out: Any) -> tuple:
    (by_query, by_temperature), query = saved
    by_query = (out[:, None] * by_query).astype(query.dtype)
    return by_query, jnp.sum(out * by_temperature), None, None, None


_loss.defvjp(_loss_forward, _loss_backward)


def _sharded(static: tuple, gradient: bool, *arguments: Any) -> Any:
    mesh, per_row, rows, block, width = static
    return jax.shard_map(
        partial(_on_device, per_row, rows, block, width, gradient),
        mesh=mesh,
        in_specs=(_ALL, _ALL, _ROWS, _ALL, _ALL),
        out_specs=_ALL,
        check_vma=False,
    )(*arguments)


def _on_device(
    per_row: int,
    rows: int,
    block: int,
    width: int,
    gradient: bool,
    query: jax.Array,
    temperature: jax.Array,
    bank: jax.Array,
    label: jax.Array,
    exclude: jax.Array | None,
) -> tuple:
    """(loss [B], d loss / d query [B, D], d loss / d temperature [B]) from this device's rows."""
    count = bank.shape[0] // per_row
    scaled = query.astype(jnp.float32) / temperature
    first = jax.lax.axis_index(AXES) * count
    # Blocks of equal size, as near to `block` as that allows: a short last one would be paid for in
    # full, and much smaller blocks would make the memory depend on N.
    size = -(-count // max(round(count * per_row / block), 1))
    blocks = -(-count // size)

    def one_block(i: jax.Array, carry: tuple) -> tuple:
        # The last block overlaps the one before it, so that all have one shape; the mask undoes it.
        start = jnp.minimum(i * size, count - size)
        # Where a bfloat16 bank is computed with in float32 (a CPU), the compiler would convert all
        # of it before the loop. The barrier makes the bank seem to change with the block.
        whole, start = jax.lax.optimization_barrier((bank, start))
        part = cut(jax.lax.dynamic_slice_in_dim(whole, start * per_row, size * per_row), width)
        local = start + jnp.arange(size)
        valid = (first + local < rows) & (local >= i * size)
        left_out = None if exclude is None else exclude - (first + start)
        return _accumulate(carry, scaled, part, valid, left_out, gradient)

    zeros = jnp.zeros(query.shape[0], jnp.float32)
    carry = (zeros + _LEAST, zeros, jnp.zeros(query.shape, jnp.float32))
    if blocks == 1:  # no loop: the compiler sees one block
        top, total, weighted = one_block(jnp.int32(0), carry)
    else:
        top, total, weighted = jax.lax.fori_loop(0, blocks, one_block, carry)

    highest = jax.lax.pmax(top, AXES)
    share = jnp.exp(top - highest)
    total = jax.lax.psum(total * share, AXES)
    positive = cut(own_rows(bank, label, per_row), width)  # zeros: another device's
    precision, positive = _precision(positive), positive.astype(jnp.float32)
    products = jnp.einsum("bd,bkd->bk", scaled, positive, precision=precision)
    best = jax.lax.psum(products.max(axis=1), AXES)
    loss = highest + jnp.log(total) - best
    if not gradient:
        return (loss,)
    winner = jnp.take_along_axis(positive, products.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    winner = jax.lax.psum(winner, AXES)
    mean = jax.lax.psum(weighted * share[:, None], AXES) / total[:, None]
    away = mean - winner  # d loss / d (query / temperature)
    return loss, away / temperature, -(scaled * away).sum(axis=1) / temperature


def _accumulate(
    carry: tuple,
    scaled: jax.Array,
    part: jax.Array,
    valid: jax.Array,
    exclude: jax.Array | None,
    gradient: bool,
) -> tuple:
    """Adds one block to (maximum, sum of exponentials, sum of exponentials x row).

    Args:
      carry: [B], [B], [B, D].
      scaled: [B, D] queries over the temperature.
      part: [b K, D] bank rows.
      valid: [b] rows that count.
      exclude: [B, E] rows of this block to leave out; anything outside 0..b-1 is ignored.
      gradient: False leaves the last sum alone.
    """
    top, total, weighted = carry
    size, flat = len(valid), part.astype(jnp.float32)
    per_row = len(part) // size
    precision = _precision(part)
    products = jnp.dot(scaled, flat.T, precision=precision)
    if per_row > 1:
        products = products.reshape(-1, size, per_row)
        winner = products.argmax(axis=2)
        logits = products.max(axis=2)
    else:
        logits = products
    logits = jnp.where(valid[None], logits, -jnp.inf)
    if exclude is not None:
        inside = jnp.where((exclude >= 0) & (exclude < size), exclude, size)  # `size` is dropped
        each = jnp.arange(logits.shape[0])[:, None]
        logits = logits.at[each, inside].set(-jnp.inf, mode="drop")

    new_top = jnp.maximum(top, logits.max(axis=1))
    share = jnp.exp(top - new_top)
    weights = jnp.exp(logits - new_top[:, None])
    total = total * share + weights.sum(axis=1)
    if gradient:
        if per_row > 1:
            chosen = winner[..., None] == jnp.arange(per_row)[None, None]
            weights = jnp.where(chosen, weights[..., None], 0.0).reshape(weights.shape[0], -1)
        weighted = weighted * share[:, None] + jnp.dot(weights, flat, precision=precision)
    return new_top, total, weighted


def _precision(bank: jax.Array) -> str:
    # Float32 rows are multiplied as such. Bfloat16 rows lose nothing in the fast products of an
    # accelerator; sums are float32 in both cases.
    return "highest" if bank.dtype == jnp.float32 else "default"
