# SPDX-License-Identifier: Apache-2.0
"""SPRC on BLIP-2: a Q-Former writes the reference image into prompts for the text.

    z       = tokens of the frozen image encoder, normalised                    [B, P, C']
    target  = unit(V Qformer(queries, image z of the target)), one row a query  [B, K, D]
    prompts = Qformer(queries and text, image z of the reference), the queries  [B, R, C]
    query   = unit(T Qformer(prompts and text, no image), the first token)      [B, D]
    score   = max over K of <query, target row>

The prompts are the reference rows: they depend on the text, so a bank of them has a row per
triplet. There is one Q-Former. In stage two its text side, which makes the query, trains as a copy,
and prompts and targets are still made by the one that stage one left.

Stage one has two more losses, by `loss.auxiliary`: a query from the text alone, with learned
prompts in place of the image's, must find the target as well ("rtc"), and the mean of an image's
prompts is drawn to the mean of the learned ones ("align"). Source: Bai et al., "Sentence-level
Prompts Benefit Composed Image Retrieval", ICLR 2024 (arXiv 2310.05473), section 3, and its code.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.losses import in_batch
from cir_jax.towers import bert
from cir_jax.towers.blip2 import sizes
from cir_jax.towers.blip2.qformer import QFormer
from cir_jax.towers.image_transformer import ImageTransformer
from cir_jax.towers.layers import DTYPES, Dense, LayerNorm, normal, unit
from cir_jax.towers.pairs import in_one_pass

TOKENIZER = "bert_lavis"
CUT_PADDING = True  # padding is masked
REFERENCE_ROWS = "per_triplet"
NEW = (r"prompt_tokens",)  # BLIP-2 has none: stage one starts with random ones
AUXILIARY = {
    "rtc": "the text alone, with learned prompts, finds the target (L_rtc of SPRC)",
    "align": "squared distance of the mean prompt of an image and the mean learned one (L_align)",
}


class Model(nnx.Module):
    """R = K queries, C the width of the Q-Former. See `cir_jax.contract`."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        size = sizes.find(config.tower)
        side = image_size(config)
        if side != size.vision.image:
            raise UserError(
                f"model.image_size={side}, but tower {config.tower!r} takes "
                f"{size.vision.image}; set model.image_size=0"
            )
        options: dict[str, Any] = {"dtype": DTYPES[config.dtype], "remat": config.remat}
        options |= {"attention": config.attention, "rngs": rngs}
        former, width = size.former, size.vision.width
        self.visual = ImageTransformer(size.vision, key_bias=False, final_norm=False, **options)
        self.norm_image = LayerNorm(width)
        self.former = QFormer(former, width, **options)
        self.query_tokens = normal(rngs, (1, former.queries, former.width), bert.STD)
        self.prompt_tokens = normal(rngs, (1, former.queries, former.width), bert.STD)
        std = (3 * former.width) ** -0.5  # variance of PyTorch's default for linear layers
        self.image_projection = Dense(former.width, size.embedding, std, rngs=rngs)
        self.text_projection = Dense(former.width, size.embedding, std, rngs=rngs)

    def reference(
        self, pixels: jax.Array, text: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, S, S, 3] and [B, T] -> [B, R, C] prompts of the image and the text."""
        return self._prompts(self._see(pixels), text, key)

    def target(self, pixels: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B, S, S, 3] -> [B, K, D] unit rows, one per query token."""
        return self._rows(self._see(pixels), key)

    def reference_and_target(
        self, reference_pixels: jax.Array, target_pixels: jax.Array, text: jax.Array, keys: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Pixels [B, S, S, 3] twice and [B, T] -> what `reference` and `target` give; both images
        go through the image encoder in one pass, and `keys` are those of the Q-Former's two."""
        seen, target = in_one_pass(self._see, reference_pixels, target_pixels)
        return self._prompts(seen, text, keys[0]), self._rows(target, keys[1])

    def compose(
        self, reference: jax.Array, text: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, R, C] and [B, T] -> [B, D]; `key` is the dropout key, None for none."""
        states = self.former(reference, text, None, key)
        return unit(self.text_projection(states[:, reference.shape[1]]))

    def training(
        self,
        reference_pixels: jax.Array,
        target_pixels: jax.Array,
        text: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Query [B, D], targets [B, K, D], and what the auxiliary losses need.

        Returns:
          The extras are "prompted" [B, D], the unit query of the text alone, and "distance" [B],
          the squared one of the mean prompt to the mean learned one, mean over C. It moves the
          prompts of the image, not the learned ones.
        """
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        batch, pixels = len(text), (reference_pixels, target_pixels)
        reference, targets = self.reference_and_target(*pixels, text, keys[:2])
        query = self.compose(reference, text, keys[2])
        learned = self.prompt_tokens[...]
        prompts = jnp.broadcast_to(learned, (batch, *learned.shape[1:]))
        prompted = self.former.prompted(prompts, text, keys[3])[:, 0]
        aim = jax.lax.stop_gradient(learned.mean(axis=1))
        extras = {
            "prompted": unit(self.text_projection(prompted)),
            "distance": jnp.square(reference.mean(axis=1) - aim).mean(axis=-1),
        }
        return query, targets, extras

    def auxiliary(
        self,
        query: jax.Array,
        targets: jax.Array,
        extras: dict[str, jax.Array],
        temperature: jax.Array | float,
    ) -> dict[str, jax.Array]:
        """AUXILIARY name -> [B] losses over the whole batch, see `training`."""
        return {
            "rtc": in_batch.in_batch_loss(extras["prompted"], targets, temperature),
            "align": extras["distance"],
        }

    def _see(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] -> [B, P, C'] normalised image tokens."""
        return self.norm_image(self.visual(pixels))

    def _queries(self, batch: int) -> jax.Array:
        tokens = self.query_tokens[...]
        return jnp.broadcast_to(tokens, (batch, *tokens.shape[1:]))

    def _prompts(self, image: jax.Array, text: jax.Array, key: jax.Array | None) -> jax.Array:
        states = self.former(self._queries(len(text)), text, image, key)
        return states[:, : self.query_tokens.shape[1]]

    def _rows(self, image: jax.Array, key: jax.Array | None) -> jax.Array:
        states = self.former(self._queries(len(image)), None, image, key)
        return unit(self.image_projection(states))


def image_size(config: Any) -> int:
    """Side of the input, in pixels."""
    return config.image_size or sizes.find(config.tower).vision.image


def roles(config: Any) -> list[tuple[str, str]]:
    """What makes the query trains in both stages; the image encoder stays as it was pretrained,
    unless `model.train_image` is set, as an encoder that starts at random needs it.

    The learned prompts of stage one are no part of a query, so stage two leaves them alone.
    """
    return [
        (r"visual/.*", "index" if config.train_image else "pretrain"),
        (r"(norm_image/.*|image_projection/.*|query_tokens|prompt_tokens)", "index"),
        (r"former/pairs/(even|odd)/(cross|slot_mlp)/.*", "index"),
        (r"former/(embeddings|pairs)/.*", "query"),
        (r"text_projection/.*", "query"),
    ]


def sharding(config: Any) -> list[tuple[str, tuple]]:
    """Matrices over "model": outputs of the first product of a pair, inputs of the second.

    The word table is split along its width: its 30,523 rows divide by nothing useful.
    """
    return [
        (r".*/(attention|cross)/(query|key|value)/kernel", (None, None, "model")),
        (r".*/(attention|cross)/(query|key|value)/bias", (None, "model")),
        (r".*/(attention|cross)/out/kernel", (None, "model", None)),
        (r".*/(mlp|slot_mlp)/fc1/kernel", (None, None, "model")),
        (r".*/(mlp|slot_mlp)/fc1/bias", (None, "model")),
        (r".*/(mlp|slot_mlp)/fc2/kernel", (None, "model", None)),
        (r"former/embeddings/(words|positions)", (None, "model")),
        (r"visual/patch_kernel", (None, None, None, "model")),
        (r"(image|text)_projection/kernel", ("model", None)),
        (r".*", ()),
    ]
