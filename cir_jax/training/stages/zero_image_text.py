# SPDX-License-Identifier: Apache-2.0
"""Stage zero: image-text contrastive pretraining, or adaptation to a domain, with CLIP's own loss.

A caption alone is `compose(zeros, text)` and its image `target(pixels)`, so a model needs nothing
beyond the contract but a scalar leaf `logit_scale` (CLIP's, the log of the inverse temperature).
Loss: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
figure 3: both directions over the global batch. With `loss.kind=sigmoid` it is that of SigLIP, see
`cir_jax.losses.sigmoid`; its bias is a leaf `logit_bias` of the model, or one that the stage adds.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax.bank.bank import Bank
from cir_jax.contract import Functions
from cir_jax.errors import UserError
from cir_jax.losses import in_batch, sigmoid
from cir_jax.params import BIAS, LOGIT_BIAS, LOGIT_SCALE, Params
from cir_jax.training import stage

KEYS = {
    "kind": ("softmax", "what is done with the scores of a batch: softmax compares them, sigmoid "
             "asks of each pair alone, as SigLIP does", ("softmax", "sigmoid")),
    "bias": (-10.0, "of the sigmoid: what is added to each score over the temperature; where it is "
             "learned, its start", "[-1000, 1000]"),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """See `cir_jax.training.stage`."""

    mesh: Mesh
    kind: str = stage.SOFTMAX
    fields: tuple[str, ...] = ("text", "target_pixels")
    roles: tuple[str, ...] = ("index", "query", "pretrain")
    index_is_query: bool = True
    reads: str = "captions"
    needs_bank: bool = False
    extra: dict[str, float] = field(default_factory=dict)
    packs_texts: bool = True

    @classmethod
    def from_config(cls, config: ConfigDict, functions: Functions, mesh: Mesh) -> "Stage":
        """Raises UserError for a model that cannot be pretrained on captions, or a batch of one."""
        if LOGIT_SCALE not in functions.abstract:
            raise UserError(
                f"model {config.model.name!r} has no {LOGIT_SCALE!r} parameter, so stage zero "
                "makes no sense for it; start from stage one"
            )
        stage.check_negatives(config)
        kind = config.loss.kind
        adds = kind == stage.SIGMOID and LOGIT_BIAS not in functions.abstract
        return cls(mesh, kind, extra={BIAS: config.loss.bias} if adds else {})

    def loss(
        self,
        functions: Functions,
        query: Params,
        index: Params,
        batch: dict[str, jax.Array],
        bank: Bank | None,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of captions and images, [B]; logs the scale, and the bias of a sigmoid."""
        size = batch["target_pixels"].shape[0]
        nothing = jnp.zeros((size, *functions.reference_shape), jnp.float32)
        text = functions.compose(query, nothing, batch["text"], key)
        image = functions.target(index, batch["target_pixels"])[:, 0]
        scale = query[LOGIT_SCALE]
        if self.kind == stage.SOFTMAX:
            return in_batch.symmetric_loss(image, text, scale), {"logit_scale": scale}
        bias = query[BIAS if BIAS in self.extra else LOGIT_BIAS]
        losses = sigmoid.sigmoid_loss(text, image[:, None], jnp.exp(-scale), bias, mesh=self.mesh)
        return losses, {"logit_scale": scale, "logit_bias": bias}
