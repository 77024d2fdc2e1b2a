# SPDX-License-Identifier: Apache-2.0
"""The released generator's files, from its rules alone: seed, draws, windows, templates, fallback.

`released` below writes those rules down once more, in plain lists and with a full sort; nothing of
the package is used in it. A few results are also written out, so that both cannot drift together.
"""

import json
import random
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from cir_jax import config
from cir_jax.generation import pair, steps
from cir_jax.generation.dedupe import Groups
from cir_jax.generation.images import Pool
from tests import runs

TEMPLATES = ("{target} instead of {reference}", "Unlike {reference}, I want {target}", "{target}")
WORDS = "red green blue long short dress shirt cat dog car big small with without two and".split()
# recipe: (references only, window, K) scaled down, templates
RECIPES = {
    "tgcir-fashioniq": (True, (10, 20), 0, (2,)),
    "tgcir-cirr": (False, (10, 15), 0, (0, 1)),
    "clip-fashioniq": (True, (10, 20), 0, (2,)),
    "clip-cirr": (False, (10, 15), 0, (0, 1)),
    "blip-fashioniq": (True, None, 3, (2,)),
    "blip-cirr": (False, None, 0, (0, 1)),
    "blip2-fashioniq": (True, None, 6, (2,)),
    "blip2-cirr": (True, None, 0, (0, 1)),
    "zs-fashioniq": (False, None, 0, (2,)),
    "zs-cirr": (False, None, 0, (0, 1)),
    "cc-fashioniq": (False, None, 0, (2,)),
    "cc-cirr": (False, None, 0, (0, 1)),
}
FILES = {
    "tgcir-fashioniq": "cap.extend_tgcir.train.json",
    "tgcir-cirr": "cap.rc2.train.extend_tgcir.json",
    "clip-fashioniq": "cap.extend_clip.train.json",
    "clip-cirr": "cap.rc2.train.extend_clip.json",
    "blip-fashioniq": "cap.extend_blip.train.json",
    "blip-cirr": "cap.rc2.train.extend_blip.json",
    "blip2-fashioniq": "cap.extend_blip2.train.json",
    "blip2-cirr": "cap.rc2.train.extend_blip2.json",
    "zs-fashioniq": "cap.extend_zs.train.json",
    "zs-cirr": "cap.rc2.train.extend_zs.json",
    "cc-fashioniq": "cap.cc.train.json",
    "cc-cirr": "cap.rc2.train.cc.json",
}


def released(names, captions, references, similarities, recipe, k=1, seed=42):
    """[(reference, target, texts)] by the rules. `similarities` [N][N], in the order of `names`."""
    only, window, keep, templates = RECIPES[recipe]
    random.seed(seed)
    triplets = []
    for i, name in enumerate(names):
        if only and name not in references:
            continue
        if window is None:
            candidates = [j for j in range(len(names)) if j != i]
        else:
            ranking = sorted(range(len(names)), key=lambda j, i=i: -similarities[i][j])
            candidates = ranking[window[0] : window[1]]
        for j in random.sample(candidates, k):
            one, two = captions[name], captions[names[j]]
            texts = [
                TEMPLATES[number].replace("{reference}", one).replace("{target}", two)
                for number in templates
            ]
            texts = [text if tokens(text) <= 77 else two for text in texts]
            triplets.append((name, names[j], texts))
    return random.sample(triplets, keep) if keep else triplets


def tokens(text):
    """Start, end, and one for every word or sign: all words used here are whole tokens."""
    return 2 + len(re.findall(r"[a-z]+|[^a-z\s]", text.lower()))


def layout(recipe, triplets, captions, paths):
    """The records of the released file."""
    records = []
    for one, two, texts in triplets:
        if recipe.startswith("cc-"):
            record = {"reference": paths[one], "target": paths[two]}
            record |= {"reference_name": one, "target_name": two, "captions": texts}
            records.append(record)
            continue
        if recipe.endswith("fashioniq"):
            record = {"candidate": one, "target": two, "captions": texts}
        else:
            record = {"reference": one, "target_hard": two, "caption": texts, "pairid": 0,
                      "img_set": {"members": ["xxx"]}}  # fmt: skip
        records.append(record | {"caption1": captions[one], "caption2": captions[two]})
    return records


