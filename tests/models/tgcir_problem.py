# SPDX-License-Identifier: Apache-2.0
"""A tiny TG-CIR of random values on both sides, and the same triplets for both."""

import functools
import tempfile

import jax
import numpy as np
import torch

from cir_jax import config, contract
from cir_jax.convert import importing
from cir_jax.towers.clip import sizes
from tools.torch_models import clip, tgcir

TOWER = "vit-32-8-w64-l2-h1_text-w64-l2-h1_d32"
SIZE = sizes.find(TOWER)
CONTEXT, BATCH = 20, 4
TEMPERATURE = 1 / 8  # the one that PyTorch's model has here


@functools.cache
def functions(tower=TOWER, context=CONTEXT, dtype="float32"):
    """Our model."""
    changes = [f"model.tower={tower}", f"model.context={context}", f"model.dtype={dtype}"]
    return contract.build(config.load("base", ["model.name=tgcir", *changes]).model)


@functools.cache
def theirs(stage=1, matching=0.1):
    """PyTorch's model; the texts' copies of stage two are random, as after training."""
    return tgcir.random(SIZE, CONTEXT, stage=stage, matching=matching)


def saved(place, model, **beside):
    """Writes a model as its own code does."""
    torch.save({**beside, "state_dict": model.state_dict()}, place)
    return place


@functools.cache
def weights(stage=1):
    """`theirs`, imported."""
    with tempfile.TemporaryDirectory() as folder:
        beside = {"epoch": 3} if stage == 2 else {}
        return importing.read(saved(f"{folder}/x.pt", theirs(stage), **beside), functions())


@functools.cache
def _program():
    ours = functions()

    @jax.jit
    def everything(index, query, reference, target, text):
        tokens = ours.reference(index, reference, text)
        composed, rows, extras = ours.training(query, reference, target, text, None)
        return {
            "reference": tokens,
            "target": ours.target(index, reference),
            "features": ours.text_features(query, text, None),
            "query": ours.compose(query, tokens, text),
            "query of the index": ours.compose(index, tokens, text),
            "training": (composed, rows),
            "losses": ours.auxiliary(query, composed, rows, extras, TEMPERATURE),
        }

    # The same program, compiled in half the time: machine code is optimised less.
    trees = weights().index, weights().query
    return everything.lower(*trees, *triplets()).compile({"xla_backend_optimization_level": 0})


def outputs(index, query):
    """All that our model computes for `triplets`: one program for all tests."""
    return jax.tree.map(np.asarray, _program()(index, query, *triplets()))


@functools.cache
def triplets(rows=BATCH, seed=0):
    """(reference pixels, target pixels, text): normalised images, texts shorter than CONTEXT."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(2, rows, 32, 32, 3)).astype(np.float32)
    text = np.zeros((rows, 14), np.int32)
    for row, length in zip(text, rng.integers(3, 15, rows), strict=True):
        row[:length] = [49406, *rng.integers(1, 49405, length - 2), 49407]
    return *pixels, text


def as_torch(reference, target, text):
    """The same for PyTorch, which is given all positions of the text."""
    text = np.pad(text, ((0, 0), (0, CONTEXT - text.shape[1])))
    images, texts = clip.inputs(reference, text)
    return images, clip.inputs(target, text)[0], texts
