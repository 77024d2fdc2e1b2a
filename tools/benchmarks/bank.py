# SPDX-License-Identifier: Apache-2.0
"""The blockwise bank loss with its gradient, against the plain one: time and memory.

Memory is what the compiled program allocates on each device beside its inputs and outputs. The
plain version grows with the bank, the blockwise one does not.
"""

import argparse
import statistics
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
    parser.add_argument("--block", type=int, default=4096, help="bank rows x K per block")
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
        return in_bank.bank_loss_plain(
            query, bank, label, TEMPERATURE, exclude, None if bank.shape[0] == rows else rows
        ).mean()

    def blockwise(query, bank, label, exclude):
        return in_bank.bank_loss(
            query,
            bank,
            label,
            TEMPERATURE,
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
    }


def problem(rows: int, args: argparse.Namespace, mesh: jax.sharding.Mesh) -> tuple:
    """Random unit queries, a sharded bank, labels, and excluded rows or None."""
    keys = jax.random.split(jax.random.key(0), 4)
    filled = -(-rows // mesh.size) * mesh.size

    def unit(key: jax.Array, *shape: int) -> jax.Array:
        x = jax.random.normal(key, shape, jnp.float32)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    batch = meshes.batch_sharding(mesh)
    bank = jax.jit(
        lambda key: unit(key, filled, args.per_row, args.width).astype(args.dtype),
        out_shardings=meshes.row_sharding(mesh),
    )(keys[0])
    query = jax.device_put(unit(keys[1], args.batch, args.width), batch)
    label = jax.device_put(jax.random.randint(keys[2], (args.batch,), 0, rows), batch)
    exclude = None
    if args.excluded:
        exclude = jax.random.randint(keys[3], (args.batch, args.excluded), 0, rows)
        exclude = jax.device_put(exclude, batch)
    return query, bank, label, exclude