class Data:
    """A small data set of one layout, with twins and over-long captions, as the rules see it."""

    def __init__(self, root, kind):
        rng = random.Random(7)
        self.root = runs.write_fashioniq(root) if kind == "fashioniq" else runs.write_cirr(root)
        if kind == "fashioniq":
            files = [root / f"captions/cap.{c}.train.json" for c in ("dress", "shirt")]
            triplets = [(t["candidate"], t["target"]) for f in files for t in runs_json(f)]
            self.paths = {n: root / "images" / f"{n}.png" for pair in triplets for n in pair}
        else:
            listed = runs_json(root / "cirr/image_splits/split.rc2.train.json")
            records = runs_json(root / "cirr/captions/cap.rc2.train.json")
            triplets = [(t["reference"], t["target_hard"]) for t in records]
            self.paths = {n: root / listed[n] for pair in triplets for n in pair}
        self.references = {a for a, _ in triplets}
        numbered = list(self.paths)
        # Two groups of twins. Of one, only a later name is a reference: that does not count.
        lone = next(n for n in numbered if n not in self.references)
        later = [n for n in numbered[numbered.index(lone) + 1 :] if n in self.references]
        self.copy(lone, later[0])
        others = [n for n in numbered if n not in (lone, later[0])]
        self.copy(others[1], others[5], others[-1])
        self.captions = {n: f"a {' '.join(rng.choices(WORDS, k=3))}." for n in numbered}
        for words, name in zip((74, 75, 76, 95), others[6:10], strict=True):
            self.captions[name] = " ".join(rng.choices(WORDS, k=words))
        self.names = self.first_of_twins(numbered)
        listed = []
        for number, (name, caption) in enumerate(self.captions.items()):
            record = {"image_id": name, "image_path": str(self.paths[name]), "caption": caption}
            if number % 3 == 0:  # captioned twice, as an image of two categories: the last counts
                listed.append(record | {"caption": "an earlier caption"})
            listed.append(record)
        runs.dump(root / "it.json", listed)
        features = np.random.default_rng(3).standard_normal((len(self.names), 5))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        self.similarities = (features @ features.T).tolist()
        order = rng.sample(range(len(self.names)), len(self.names))
        np.save(root / "features.npy", (features[order] * 3).astype(np.float32))
        runs.dump(root / "features.json", [self.names[i] for i in order])

    def copy(self, one, *others):
        for other in others:
            shutil.copy(self.paths[one], self.paths[other])

    def first_of_twins(self, names):
        """Every image compared with all others, pixel by pixel."""
        pixels = {n: np.asarray(Image.open(self.paths[n]).convert("RGB")) for n in names}
        kept = []
        for name in names:
            if not any(np.array_equal(pixels[name], pixels[other]) for other in kept):
                kept.append(name)
        return kept

    def run(self, recipe, workdir, *changes):
        only, window, keep, _ = RECIPES[recipe]
        small = [f"pair.keep={keep}"] if keep else []
        if window:
            small += [f"pair.window={window[0]},{window[1]}", "pair.block=3"]
            small += [f"pair.features={self.root / 'features.npy'}",
                      f"pair.feature_names={self.root / 'features.json'}"]  # fmt: skip
        given = (
            [f"data.lists={self.root / 'it.json'}"]
            if recipe.startswith("cc-")
            else [f"data.root={self.root}", f"caption.file={self.root / 'it.json'}"]
        )
        made = config.load(
            f"positives:{recipe}",
            [f"workdir={workdir}", "caption.captioner=texts", *given, *small, *changes],
        )
        assert made.pair.references_only == only
        return steps.run(made)


def runs_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {kind: Data(tmp_path_factory.mktemp(kind), kind) for kind in ("fashioniq", "cirr")}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe, data, tmp_path):
    one = data[recipe.split("-")[1]]
    results = one.run(recipe, tmp_path)
    made = tmp_path / FILES[recipe]
    assert [str(tmp_path / "triplets.jsonl"), str(made)] == results["files"]
    triplets = released(one.names, one.captions, one.references, one.similarities, recipe)
    paths = {n: str(p) for n, p in one.paths.items()}
    wanted = layout(recipe, triplets, one.captions, paths)
    # As text: the order of records and of their fields is part of the files.
    assert [json.dumps(r) for r in runs_json(made)] == [json.dumps(r) for r in wanted]
    neutral = [json.loads(line) for line in (tmp_path / "triplets.jsonl").open()]
    assert [(r["reference"], r["target"], r["texts"]) for r in neutral] == [
        (a, b, list(dict.fromkeys(texts))) for a, b, texts in triplets
    ]
    assert results["triplets"] == len(wanted) > 2


