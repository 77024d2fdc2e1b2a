# SPDX-License-Identifier: Apache-2.0
"""A model of full size does not start from random parameters unless that is asked for.

Nothing that this project trains on is large enough to make a published encoder from nothing: such a
run takes days and ends where chance begins. Small ones (the demo's, one's own) may start so. Free
of jax: the command asks before it loads anything heavy, and the trainer asks again, of the model
itself.
"""

import contextlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax.errors import UserError
from cir_jax.towers.blip import sizes as blip
from cir_jax.towers.blip2 import sizes as blip2
from cir_jax.towers.clip import sizes as clip
from cir_jax.towers.gemma import sizes as gemma
from cir_jax.towers.siglip import sizes as siglip
from cir_jax.towers.tips import sizes as tips

# Parameters from which on a model counts as of full size: above all that learn from OpenMoji in
# minutes (8 M), below the least of the published encoders (RN50 of CLIP, 102 M).
FULL_SIZE = 50_000_000
AUTO = "auto"  # of `model.tower`: the size of the weights
_VOCABULARY: dict[Any, int] = {
    clip: clip.VOCABULARY, blip: blip.VOCABULARY, blip2: blip2.VOCABULARY, siglip: 0, tips: 0,
}  # fmt: skip


def check(config: ConfigDict) -> None:
    """Refuses, from the config alone, what `check_size` would refuse of the model.

    A run that has steps resumes and needs nothing; whether there are any is seen later.

    Raises:
      UserError: a tower of full size, or of that of the weights, and nothing to start from.
    """
    begun = config.workdir and (Path(config.workdir) / "checkpoints").is_dir()
    if config.init_from or config.from_scratch or begun:
        return
    if config.model.tower == AUTO:
        raise _refusal(config, "takes the size of the weights that it starts from")
    check_size(config, parameters(config.model.tower))


def check_size(config: ConfigDict, size: int) -> None:
    """Refuses to draw the parameters of a model of full size unless the config asks for it.

    Args:
      config: of a run that starts.
      size: number of its model's parameters, or an estimate.

    Raises:
      UserError: it names the ways to give weights.
    """
    if config.from_scratch or size < FULL_SIZE:
        return
    raise _refusal(config, f"is of full size (about {size / 1e6:,.0f} M parameters)")


def _refusal(config: ConfigDict, what: str) -> UserError:
    """What to say of a model without weights to start from: `what` it is, and the ways."""
    before = (
        "a run of stage one"
        if config.stage == "two_bank"
        else "a run of stage zero or one, or of another data set"
    )
    sized = " and a size (model.tower)" if config.model.tower == AUTO else ""
    return UserError(
        f"model.name={config.model.name} model.tower={config.model.tower} {what}, and no weights "
        "are given to start from. Give them by "
        f"--init-from, or the key init_from: (1) the folder of {before}; (2) a file or folder of "
        "published weights (OpenAI CLIP, open_clip, transformers, LAVIS, released runs of this "
        "field); (3) a folder that `cir-jax import WEIGHTS FOLDER` made of them. --from-scratch "
        f"(the key from_scratch=true){sized} trains from random parameters on purpose"
    )


def parameters(tower: str) -> int:
    """About how many parameters the encoders of this name have; 0 of a name that is not known.

    Matrices of blocks and of the vocabulary are counted, which is nearly all of them.
    """
    with contextlib.suppress(UserError):
        return gemma.parameters(gemma.find(tower))
    for family, vocabulary in _VOCABULARY.items():
        try:
            size: Any = family.find(tower)
        except UserError:
            continue
        text = size.former if family is blip2 else size.text
        # Each second block of a Q-Former, and each of BLIP's text encoder, looks at the image too.
        looks = {blip: 1.0, blip2: 0.5}.get(family, 0.0)
        crossed = looks * text.layers * 2 * text.width * (text.width + size.vision.width)
        words = _words(size, vocabulary) * text.width
        return int(_vision(size.vision) + _blocks(text) + crossed + words)
    return 0


def _words(size: Any, usual: int) -> int:
    """Rows of the table of tokens, where a family has tokenizers of more than one size."""
    if isinstance(size, clip.ClipSize):
        return size.text_variant.vocabulary
    if isinstance(size, siglip.SiglipSize):
        return size.text.words
    return size.vocabulary if isinstance(size, tips.TipsSize) else usual


def _vision(size: Any) -> int:
    if not isinstance(size, clip.ResNetSize):
        return _blocks(size)
    # A bottleneck of p planes: 1x1, 3x3 and 1x1 convolutions of 4p to p to p to 4p channels.
    planes = [size.width * 2**i for i in range(4)]
    convolutions = sum(17 * p * p * n for p, n in zip(planes, size.blocks, strict=True))
    return convolutions + 4 * (32 * size.width) ** 2  # and the attention that pools


def _blocks(size: Any) -> int:
    """Attention and MLP of every block."""
    return size.layers * (4 * size.width**2 + 2 * size.width * (size.mlp or 4 * size.width))
