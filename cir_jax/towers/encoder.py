# SPDX-License-Identifier: Apache-2.0
"""What a pair of towers is: everything between the pixels or the text of a file and a feature.

Its weights were trained with one normalisation, one way to make squares, one tokenizer and one way
to pool, so these belong to it, and not to the model that stands on it. Where weights of one shape
differ in them (another mean, another filter, the file of a tokenizer), the section `model` of a
config says so, and its value counts instead.
"""

import abc
from dataclasses import dataclass
from typing import Any

from cir_jax.data.pixels import CLIP, CROPPED, Normalisation, Resize
from cir_jax.data.tokenizer_files import ANY, Rules


@dataclass(frozen=True, kw_only=True)
class Encoder(abc.ABC):
    """Two towers of one size, unbuilt. `cir_jax.towers.encoders.find` gives one by its name.

    Attributes:
      name: of the size, as `model.tower` has it.
      family: folder of `cir_jax.towers`.
      image_size: side S of the square input, in pixels.
      context: T, text positions.
      embedding: D, of the common space.
      vision_width, text_width: C, of the tokens of both towers.
      tokens: the image tower has `tokens` and `feature`, and so makes tokens of its positions.
      tokenizer: name of a tokenizer of `cir_jax.data.tokens`; `tokens.FILE` for one that comes with
        the weights.
      rules: of such a one.
      cut_padding: a text may be cut to the longest of its batch.
      packs_texts: the text tower takes packed texts, see `cir_jax.towers.packed`.
      logit_scale: start of the log of the inverse temperature that image and text were trained
        with.
      logit_bias: start of what is added to each logit of a sigmoid loss; None where the family
        has none.
      pixels: the normalisation.
      resize: how images become squares.
    """

    name: str
    family: str
    image_size: int
    context: int
    embedding: int
    vision_width: int
    text_width: int
    tokens: bool
    tokenizer: str
    cut_padding: bool
    packs_texts: bool
    logit_scale: float
    logit_bias: float | None = None
    pixels: Normalisation = CLIP
    resize: Resize = CROPPED
    rules: Rules = ANY

    @abc.abstractmethod
    def build(self, config: Any, rngs: Any) -> tuple[Any, Any]:
        """(visual, text): modules with visual(pixels) and text(ids) -> [B, D] float32 features.

        Features are not of unit length. text.tokens(ids) gives the [B, T, C] that text.feature
        takes, and so does visual where `tokens` is True.

        Networks are imported here, not with the module: a config is checked before jax is there.

        Args:
          config: the `model` section of a run's config: dtype, remat, attention, context.
          rngs: nnx.Rngs for random parameters, those of the image tower first.
        """

    @abc.abstractmethod
    def roles(self) -> list[tuple[str, str]]:
        """Path rules -> roles of what lies below visual/ and text/, see `cir_jax.contract`."""

    @abc.abstractmethod
    def sharding(self) -> list[tuple[str, tuple]]:
        """Path rules -> one mesh axis name or None per dimension, of the same."""


# Matrices of transformer blocks over "model": outputs of the first product of a pair, inputs of the
# second.
BLOCKS: tuple[tuple[str, tuple], ...] = (
    (r".*/blocks/attention/(query|key|value)/kernel", (None, None, "model")),
    (r".*/blocks/attention/(query|key|value)/bias", (None, "model")),
    (r".*/blocks/attention/out/kernel", (None, "model", None)),
    (r".*/blocks/mlp/fc1/kernel", (None, None, "model")),
    (r".*/blocks/mlp/fc1/bias", (None, "model")),
    (r".*/blocks/mlp/fc2/kernel", (None, "model", None)),
)
