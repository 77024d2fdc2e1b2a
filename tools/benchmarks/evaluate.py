# SPDX-License-Identifier: Apache-2.0
"""Ranking every query against a gallery, against the bare matrix product of the same sizes.

The product multiplies arrays that are on the device and leaves its result there; the ranking starts
from the host's arrays and ends with the ranks on the host.
"""

import argparse
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cir_jax.retrieval.ranking import count_ranks
from cir_jax.runtime import mesh as meshes
from tools.benchmarks import timing

HELP = "ranking of a gallery, against the bare matrix product"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of FashionIQ's validation, all categories at once."""
    parser.add_argument("--queries", type=int, default=6_000)
    parser.add_argument("--candidates", type=int, default=15_000)
    parser.add_argument("--width", type=int, default=640)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures both; the ratio is ranking / product."""
    mesh = meshes.make(devices=jax.devices()[: args.devices])
    random = np.random.default_rng(0)
    query = random.standard_normal((args.queries, args.width), np.float32)
    gallery = random.standard_normal((args.candidates, 1, args.width), np.float32)
    target = random.integers(0, args.candidates, args.queries).astype(np.int32)
    removed = ((target + 1) % args.candidates).astype(np.int32)

    candidates = -(-args.candidates // mesh.size) * mesh.size
    padded = np.pad(gallery[:, 0], ((0, candidates - args.candidates), (0, 0)))
    placed = jax.device_put(query, meshes.replicated(mesh))
    rows = jax.device_put(padded, meshes.row_sharding(mesh))
    product = jax.jit(lambda q, g: jnp.dot(q, g.T, precision="highest"))
    programs = {
        "product": lambda: product(placed, rows),
        "ranking": lambda: count_ranks(query, gallery, target, removed, mesh=mesh),
    }
    seconds = timing.alternate(programs, args.repeats)
    result = {
        "queries": args.queries,
        "candidates": args.candidates,
        "width": args.width,
        **{f"{name}_s": statistics.median(x) for name, x in seconds.items()},
        "time_ratio": timing.ratio(seconds, "ranking", "product"),
    }
    timing.table(list(result), [list(result.values())])
    return result
