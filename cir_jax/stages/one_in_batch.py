# SPDX-License-Identifier: Apache-2.0
"""Stage one: both sides train; the negatives of a query are the other targets of the global batch.

Source: equation 2 of arXiv 2404.11317; one direction, no symmetric term. With `loss.chunk` the
encoders run over that many rows at a time and are run again in the backward pass (gradient caching,
arXiv 2101.06983): the loss is still that of the whole batch, exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from cir_jax.errors import UserError
from cir_jax.models.contract import Functions, Params
from cir_jax.negatives import in_batch
from cir_jax.runtime import mesh as meshes
from cir_jax.stages import contract


@dataclass(frozen=True)
class Stage:
    """See `cir_jax.stages.contract`."""

    temperature: float
    chunk: int = 0
    extra: dict[str, float] = field(default_factory=dict)
    fields: tuple[str, ...] = ("text", "reference_pixels", "target_pixels")
    roles: tuple[str, ...] = ("index", "query")
    index_is_query: bool = True
    reads: str = "triplets"
    needs_bank: bool = False

    @classmethod
    def from_config(cls, config: Any, functions: Functions, mesh: Mesh) -> "Stage":
        """Raises UserError if the batch does not split into chunks that divide over the mesh."""
        chunk = config.loss.chunk
        if chunk:
            meshes.check_batch(chunk, mesh, "loss.chunk")
            if config.batch % chunk:
                raise UserError(
                    f"batch {config.batch} does not split into chunks of loss.chunk={chunk}; "
                    f"use a divisor of the batch, or 0"
                )
        return cls(config.loss.temperature, chunk, contract.temperature_leaf(config))

    def loss(
        self,
        functions: Functions,
        query: Params,
        index: Params,
        batch: dict[str, jax.Array],
        bank: Any,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of each query over the batch's targets, [B]."""

        def encode(rows: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
            reference = functions.reference(index, rows["reference_pixels"], rows["text"])
            composed = functions.compose(query, reference, rows["text"], key)
            return composed, functions.target(index, rows["target_pixels"])

        rows = {name: batch[name] for name in self.fields}
        composed, targets = _in_chunks(encode, rows, key, self.chunk)
        tau = contract.temperature(self, query)
        return in_batch.in_batch_loss(composed, targets, tau), {"temperature": tau}


def _in_chunks(encode: Callable, rows: dict[str, jax.Array], key: jax.Array, chunk: int) -> Any:
    size = rows["text"].shape[0]
    if not chunk or chunk == size:
        return encode(rows, key)
    count = size // chunk
    # Chunk j holds rows j, j + count, ...: a split of each device's rows, so none changes device.
    split = jax.tree.map(lambda x: x.reshape(chunk, count, *x.shape[1:]).swapaxes(0, 1), rows)
    keys = jax.random.split(key, count)
    out = jax.lax.map(lambda xs: jax.checkpoint(encode)(*xs), (split, keys))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[2:]), out)
