# SPDX-License-Identifier: Apache-2.0
r"""CLIP4CIR (sum): the query is the sum of raw image and raw text feature, then of unit length.

Model: Baldrati et al., "Effective Conditioned and Composed Image Retrieval Combining CLIP-Based
Features", CVPR 2022. Both stages: Feng et al., "Improving Composed Image Retrieval via Contrastive
Learning with Scaling Positives and Negatives", ACM MM 2024 (arXiv 2404.11317), CLIP4CIR rows.

Commands:
    cir-jax train --config clip_sum:fashioniq,stage=1 --set data.root=DATA --set init_from=CLIP
    cir-jax train --config clip_sum:fashioniq,stage=2 --set data.root=DATA --set init_from=STAGE1
    cir-jax train --config clip_sum:cirr,stage=2 --set data.root=DATA --set init_from=STAGE1
On your own triplets, of whatever CLIP you start from, of ViT-B/32, or tiny and from nothing:
    cir-jax train --config clip_sum:folder,stage=1 --set data.root=DATA --init-from CLIP
    cir-jax train --config clip_sum:vit-b32,stage=1 --set data.root=DATA --init-from CLIP
    cir-jax train --config clip_sum:tiny,stage=1 --set data.root=DATA
With generated triplets beside the annotated ones, as in the paper: either the released files below
data.root, or what the recipes `clip-fashioniq` and `clip-cirr` of configs/positives.py make:
    cir-jax train --config clip_sum:fashioniq,stage=2,positives --set data.root=DATA ...
    cir-jax train --config clip_sum:fashioniq,stage=2 --set data.root=DATA \
        --set data.generated=runs/positives-clip-fashioniq/triplets.jsonl ...

Published, CLIP RN50x4, with scaled positives and negatives: FashionIQ validation R@10/R@50
44.48/66.88 (full gallery, reference removed), CIRR test R@1/R@5 45.33/78.07. The released runs used
one 32 GB GPU. These figures are the paper's; this project has not reproduced them yet.
"""

from typing import Any

from ml_collections import ConfigDict

from cir_jax.config import parse_argument, sibling

# The recipes of the paper: (data set, stage) -> changed keys.
RECIPES = {
    # CLIP4CIR fine-tuning of both towers, the released in-batch stage.
    ("fashioniq", 1): {
        "epochs": 100,
        "batch": 128,
        "optim.learning_rate": 2e-6,
        "loss.temperature": 0.01,
    },
    ("cirr", 1): {
        "epochs": 100,
        "batch": 128,
        "optim.learning_rate": 2e-6,
        "loss.temperature": 0.01,
    },
    # Stage two with the static bank: text side only.
    ("fashioniq", 2): {
        "epochs": 3,
        "batch": 256,
        "optim.learning_rate": 2e-5,
        "loss.temperature": 0.02,
    },
    ("cirr", 2): {"epochs": 3, "batch": 256, "optim.learning_rate": 2e-5, "loss.temperature": 0.02},
    # Image-text contrastive pretraining or domain adaptation, CLIP's own loss and optimizer.
    ("fashioniq", 0): {"epochs": 10, "batch": 256, "optim.learning_rate": 1e-5},
    ("cirr", 0): {"epochs": 10, "batch": 256, "optim.learning_rate": 1e-5},
}

# Small enough for two CPU cores; on OpenMoji, from random parameters.
EMOJI: dict[str, Any] = {
    "model.tower": "tiny-vit", "model.dtype": "float32", "data.pad": "none",
    "data.pixels": "memory", "data.threads": 4, "data.text_lengths": (16, 32),
    "eval.batch": 256, "data.pack_texts": False,  # rounded as the published results were
}  # fmt: skip
EMOJI_STAGES = {
    0: {"epochs": 20, "batch": 128, "optim.learning_rate": 1e-3, "optim.schedule": "cosine",
        "optim.warmup_steps": 50, "optim.weight_decay": 0.1, "eval.every": 0,
        "optim.no_decay": (".*/(bias|scale)", "logit_scale")},
    1: {"epochs": 4, "batch": 32, "optim.learning_rate": 3e-4, "loss.temperature": 0.05},
    2: {"epochs": 4, "batch": 32, "optim.learning_rate": 3e-4, "loss.temperature": 0.05},
}  # fmt: skip
# Your own triplets: the tiny model sees few of them, so it sees them often.
OWN_TINY = {1: {"epochs": 20}, 2: {"epochs": 10}}
# The files of the released generator, relative to data.root; of your own triplets, what
# `cir-jax positives` writes into a folder of that name.
GENERATED = {
    "fashioniq": "captions/cap.extend_clip.train.json",
    "cirr": "cirr/captions/cap.rc2.train.extend_clip.json",
    "emoji": "captions/cap.extend_clip.train.json",
    "quicktest": "captions/cap.extend_clip.train.json",
    "folder": "positives/triplets.jsonl",
    "tiny": "positives/triplets.jsonl",
    "vit-b32": "positives/triplets.jsonl",
}
QUICK = {
    "steps": 20,
    "log_every": 5,
    "eval.examples": 4,
    "batch": 16,
    "optim.warmup_steps": 5,
    "data.text_lengths": (32,),  # a program for each length costs more than its 20 steps
}


def get_config(arg: str = "fashioniq") -> ConfigDict:
    """`arg`: "fashioniq", "cirr", "emoji" or "quicktest"; or, of your own triplets, "folder" (any
    size that the weights have), "vit-b32" or "tiny"; "stage=0|1|2" (1 if not given), and
    "positives" for generated triplets as well."""
    base = sibling(__file__, "base")
    dataset, stage, flags = parse_argument(
        arg, datasets=tuple(GENERATED), default_stage=1, flags=("positives",)
    )
    config = base.get_config()
    config.stage = base.STAGES[stage]
    config.model.name = "clip_sum"
    if dataset in ("emoji", "quicktest"):
        config.data.name = config.eval.benchmark = "emoji"
        config.update_from_flattened_dict(EMOJI | EMOJI_STAGES[stage])
        if dataset == "quicktest":
            config.update_from_flattened_dict(QUICK)
    elif dataset in base.OWN:
        own(config, stage)
        if dataset == "tiny":
            config.update_from_flattened_dict(EMOJI | EMOJI_STAGES[stage] | OWN_TINY.get(stage, {}))
        else:
            config.model.tower = base.OWN[dataset]
            config.update_from_flattened_dict(RECIPES["fashioniq", stage])
    else:
        config.model.tower = "RN50x4"
        config.data.name = config.eval.benchmark = dataset
        config.update_from_flattened_dict(RECIPES[dataset, stage])
    if flags:
        config.data.generated = (GENERATED[dataset],)
    return config


def own(config: ConfigDict, stage: int) -> None:
    """Your own triplets: what they are read and scored as, and several right answers of a query."""
    config.data.name = config.eval.benchmark = "folder"
    config.loss.exclude_positives = stage == 2
