# SPDX-License-Identifier: Apache-2.0
"""Every module of version 0.1.0 that is elsewhere now says where, however it is imported."""

import importlib
import importlib.util

import pytest

import cir_jax
from cir_jax import moved

# Folder -> modules in it that are gone.
OLD = {
    "": "build negatives positives stages step train",
    "convert": (
        "blip blip2_huggingface blip2_rules blip2_shapes blip_huggingface blip_rules clip "
        "clip_combiner clip_sum contract copies huggingface open_clip own positions "
        "processor_files sprc tgcir values"
    ),
    "convert.containers": "mistaken",
    "evals": (
        "circo circo_submission cirr emoji fashioniq figures folder genecis page pictures "
        "ranking report retrieval run_report sections submission"
    ),
    "models": "contract",
    "negatives": (
        "bank bank_build bank_files bank_folder in_bank in_batch negative_types references "
        "sampled scores"
    ),
    "positives": (
        "annotations captions circo cirr doctor emoji emoji_layouts emoji_names fashioniq "
        "folder genecis generated image_table importers inspection loading named_files records "
        "scaling shards tfds_builders triplets unlabelled"
    ),
    "positives.importers": (
        "contract importing json_text lasco megapairs partial shards spn streams "
        "synthtriplets18m webvid_covr"
    ),
    "positives.scaling": (
        "caption captioners dedupe features images journal lists looks mine modify output pair "
        "replies steps windows writing"
    ),
    "positives.scaling.captioners": "contract in_flight inputs local patience server texts",
    "runtime": "files progress rules start weights",
    "stages": "contract one_in_batch two_bank zero_image_text",
    "towers": "blip2_sizes blip_sizes clip_resnet clip_sizes clip_text med qformer "
    "token_learner vit",
}
MODULES = [".".join(filter(None, ("cir_jax", f, m))) for f, ms in OLD.items() for m in ms.split()]


@pytest.mark.parametrize("name", MODULES)
def test_an_old_import_says_the_new_name(name):
    new = moved.new_name(name)
    assert importlib.util.find_spec(new), f"{name} would be {new}, which is none"
    if name.removeprefix("cir_jax.") in moved.FOLDERS:  # what was in it says more
        old = importlib.import_module(name)
        with pytest.raises(AttributeError, match=rf"{name} is {new} now; it has no 'Bank' here"):
            old.Bank  # noqa: B018
        return
    with pytest.raises(ImportError, match=rf"^{name} is {new} now") as raised:
        importlib.import_module(name)
    assert not isinstance(raised.value, ModuleNotFoundError)


@pytest.mark.parametrize(
    "statement, message",
    [
        ("from cir_jax.towers import clip_sizes", "towers.clip_sizes is cir_jax.towers.clip.sizes"),
        ("from cir_jax.train import train", "is cir_jax.training.train now; .* also cir_jax.train"),
        ("import cir_jax.build", "are `from_run` and `from_weights` of cir_jax.retrieval.load"),
        ("from cir_jax import build", "cir_jax.build is cir_jax.training.setup now"),
        ("from cir_jax.convert.tables import dense", "tables.dense is cir_jax.weight_rules.dense"),
        ("import cir_jax.positives.triplets", "triplets is cir_jax.data.triplets now"),
        ("from cir_jax.positives.scaling import mine", "is cir_jax.generation.hard_negatives now"),
        ("from cir_jax.positives.scaling.captioners.contract import Reply", "generation.captioner"),
    ],
)
def test_every_form_of_an_import(statement, message):
    with pytest.raises(ImportError, match=message):
        exec(statement)


def test_what_never_was_is_a_plain_error():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'cir_jax\.nothing'"):
        importlib.import_module("cir_jax.nothing")
    with pytest.raises(ImportError, match=r"cannot import name 'nothing' from 'cir_jax\.towers'"):
        exec("from cir_jax.towers import nothing")
    with pytest.raises(AttributeError, match=r"module 'cir_jax' has no attribute 'nothing'"):
        cir_jax.nothing  # noqa: B018
    assert importlib.util.find_spec("cir_jax.nothing") is None
