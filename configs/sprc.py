# SPDX-License-Identifier: Apache-2.0
r"""SPRC on BLIP-2 (ViT-g): a Q-Former turns the reference image into prompts for the text.

Model and stage one: Bai et al., "Sentence-level Prompts Benefit Composed Image Retrieval", ICLR
2024 (arXiv 2310.05473), and its released code; on Li et al., "BLIP-2", ICML 2023. Stage two: Feng
et al., ACM MM 2024 (arXiv 2404.11317), SPRC rows, and its released code.

Commands; stage one starts from BLIP-2 (LAVIS's `eva_vit_g.pth` and `blip2_pretrained.pth`, with a
comma between, or a folder of transformers' Blip2ForImageTextRetrieval), stage two from stage one or
from the released `sprc_fiq.pt` and `sprc_cirr.pt`, as they are:
    cir-jax train --config sprc:fashioniq,stage=1 --set data.root=DATA --set init_from=BLIP2
    cir-jax train --config sprc:fashioniq,stage=2 --set data.root=DATA --set init_from=STAGE1
    cir-jax train --config sprc:cirr,stage=2 --set data.root=DATA --set init_from=STAGE1
With generated triplets beside the annotated ones, as in the paper: either the released files below
data.root, or what the recipes `blip2-fashioniq` and `blip2-cirr` of configs/positives.py make:
    cir-jax train --config sprc:fashioniq,stage=2,positives --set data.root=DATA ...

Stage one as released: the image encoder is frozen, the temperature is learned from 0.07 on, and two
more losses are added, with weights of 0.4 on CIRR and of 1 on FashionIQ, where the released trainer
does not apply its 0.4. Theirs is a one-cycle schedule: a cosine up over 1.6 (CIRR) or 1.5
(FashionIQ) epochs, then one down, on CIRR over 80 epochs of which 50 are run, and beta1 moves
between 0.85 and 0.95. Ours is as long a warm-up, linear from zero, and a cosine over the run;
beta1 is 0.9.

Stage two makes the prompts of every triplet from its own text. They lie on disk, 48 KiB each in
bfloat16. (The released code keeps one per image, made with the text of the last triplet the image
is in: `loss.reference_text=last_caption`.) Texts over 32 tokens are cut, as released. The reference
stays in the ranking of FashionIQ.

Hardware: parameters take 4.7 GB, AdamW of stage one 2.2 GB more and of stage two 1.3 GB. A batch of
128 in stage one encodes 256 images by ViT-g, forward only; the Q-Former is what keeps activations,
and `loss.chunk=32` or `model.remat=layers` bound them. With `mesh.fsdp=true` each of 16 chips holds
0.4 GB of parameters and moments instead of 6.2. Stage two opens no image; the released runs used
one 32 GB GPU.

Published: FashionIQ validation, mean R@10/R@50, 54.92/74.97 after stage one and 56.37/76.45 with
scaled positives and negatives; CIRR test R@1/R@5 51.96/82.12 and 55.06/83.83. The model, its stage
one losses and the steps of stage two are verified against PyTorch at small sizes, and the names and
shapes of the published files at full size; the published figures are not reproduced.
"""

from ml_collections import ConfigDict

from cir_jax.config import parse_argument, sibling
from cir_jax.errors import UserError

# The optimizer of both stages.
ADAMW = {
    "optim.beta2": 0.98,
    "optim.epsilon": 1e-7,
    "optim.weight_decay": 0.05,
    "loss.learn_temperature": True,
}
STAGE_ONE = {**ADAMW, "batch": 128, "loss.temperature": 0.07, "optim.schedule": "cosine"}
STAGE_TWO = {
    **ADAMW,
    "epochs": 3,
    "batch": 32,
    "optim.learning_rate": 1e-5,
    "loss.temperature": 0.05,
    "loss.references": "disk",
}
# The recipes of the papers: (data set, stage) -> changed keys.
RECIPES = {
    ("fashioniq", 1): {
        **STAGE_ONE,
        "epochs": 30,
        "optim.learning_rate": 2e-5,
        "optim.warmup_steps": 210,  # 1.5 epochs of 140
        "loss.auxiliary": ("rtc:1", "align:1"),
    },
    ("cirr", 1): {
        **STAGE_ONE,
        "epochs": 50,
        "optim.learning_rate": 1e-5,
        "optim.warmup_steps": 352,  # 1.6 epochs of 220
        "loss.auxiliary": ("rtc:0.4", "align:0.4"),
    },
    ("fashioniq", 2): STAGE_TWO,
    ("cirr", 2): STAGE_TWO,
}
# On OpenMoji nothing is pretrained, so the image encoder trains as well.
EMOJI = {"model.tower": "tiny-blip2", "model.train_image": True}
EMOJI_STAGES = {
    1: {
        "optim.learning_rate": 1e-3,
        "optim.warmup_steps": 50,
        "loss.auxiliary": ("rtc:0.4", "align:0.4"),
    },
    2: {"optim.learning_rate": 3e-4},
}
# The files of the released generator, relative to data.root.
GENERATED = {
    "fashioniq": "captions/cap.extend_blip2.train.json",
    "cirr": "cirr/captions/cap.rc2.train.extend_blip2.json",
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
            "sprc has no stage 0: before its stage one comes the pretraining of BLIP-2, which is "
            "not done here; give stage=1, and --set init_from= the weights of BLIP-2"
        )
    config = models.get_config(arg)
    config.model.name = "sprc"
    if dataset in ("emoji", "quicktest", "tiny"):
        config.update_from_flattened_dict(EMOJI | EMOJI_STAGES[stage])
        if dataset == "quicktest":
            config.update_from_flattened_dict(models.QUICK)
        return config
    if dataset == "folder":  # of whatever BLIP-2 the weights are
        config.update_from_flattened_dict(RECIPES["fashioniq", stage])
        return config
    config.model.tower = "blip2-vit-g"
    config.eval.reference = "kept"
    config.update_from_flattened_dict(RECIPES[dataset, stage])
    if flags:
        config.data.generated = (GENERATED[dataset],)
    return config
