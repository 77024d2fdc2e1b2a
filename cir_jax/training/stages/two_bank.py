# SPDX-License-Identifier: Apache-2.0
"""Stage two: the query side trains against a static bank of every candidate's target embedding.

The index tree stays as stage one left it: it built the bank, so the bank is exact and never stale.
A copy of the query part trains. Images are not opened: references lie on the devices as well, or
come from disk with the batch; or they are encoded anew, see `cir_jax.bank.references`.
Source: section 3.3 ("scaling negatives") of arXiv 2404.11317.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cir_jax.bank import references
from cir_jax.contract import Functions
from cir_jax.errors import UserError
from cir_jax.losses import in_bank, sampled
from cir_jax.params import Params
from cir_jax.training import stage

# The batch field that a reference comes from, by the place where references lie.
FIELDS = {"device": "reference_row", "disk": "reference", "recompute": "reference_pixels"}


@dataclass(frozen=True)
class Stage:
    """See `cir_jax.training.stage`."""

    temperature: float
    mesh: Mesh
    negatives: int = 0
    block: int = 4096
    extra: dict[str, float] = field(default_factory=dict)
    fields: tuple[str, ...] = ("text", "reference_row")
    roles: tuple[str, ...] = ("query",)
    index_is_query: bool = False
    reads: str = "triplets"
    needs_bank: bool = True

    @classmethod
    def from_config(cls, config: Any, functions: Functions, mesh: Mesh) -> "Stage":
        """Raises UserError for a negative number of negatives, or impossible references.

        "auto" is taken for "device" here: the trainer, which knows how many references there are,
        settles it before.
        """
        loss = config.loss
        stage.check_keys_of_stage_one(config)
        if loss.bank_negatives < 0:
            raise UserError(
                f"loss.bank_negatives={loss.bank_negatives} is negative; use 0 for the whole bank"
            )
        references.check_options(loss, functions.per_triplet)
        fields = ("text", FIELDS.get(loss.references, FIELDS["device"]))
        if loss.exclude_reference or loss.exclude_positives:
            fields = (*fields, "exclude_id")
        extra = stage.temperature_leaf(config)
        return cls(loss.temperature, mesh, loss.bank_negatives, loss.bank_block, extra, fields)

    def loss(
        self,
        functions: Functions,
        query: Params,
        index: Params,
        batch: dict[str, jax.Array],
        bank: Any,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of each query over the bank's rows, [B]."""
        dropout_key, sample_key = jax.random.split(key)
        reference = self._reference(functions, index, batch, bank)
        composed = functions.compose(query, reference, batch["text"], dropout_key)
        tau = stage.temperature(self, query)
        label, exclude = batch["target_id"], batch.get("exclude_id")
        if self.negatives:
            ids = sampled.sample_negatives(sample_key, label, self.negatives, bank.rows, exclude)
            losses = sampled.sampled_bank_loss(
                composed, bank.targets, label, ids, tau, mesh=self.mesh
            )
        else:
            losses = in_bank.bank_loss(
                composed,
                bank.targets,
                label,
                tau,
                exclude=exclude,
                rows=bank.rows,
                block=self.block,
                mesh=self.mesh,
            )
        return losses, {"temperature": tau}

    def _reference(
        self, functions: Functions, index: Params, batch: dict[str, jax.Array], bank: Any
    ) -> jax.Array:
        """[B, R, C] float32, constant."""
        if "reference" in self.fields:
            return batch["reference"].astype(jnp.float32)
        if "reference_pixels" in self.fields:
            reference = functions.reference(index, batch["reference_pixels"], batch["text"])
            return jax.lax.stop_gradient(reference.astype(jnp.float32))
        return in_bank.lookup(bank.references, batch["reference_row"], self.mesh)