def test_the_data_has_what_the_rules_are_about(data):
    """Twins, skipped references, and texts on both sides of the limit are in the comparison."""
    for kind, one in data.items():
        assert len(one.paths) - len(one.names) == 3
        assert any(n not in one.names for n in one.references)
        assert 0 < len(one.references & set(one.names)) < len(one.names)
        recipe = f"zs-{kind}"
        found = released(one.names, one.captions, one.references, None, recipe, k=5)
        fell_back = [
            texts for _, two, texts in found if one.captions[two] in texts and kind == "cirr"
        ]
        assert bool(fell_back) == (kind == "cirr")
        lengths = {tokens(one.captions[n]) for n in one.names}
        assert {76, 77, 78, 97} <= lengths


@pytest.mark.parametrize("recipe", ["clip-cirr", "zs-fashioniq", "blip-fashioniq"])
def test_several_targets_and_another_seed(recipe, data, tmp_path):
    one = data[recipe.split("-")[1]]
    one.run(recipe, tmp_path, "pair.per_image=4", "seed=7")
    triplets = released(
        one.names, one.captions, one.references, one.similarities, recipe, k=4, seed=7
    )
    wanted = layout(recipe, triplets, one.captions, {})
    assert runs_json(tmp_path / FILES[recipe]) == wanted


def pairs(tmp_path, count, *changes):
    names = [f"i{n}" for n in range(count)]
    pool, groups = Pool(dict.fromkeys(names, "")), Groups.make([[n] for n in names])
    made = config.load("positives:folder", ["pair.exclude_known=false", *changes])
    found = pair.run(made, pool, groups, names, tmp_path)
    return [(int(p["reference"][1:]), int(p["target"][1:])) for p in found]


def test_draws_written_out(tmp_path):
    """Made with nothing but Python: random.seed(42), then random.sample as the rules say."""
    assert pairs(tmp_path, 8) == [
        (0, 6), (1, 0), (2, 0), (3, 6), (4, 2), (5, 1), (6, 1), (7, 1)
    ]  # fmt: skip
    assert pairs(tmp_path, 6, "pair.per_image=2") == [
        (0, 1), (0, 5), (1, 3), (1, 2), (2, 1), (2, 5), (3, 0), (3, 5), (4, 5), (4, 3), (5, 0),
        (5, 4),
    ]  # fmt: skip
    kept = [(17, 1), (13, 18), (7, 4), (14, 2), (18, 0)]
    assert pairs(tmp_path, 30, "pair.keep=5") == kept
    np.save(tmp_path / "f.npy", np.cos(np.outer(np.arange(12), [1.0, 2.0, 3.5])))
    window = ("pair.method=window", "pair.window=4,9", f"pair.features={tmp_path / 'f.npy'}")
    assert pairs(tmp_path, 12, *window) == [
        (0, 11), (1, 10), (2, 8), (3, 8), (4, 11), (5, 7), (6, 3), (7, 4), (8, 11), (9, 6),
        (10, 2), (11, 4),
    ]  # fmt: skip


def test_a_file_written_out(tmp_path):
    """Three images, two templates and the fallback, byte by byte but for the white space."""
    for number, name in enumerate("abc"):
        runs.write_image(tmp_path / "images" / f"{name}.png", (20, 90, 90), number)
    long = " ".join(["red"] * 73)  # 75 tokens alone, and too many in either template
    runs.dump(tmp_path / "it.json", {"a": "A cat.", "b": "Two dogs", "c": long})
    steps.run(
        config.load(
            "positives:folder",
            [f"workdir={tmp_path / 'made'}", f"data.root={tmp_path}", "output.layout=cirr",
             "caption.captioner=texts", f"caption.file={tmp_path / 'it.json'}"],
        )
    )  # fmt: skip
    assert runs_json(tmp_path / "made/cap.rc2.train.extend_clip.json") == [
        {"reference": "a.png", "target_hard": "b.png",
         "caption": ["Two dogs instead of A cat.", "Unlike A cat., I want Two dogs"], "pairid": 0,
         "img_set": {"members": ["xxx"]}, "caption1": "A cat.", "caption2": "Two dogs"},
        {"reference": "b.png", "target_hard": "a.png",
         "caption": ["A cat. instead of Two dogs", "Unlike Two dogs, I want A cat."], "pairid": 0,
         "img_set": {"members": ["xxx"]}, "caption1": "Two dogs", "caption2": "A cat."},
        {"reference": "c.png", "target_hard": "b.png",
         "caption": ["Two dogs", "Two dogs"], "pairid": 0,
         "img_set": {"members": ["xxx"]}, "caption1": long, "caption2": "Two dogs"},
    ]  # fmt: skip
