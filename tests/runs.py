# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets and configs that many tests train on."""

import json
import os
import random

import numpy as np
from PIL import Image

from cir_jax import config
from cir_jax.datasets import loading
from cir_jax.training import setup
from tests import tokenizer_folders

# The models of the package, each at the size that its tests train.
TOWERS = {
    "clip_sum": "tiny-vit",
    "clip_weighted": "vit-16-8-w32-l1-h2_text-w32-l1-h2_d16",
    "clip_combiner": "tiny-vit",
    "tgcir": "tiny-vit",
    "blip": "vit-32-16-w32-l2-h2_med-w32-l2-h2_d16",
    # As many queries as BLIP-2 has: each target is 32 rows.
    "sprc": "eva-32-16-w32-l1-h2_qformer-w32-l2-h2-q32_d16",
    # Narrower ones have gradients that rounding moves by a part in a thousand.
    "gemma_embedding": "gemma-12-2-3-w64-m32-l1-h4x4-n6"
    "_v49416-w64-m32-l1x1-h4-k1x4-k1x4-r3-s8_d32_t49408-49409-49410",
}
# Other towers of those models: what stands for one in the tests -> (model, tower).
ENCODERS = {"siglip": ("clip_sum", "tiny-siglip2")}
COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220), "grey": (128,) * 3}


def write_image(path, color, seed=0, size=(20, 24)):
    """A noisy picture of one colour."""
    noise = np.random.default_rng(seed).integers(-30, 30, (size[1], size[0], 3))
    pixels = np.clip(np.asarray(color) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_fashioniq(root, images=24, triplets=16, categories=("dress", "shirt"), suffix=".png"):
    """A FashionIQ folder with train, val and test splits, and a file of generated triplets."""
    rng = random.Random(0)
    names = [f"B{i:04d}" for i in range(images)]
    for i, name in enumerate(names):
        write_image(root / "images" / f"{name}{suffix}", list(COLORS.values())[i % 4], i)
    for category in categories:
        for split in ("train", "val", "test"):
            records = []
            for _ in range(triplets):
                a, b = rng.sample(names, 2)
                record = {
                    "candidate": a,
                    "captions": [f"Is {rng.choice(list(COLORS))}. ", "  has, no? "],
                }
                records.append(record if split == "test" else record | {"target": b})
            dump(root / "captions" / f"cap.{category}.{split}.json", records)
            dump(root / "image_splits" / f"split.{category}.{split}.json", names)
    generated = [
        {"candidate": a, "target": b, "captions": [f"a {b}"], "caption1": a, "caption2": b}
        for a, b in (rng.sample(names, 2) for _ in range(8))
    ]
    dump(root / "captions" / "cap.extend_clip.train.json", generated)
    return root


def write_cirr(root, images=24, triplets=12):
    """A CIRR folder with train, val and test1 splits."""
    rng = random.Random(1)
    for split, folder in (("train", "train"), ("val", "dev"), ("test1", "test1")):
        names = [f"{folder}-{i}-img0" for i in range(images)]
        for i, name in enumerate(names):
            write_image(root / folder / f"{name}.png", list(COLORS.values())[i % 4], i)
        paths = {n: f"./{folder}/{n}.png" for n in names}
        records = []
        for pair in range(triplets):
            members = rng.sample(names, 6)
            record = {
                "pairid": 100 + pair,
                "reference": members[0],
                "caption": f"make it {rng.choice(list(COLORS))}",
                "img_set": {"id": pair, "members": rng.sample(members, 6)},
            }
            records.append(record if split == "test1" else record | {"target_hard": members[1]})
        dump(root / "cirr" / "captions" / f"cap.rc2.{split}.json", records)
        dump(root / "cirr" / "image_splits" / f"split.rc2.{split}.json", paths)
    return root


def write_captions(root, names=16):
    """A captions.jsonl of coloured pictures."""
    lines = []
    for i in range(names):
        color = list(COLORS)[i % 4]
        write_image(root / "images" / f"c{i}.png", COLORS[color], i)
        lines.append(json.dumps({"image": f"images/c{i}.png", "captions": [f"a {color} thing"]}))
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root / "captions.jsonl"


def dump(path, content):
    """Writes JSON, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def tiny(workdir, root, *changes, stage=1, model="cross_attention", data="fashioniq"):
    """A locked config that trains in seconds; `model` is one of TOWERS or of the stand-ins."""
    name, tower = (model, TOWERS[model]) if model in TOWERS else (stand_in(model), "tiny-vit")
    own = []
    if model in ENCODERS:  # with what comes with its weights, and the loss it is known for
        name, tower = ENCODERS[model]
        own = [f"model.tokenizer={tokenizer_folders.kept()}", "data.on_long=truncate"]
        own += ["loss.kind=sigmoid"] if stage < 2 else []
    base = (
        f"workdir={workdir}", f"data.root={root}", f"data.name={data}", f"eval.benchmark={data}",
        f"model.name={name}", f"model.tower={tower}", "model.dtype=float32", "batch=8", "epochs=1",
        "data.threads=2", "eval.batch=16", "eval.examples=4", "optim.learning_rate=1e-3",
        "log_every=1",
        *(["model.context=16"] if model == "tgcir" else []),  # it reads every position
        *own,
    )  # fmt: skip
    loaded = config.load(f"clip_sum:fashioniq,stage={stage}", base)
    with loaded.unlocked():  # of every stage, also of those that do not read them
        loaded.loss.temperature, loaded.loss.bank_block = 0.1, 4
    return config.override(loaded, changes)


def load(data, root, *changes):
    """The training sets of a tiny config."""
    return loading.load(tiny("unused", root, *changes, data=data), captions=False)


def set_up(loaded):
    """(setup, data) of a config: what is checked before the first step."""
    made = setup.make(setup.resolve(loaded))
    return made, setup.read_data(made)


def one_device():
    """The environment of a process that has one device, as a laptop has."""
    return os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    }


def stand_in(name):
    """Path of a model that exists only in the tests."""
    from pathlib import Path

    return str(Path(__file__).parent / "models" / "stand_ins" / f"{name}.py")
