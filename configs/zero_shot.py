# SPDX-License-Identifier: Apache-2.0
r"""Zero-shot composed image retrieval: no annotated triplet, generated ones alone.

Model: CLIP ViT-L/14, query = raw image + raw text feature, unit length (`clip_sum`). In domain, the
triplets are made of the benchmark's own training images (recipes `zs-fashioniq` and `zs-cirr` of
configs/positives.py); out of domain, of other images with captions (`cc-fashioniq`, `cc-cirr`).
Stage one from CLIP's weights, then stage two from stage one. Source: zero-shot settings of
arXiv 2404.11317 and of its released code.

Commands, in domain and out of domain (IMAGES: files of images and captions):
    cir-jax positives --config positives:zs-cirr --set data.root=DATA
    cir-jax train --config zero_shot:cirr,stage=1 --set data.root=DATA --set init_from=CLIP \
        --set data.generated=runs/positives-zs-cirr/triplets.jsonl
    cir-jax train --config zero_shot:cirr,stage=2 --set data.root=DATA --set init_from=STAGE1 ...
    cir-jax positives --config positives:cc-cirr --set data.lists=IMAGES
    cir-jax train --config zero_shot:cirr-cc,stage=1 --set data.root=DATA --set init_from=CLIP ...
`data.generated` may be left out where the file that was made, in the released layout, lies below
data.root as in GENERATED.

Hardware: 428 M parameters, 1.7 GB, and twice as much for AdamW of what trains; the released runs
used one 32 GB GPU, and stage one rematerialises there (`model.remat=layers`). This project has not
reproduced the published figures yet.
"""

from ml_collections import ConfigDict

from cir_jax.config import parse_argument, sibling

# data set -> the file of generated triplets, relative to data.root
GENERATED = {
    "fashioniq": "captions/cap.extend_zs.train.json",
    "cirr": "cirr/captions/cap.rc2.train.extend_zs.json",
    "fashioniq-cc": "captions/cap.cc.train.json",
    "cirr-cc": "cirr/captions/cap.rc2.train.cc.json",
    "emoji": "captions/cap.extend_clip.train.json",
    "quicktest": "captions/cap.extend_clip.train.json",
    "folder": "positives/triplets.jsonl",
    "tiny": "positives/triplets.jsonl",
    "vit-b32": "positives/triplets.jsonl",
}
STAGES = {
    1: {"epochs": 10, "batch": 48, "optim.learning_rate": 2e-6, "loss.temperature": 0.01},
    2: {"epochs": 5, "batch": 128, "optim.learning_rate": 2e-6, "loss.temperature": 0.02},
}


def get_config(arg: str = "fashioniq") -> ConfigDict:
    """`arg`: "fashioniq", "cirr" (in domain), "fashioniq-cc", "cirr-cc" (out of domain), "emoji" or
    "quicktest"; or, of your own images, "folder" (any size that the weights have), "vit-b32" or
    "tiny"; and "stage=1|2" (1 if not given; 0 pretrains the tiny model)."""
    dataset, stage, _ = parse_argument(arg, datasets=tuple(GENERATED), default_stage=1)
    models = sibling(__file__, "clip_sum")
    name = dataset.removesuffix("-cc")
    config = models.get_config(f"{name},stage={stage}")
    config.data.annotated = 0
    config.data.generated = (GENERATED[dataset],)
    if name in ("fashioniq", "cirr"):
        config.model.tower = "ViT-L/14"
    if name in ("fashioniq", "cirr", "folder", "vit-b32"):
        config.update_from_flattened_dict(STAGES.get(stage, {}))
    return config
