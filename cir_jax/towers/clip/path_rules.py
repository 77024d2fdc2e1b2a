# SPDX-License-Identifier: Apache-2.0
"""Path rules of the CLIP encoders: who trains when, and what is split over the axis "model"."""

from cir_jax.towers.clip.sizes import ClipSize, EvaSize, ResNetSize
from cir_jax.towers.encoder import BLOCKS

WHOLE = 64  # a dimension that divides by it divides over the devices of any mesh
Rules = list[tuple[str, tuple]]


def roles(size: ClipSize) -> list[tuple[str, str]]:
    """The image side is the index, the text side the query."""
    statistics = [(r"visual/.*/(mean|var)", "statistic")]
    return [
        *(statistics if isinstance(size.vision, ResNetSize) else []),
        (r"visual/.*", "index"),
        (r"text/.*", "query"),
    ]


def sharding(size: ClipSize) -> Rules:
    """Matrices over "model": outputs of the first product of a pair, inputs of the second."""
    # A vocabulary that does not divide is split by the width of its rows.
    whole = size.text_variant.vocabulary % WHOLE == 0
    text: Rules = [(r"text/token_embedding", ("model", None) if whole else (None, "model"))]
    return [*_gated(size), *BLOCKS, *text, *_visual(size), (r"(visual|text)/proj", ("model", None))]


def _gated(size: ClipSize) -> Rules:
    """Of EVA's MLPs, whose published inner width (2730) does not divide: over the width instead."""
    if not isinstance(size.vision, EvaSize):
        return []
    return [
        (r"visual/blocks/mlp/(gate|fc1)/kernel", (None, "model", None)),
        (r"visual/blocks/mlp/(gate|fc1)/bias", ()),
        (r"visual/blocks/mlp/fc2/kernel", (None, None, "model")),
    ]


def _visual(size: ClipSize) -> Rules:
    pool: Rules = [
        (r"visual/pool/(query|key|value)/kernel", (None, "model")),
        (r"visual/pool/out/kernel", ("model", None)),
    ]
    if isinstance(size.vision, ResNetSize):
        return [
            (r"visual/stage.*/kernel", (None, None, None, "model")),
            (r"visual/conv.*/kernel", (None, None, None, "model")),
            *pool,
            (r"visual/pool/position", (None, "model")),
        ]
    kernel: Rules = [(r"visual/patch_kernel", (None, None, None, "model"))]
    return [*kernel, *(pool if size.vision_variant.queries else [])]
