# SPDX-License-Identifier: Apache-2.0
"""The blockwise bank loss with its gradient, against the plain one: time and memory.

Memory is what the compiled program allocates on each device beside its inputs and outputs. The
plain version grows with the bank, the blockwise one does not. Beside it the errors of a bfloat16
bank against the float32 one it was rounded from: with float32 products, as on a CPU, and with
queries and softmax rounded as well, as the fast products of an accelerator do. The vectors are
made: any two rows have a cosine of about 0.5, as those of CLIP, and a query about 0.8 with its
positive.
"""

import argparse
import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cir_jax.losses import in_bank
from cir_jax.runtime import mesh as meshes
from tools.benchmarks import timing

HELP = "bank loss with gradient: blockwise against plain"
TEMPERATURE = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are a stage-two step of the released CLIP RN50x4 recipe."""
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 100_000, 400_000])
    parser.add_argument("--per-row", type=int, default=1, help="target rows per image, K")
    parser.add_argument("--width", type=int, default=640, help="embedding, D")
    parser.add_argument("--batch", type=int, default=256, help="queries, B")
    parser.add_argument("--block", type=int, default=0, help="bank rows x K per block; 0 chooses")
    parser.add_argument("--excluded", type=int, default=0, help="excluded rows per query, E")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures every bank size; ratios are blockwise / plain."""
    mesh = meshes.make(devices=jax.devices()[: args.devices])
    results = [measure(rows, args, mesh) for rows in args.rows]
    timing.table(list(results[0]), [list(r.values()) for r in results])
    memory = [r["blockwise_mib"] for r in results]
    settings = ("per_row", "width", "batch", "block", "excluded", "dtype", "repeats")
    return {
        **{name: getattr(args, name) for name in settings},
        "sizes": results,
        "worst_time_ratio": max(r["time_ratio"] for r in results),
        "blockwise_memory_growth": max(memory) / min(memory) - 1,
    }


def measure(rows: int, args: argparse.Namespace, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Seconds and MiB of both versions at one bank size."""
    inputs = problem(rows, args, mesh)

    def plain(query, bank, label, exclude):
        whole = bank.reshape(-1, args.per_row, args.width)
        return in_bank.bank_loss_plain(
            query, whole, label, TEMPERATURE, exclude, None if whole.shape[0] == rows else rows
        ).mean()

    def blockwise(query, bank, label, exclude):
        return in_bank.bank_loss(
            query,
            bank,
            label,
            TEMPERATURE,
            per_row=args.per_row,
            exclude=exclude,
            rows=rows,
            block=args.block,
            mesh=mesh,
        ).mean()

    compiled = {
        f.__name__: jax.jit(jax.value_and_grad(f)).lower(*inputs).compile()
        for f in (plain, blockwise)
    }
    programs = {name: lambda f=f: f(*inputs) for name, f in compiled.items()}
    seconds = timing.alternate(programs, args.repeats)
    values = {name: f(*inputs) for name, f in compiled.items()}
    difference = jnp.abs(values["plain"][1] - values["blockwise"][1]).max()
    return {
        "rows": rows,
        **{f"{name}_s": statistics.median(x) for name, x in seconds.items()},
        "time_ratio": timing.ratio(seconds, "blockwise", "plain"),
        **{
            f"{name}_mib": f.memory_analysis().temp_size_in_bytes / 2**20
            for name, f in compiled.items()
        },
        "bank_mib": inputs[1].nbytes / mesh.size / 2**20,
        "largest_gradient_difference": f"{float(difference):.1e}",
        **rounding(inputs, args, mesh),
    }


def rounding(inputs: tuple, args: argparse.Namespace, mesh: Any) -> dict[str, str]:
    """Errors by a bfloat16 bank: of the losses, the largest, and of the gradient, by its length."""
    query, bank, label, _ = inputs
    small, found = bank.astype(jnp.bfloat16), {}

    @jax.jit
    def exact(query, bank):
        options: dict[str, Any] = {"mesh": mesh, "per_row": args.per_row}
        loss = lambda q: in_bank.bank_loss(q, bank, label, TEMPERATURE, **options)
        losses, back = jax.vjp(loss, query)
        return losses, back(jnp.ones_like(losses))[0]

    @jax.jit
    def fast(query, bank):
        product = partial(jnp.dot, preferred_element_type=jnp.float32)
        products = product((query / TEMPERATURE).astype(bank.dtype), bank.T)
        best = products.reshape(len(query), -1, args.per_row)
        logits, chosen = best.max(axis=2), jax.nn.one_hot(best.argmax(axis=2), args.per_row)
        one = jnp.arange(len(query)), label
        top = logits.max(axis=1)
        weights = jnp.exp(logits - top[:, None])
        total = weights.sum(axis=1)
        flat = (weights[..., None] * chosen).reshape(len(query), -1).astype(bank.dtype)
        winner = bank[label * args.per_row + best[one].argmax(axis=1)].astype(jnp.float32)
        away = product(flat, bank) / total[:, None] - winner
        return jnp.log(total) + top - logits[one], away / TEMPERATURE

    losses, gradient = exact(query, bank.astype(jnp.float32))
    for name, (loss, away) in {"": exact(query, small), "fast_": fast(query, small)}.items():
        off = jnp.linalg.norm(away - gradient) / jnp.linalg.norm(gradient)
        found[f"bfloat16_{name}loss_error"] = f"{float(jnp.abs(loss - losses).max()):.1e}"
        found[f"bfloat16_{name}gradient_error"] = f"{float(off):.1e}"
    return found


def problem(rows: int, args: argparse.Namespace, mesh: jax.sharding.Mesh) -> tuple:
    """Unit queries, a sharded bank, labels, and excluded rows or None."""
    keys = jax.random.split(jax.random.key(0), 6)
    filled = -(-rows // mesh.size) * mesh.size

    def unit(key: jax.Array, *shape: int, beside: jax.Array | float = 0.0) -> jax.Array:
        x = jax.random.normal(key, shape, jnp.float32)
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True) + beside
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    center = unit(keys[4], args.width)

    batch = meshes.batch_sharding(mesh)
    bank = jax.jit(
        lambda key: unit(key, filled * args.per_row, args.width, beside=center).astype(args.dtype),
        out_shardings=meshes.row_sharding(mesh),
    )(keys[0])
    label = jax.random.randint(keys[2], (args.batch,), 0, rows)
    near = bank[label * args.per_row].astype(jnp.float32) + center
    query = jax.device_put(unit(keys[1], args.batch, args.width, beside=near), batch)
    label = jax.device_put(label, batch)
    exclude = None
    if args.excluded:
        exclude = jax.random.randint(keys[3], (args.batch, args.excluded), 0, rows)
        exclude = jax.device_put(exclude, batch)
    return query, bank, label, exclude
