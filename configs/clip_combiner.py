# SPDX-License-Identifier: Apache-2.0
r"""CLIP4CIR (Combiner): a network on top of a frozen CLIP makes the query.

Model: Baldrati et al., "Conditioned and Composed Image Retrieval Combining and Partially
Fine-Tuning CLIP-Based Features", CVPR 2022 Workshops, and "Composed Image Retrieval using
Contrastive Learning and Task-oriented CLIP-based Features", arXiv 2308.11485.

The published order: fine-tune CLIP (stage one of `clip_sum`), then train the Combiner from nothing
on the frozen towers, against the other targets of the batch. That is stage one here:
    cir-jax train --config clip_sum:fashioniq,stage=1 --set data.root=DATA --set init_from=CLIP
    cir-jax train --config clip_combiner:fashioniq,stage=1 --set data.root=DATA \
        --set init_from=CLIP_SUM_STAGE1
Stage two trains the same parameters with the same settings against a bank of every target. It
encodes each image once, not once an epoch, so that an epoch costs the text tower and the Combiner
alone. It may follow stage one or take its place. It is not published; arXiv 2404.11317 does the
same to other models:
    cir-jax train --config clip_combiner:fashioniq,stage=2 --set data.root=DATA \
        --set init_from=STAGE1
Where a batch of 4096 images is too large, `loss.chunk=128` encodes it in parts, with the same loss.

Hardware: the towers are frozen, so AdamW keeps state for the Combiner alone, 59 M of 237 M
parameters (RN50x4). This project has not reproduced the published figures.
"""

from ml_collections import ConfigDict

from cir_jax.config import parse_argument, sibling

# The released recipe, one for both data sets: Adam, that is no weight decay.
RECIPE = {
    "epochs": 300,
    "batch": 4096,
    "optim.learning_rate": 2e-5,
    "optim.epsilon": 1e-8,
    "optim.weight_decay": 0.0,
    "loss.temperature": 0.01,
}
# On OpenMoji the towers are as small as those of `clip_sum`; the Combiner takes larger steps.
EMOJI = {"optim.learning_rate": 1e-3, "optim.weight_decay": 0.0, "optim.epsilon": 1e-8}


def get_config(arg: str = "fashioniq") -> ConfigDict:
    """`arg`: "fashioniq", "cirr", "emoji" or "quicktest"; or, of your own triplets, "folder" (any
    size that the weights have), "vit-b32" or "tiny"; "stage=0|1|2" (1 if not given), and
    "positives" for generated triplets as well."""
    models = sibling(__file__, "clip_sum")
    dataset, stage, _ = parse_argument(
        arg, datasets=tuple(models.GENERATED), default_stage=1, flags=("positives",)
    )
    config = models.get_config(arg)
    config.model.name = "clip_combiner"
    if stage:
        tiny = dataset in ("emoji", "quicktest", "tiny")
        config.update_from_flattened_dict(EMOJI if tiny else RECIPE)
    return config
