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
from ml_collections import ConfigDict

from cir_jax.bank import references
from cir_jax.bank.bank import Bank
from cir_jax.contract import Functions
from cir_jax.losses import in_bank, matryoshka, rows, sampled
from cir_jax.params import Params
from cir_jax.training import stage

# The batch field that a reference comes from, by the place where references lie.
KEYS = {
    "temperature": (0.02, "of the softmax", "(0, 100]"),
    "learn_temperature": (False, "train it with the query, as BLIP4CIR and SPRC do", None),
    "bank_negatives": (0, "sampled negatives per query; 0 = the whole bank", "[0, 1e9]"),
    "bank_block": (0, "bank rows per block on each device; 0 = by batch, width and kind of device, "
                   "4096 on a CPU; the loss is the same but for rounding", "[0, 1e9]"),
    "bank_dtype": ("float32", "of the bank on the devices; bfloat16 takes half the memory",
                   ("float32", "bfloat16")),
    "bank_path": ("", "where the bank is kept; '' = <workdir>/bank (in a mounted bucket: a copy of "
                  "the one that each host has below CIR_JAX_CACHE on its disk)", "path"),
    "references": ("auto", "where references lie: on the devices, on disk (bfloat16, beside the "
                   "bank, read with the batches), or nowhere (recompute: encoded in every step); "
                   "auto = device up to 4 GB on each, else disk",
                   ("auto", "device", "disk", "recompute")),
    "reference_text": ("per_triplet", "models whose reference depends on the text: a reference for "
                       "every text, or one per image (last_caption: a mismatch, as the released "
                       "code has it)", ("per_triplet", "last_caption")),
    "matryoshka": ((), "widths, that of the model's vectors among them, at each of which vectors "
                   "are cut and the loss is taken; the sum of these trains vectors that may be cut "
                   "(arXiv 2205.13147)", "[1, 1e6]"),
    "exclude_reference": (False, "the query's own reference is no negative", None),
    "exclude_positives": (False, "other targets of the same query are no negatives", None),
}  # fmt: skip

FIELDS = {"device": "reference_row", "disk": "reference", "recompute": "reference_pixels"}


@dataclass(frozen=True)
class Stage:
    """See `cir_jax.training.stage`."""

    temperature: float
    mesh: Mesh
    negatives: int = 0
    block: int = 0
    recompute: bool = False  # references are encoded in every step
    matryoshka: tuple[int, ...] = ()
    extra: dict[str, float] = field(default_factory=dict)
    fields: tuple[str, ...] = ("text",)
    roles: tuple[str, ...] = ("query",)
    index_is_query: bool = False
    reads: str = "triplets"
    needs_bank: bool = True
    packs_texts: bool = True

    @classmethod
    def from_config(cls, config: ConfigDict, functions: Functions, mesh: Mesh) -> "Stage":
        """Raises UserError for texts of references or widths that do not go with the model."""
        loss = config.loss
        references.check_texts(loss, functions.per_triplet)
        excludes = loss.exclude_reference or loss.exclude_positives
        return cls(
            loss.temperature,
            mesh,
            loss.bank_negatives,
            loss.bank_block,
            loss.references == "recompute",
            matryoshka.check(loss.matryoshka, functions),
            stage.temperature_leaf(config),
            ("text", "exclude_id") if excludes else ("text",),
        )

    def loss(
        self,
        functions: Functions,
        query: Params,
        index: Params,
        batch: dict[str, jax.Array],
        bank: Bank,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of each query over the bank's rows, [B]."""
        dropout_key, sample_key = jax.random.split(key)
        reference = self._reference(functions, index, batch, bank)
        composed = functions.compose(query, reference, batch["text"], dropout_key)
        tau = stage.temperature(self, query)
        label, exclude = batch["target_id"], batch.get("exclude_id")
        per_row = functions.target_shape[0]
        ids = None
        if self.negatives:
            ids = sampled.sample_negatives(sample_key, label, self.negatives, bank.rows, exclude)

        def at(width: int) -> tuple[jax.Array, dict[str, jax.Array]]:
            vectors = matryoshka.cut(composed, width)
            shared: dict[str, Any] = {"mesh": self.mesh, "per_row": per_row, "width": width}
            if ids is not None:
                return sampled.sampled_bank_loss(
                    vectors, bank.targets, label, ids, tau, **shared
                ), {}
            options: dict[str, Any] = {"exclude": exclude, "rows": bank.rows, "block": self.block}
            return in_bank.bank_loss(vectors, bank.targets, label, tau, **options, **shared), {}

        losses, found = matryoshka.summed(at, self.matryoshka)
        return losses, found | {"temperature": jnp.asarray(tau)}

    def _reference(
        self, functions: Functions, index: Params, batch: dict[str, jax.Array], bank: Bank
    ) -> jax.Array:
        """[B, R, C] float32, constant."""
        if self.recompute:
            reference = functions.reference(index, batch["reference_pixels"], batch["text"])
            return jax.lax.stop_gradient(reference.astype(jnp.float32))
        if "reference" in batch:  # read from disk with the batch
            return batch["reference"].astype(jnp.float32)
        assert bank.references is not None  # they lie there where they are neither of the above
        found = rows.lookup(bank.references, batch["reference_row"], self.mesh)
        return found.reshape(-1, *functions.reference_shape)
