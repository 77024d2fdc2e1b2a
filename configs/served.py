# SPDX-License-Identifier: Apache-2.0
r"""An embedder behind a server, or in a folder of sentence-transformers, on any benchmark.

Nothing is trained to score it: the server gives the vectors of images and of images with texts, or
of images and of texts, whose sum is then the query. Stage two trains a small head on top of it
against the bank of its vectors; the embedder stays as it is.

Commands:
    cir-jax evaluate --config served:cirr --set model.url=http://HOST:8000/v1 \
        --set model.tower=Qwen/Qwen3-VL-Embedding-2B --set model.prompts=qwen3_vl_embedding \
        --set data.root=DATA
    cir-jax evaluate --config served:circo --set model.url=http://HOST:7997 \
        --set model.form=modality --set model.composition=sum --set model.tower=NAME ...
    cir-jax evaluate --config served:folder --set model.tower=FOLDER --set data.root=DATA
    cir-jax train --config served:fashioniq,stage=2 --set model.url=... --set model.tower=... \
        --set data.root=DATA

The head has 3 D `model.hidden` parameters (D=2048: 3 M), and a step costs a product with the bank
and little else; what costs is one request for each image and each text. No figure is published.
"""

from ml_collections import ConfigDict

from cir_jax.config import parse_argument, sibling

# data set -> what it is read and scored as
DATASETS = ("cirr", "fashioniq", "circo", "genecis", "emoji", "folder")
RECIPE = {
    "epochs": 3, "batch": 256, "optim.learning_rate": 1e-3, "loss.temperature": 0.02,
    "optim.schedule": "cosine",
}  # fmt: skip


def get_config(arg: str = "cirr") -> ConfigDict:
    """`arg`: "cirr", "fashioniq", "circo", "genecis", "emoji" or "folder"; and "stage=0|1|2" (2 if
    not given)."""
    base = sibling(__file__, "base")
    dataset, stage, _ = parse_argument(arg, datasets=DATASETS, default_stage=2)
    config = base.get_config()
    config.stage = base.STAGES[stage]
    config.model.name, config.model.tower = "served", ""
    config.data.name = config.eval.benchmark = dataset
    config.update_from_flattened_dict(RECIPE)
    config.loss.exclude_positives = dataset == "folder" and stage == 2
    return config
