# SPDX-License-Identifier: Apache-2.0
r"""EmbeddingGemma 2: one encoder reads the soft tokens of an image, and text beside them.

Model: the weights google/embeddinggemma-2 (Google DeepMind, October 2026; 438,760,448 parameters of
text and image), and transformers' EmbeddingGemma2Model. Queries are the reference image and the
text, targets the image alone. Stages one and two: Feng et al., ACM MM 2024 (arXiv 2404.11317).

Commands; both start from a folder of transformers, which has the tokenizer as well:
    cir-jax train --config gemma_embedding:fashioniq,stage=1 --set data.root=DATA --init-from GEMMA
    cir-jax train --config gemma_embedding:fashioniq,stage=2 --set data.root=DATA --init-from STAGE1
    cir-jax train --config gemma_embedding:cirr,stage=2 --set data.root=DATA --init-from GEMMA
Vectors that may be cut stay so with loss.matryoshka=768,512,256,128; --set model.width=256 makes
and compares vectors of 256 values. With generated triplets beside the annotated ones:
`gemma_embedding:fashioniq,stage=2,positives`.

Nobody has published a recipe for composed retrieval with these weights: the values here are a start
and no result. Images are squares of 768 pixels, which are 256 soft tokens; they are padded, where
the published processor keeps their sides in proportion. model.image_size=384 (64 tokens) costs a
quarter. Stage two reads references of 256 x 512 values from disk, 262 KB an image in bfloat16.
float16 gives no numbers with this model: it computes in bfloat16 or float32.

Verified here: soft tokens, and vectors of text, image and both, equal transformers' within 1e-5 on
random weights; the number of parameters is that of transformers' model.
"""

from ml_collections import ConfigDict

from cir_jax.config import parse_argument, sibling
from cir_jax.errors import UserError

STAGE_ONE = {
    "epochs": 3,
    "batch": 64,
    "optim.learning_rate": 1e-5,
    "optim.schedule": "cosine",
    "optim.warmup_steps": 100,
    "loss.temperature": 0.02,
    "model.freeze": ("tokens",),  # a batch reads few of 262,144 rows
}
STAGE_TWO = {
    **STAGE_ONE,
    "batch": 128,
    "loss.references": "disk",
}
# On OpenMoji nothing is pretrained.
EMOJI = {"model.tower": "tiny-gemma"}
EMOJI_STAGES = {
    1: {"optim.learning_rate": 1e-3, "optim.warmup_steps": 50},
    2: {"optim.learning_rate": 3e-4},
}


def get_config(arg: str = "fashioniq") -> ConfigDict:
    """`arg`: "fashioniq", "cirr", "emoji" or "quicktest"; or, of your own triplets, "folder" or
    "tiny"; "stage=1|2" (1 if not given), and "positives" for generated triplets as well.

    Raises:
      UserError: stage 0, which this model does not have.
    """
    models = sibling(__file__, "clip_sum")
    dataset, stage, flags = parse_argument(
        arg,
        datasets=tuple(name for name in models.GENERATED if name != "vit-b32"),
        default_stage=1,
        flags=("positives",),
    )
    if not stage:
        raise UserError(
            "gemma_embedding has no stage 0: its weights are those of an encoder that was trained "
            "with texts and images; give stage=1, and --set init_from= a folder of it"
        )
    config = models.get_config(arg)
    config.model.name = "gemma_embedding"
    if dataset in ("emoji", "quicktest", "tiny"):
        config.update_from_flattened_dict(EMOJI | EMOJI_STAGES[stage])
        if dataset == "quicktest":
            config.update_from_flattened_dict(models.QUICK)
        return config
    config.data.pad = "square"
    config.update_from_flattened_dict(STAGE_ONE if stage == 1 else STAGE_TWO)
    if dataset != "folder":
        config.model.tower = "embeddinggemma-2"
    generated = sibling(__file__, "sprc").GENERATED  # the same files
    if flags and dataset in generated:
        config.data.generated = (generated[dataset],)
    return config
