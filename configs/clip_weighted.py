# SPDX-License-Identifier: Apache-2.0
r"""The sum of CLIP's features with a weight for each, which a small head predicts per query.

Model: after SRAIN, arXiv 2608.22500; cir_jax/models/clip_weighted/model.py has the formula. It
starts as the plain sum of `clip_sum`, so it goes on from wherever that one does, and each recipe is
that of `clip_sum` with the head added to what trains:
    cir-jax train --config clip_weighted:fashioniq,stage=1 --set data.root=DATA --set init_from=CLIP
    cir-jax train --config clip_weighted:fashioniq,stage=2 --set data.root=DATA \
        --set init_from=STAGE1
STAGE1 may be a run of `clip_sum`, too. To train the head with larger steps than the towers:
`--set "optim.multipliers=(('head/.*',10),)"`.

Hardware: that of `clip_sum`; the head has 0.3 M parameters. Nothing is published for these recipes;
`python tools/evidence.py --questions weights icons` compares the two models on drawn images.
"""

from ml_collections import ConfigDict

from cir_jax.config import sibling


def get_config(arg: str = "fashioniq") -> ConfigDict:
    """`arg`: "fashioniq", "cirr", "emoji" or "quicktest"; or, of your own triplets, "folder" (any
    size that the weights have), "vit-b32" or "tiny"; "stage=0|1|2" (1 if not given), and
    "positives" for generated triplets as well."""
    config = sibling(__file__, "clip_sum").get_config(arg)
    config.model.name = "clip_weighted"
    return config
