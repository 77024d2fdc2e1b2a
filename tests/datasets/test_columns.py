# SPDX-License-Identifier: Apache-2.0
"""Triplets in columns are the triplets in memory: names, files, rows, tokens, batches, messages."""

import itertools
import json
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cir_jax.data import (
    fingerprints,
    loader,
    pipeline,
    places,
    screening,
    token_files,
    tokens,
    triplet_columns,
)
from cir_jax.data.pixels import open_image
from cir_jax.data.triplet_columns import Columns
from cir_jax.data.triplets import TripletSet
from cir_jax.datasets import conversion, generated
from cir_jax.datasets.held_out import HeldOut
from cir_jax.errors import UserError
from tests import runs

FIELDS = ("text", "exclude_id")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images: names that need care, a copy by link, and a folder that is a link."""
    root = tmp_path_factory.mktemp("set")
    for number in range(16):
        runs.write_image(
            root / "images" / f"{'ab'[number % 2]}" / f"{number}.png", (9, 9, 9), number
        )
    runs.write_image(root / "images" / "plain.png", (99, 9, 9))
    runs.write_image(root / "images" / "é 1.jpg", (9, 99, 9))
    runs.write_image(root / "images" / "Upper.PNG", (9, 9, 99))
    runs.write_image(root / "other" / "one.png", (9, 99, 99))
    runs.write_image(root / "other" / "two.png", (99, 99, 9))
    (root / "images" / "link.png").symlink_to("plain.png")
    os.link(root / "images" / "a" / "0.png", root / "images" / "hard.png")
    (root / "images" / "folder").symlink_to("b")
    return root


def records(count, seed=0):
    """Records of several kinds, in an order of their own."""
    drawn = random.Random(seed)
    names = [f"{'ab'[n % 2]}/{n}.png" for n in range(16)]
    names += ["link.png", "hard.png", "é 1.jpg", "folder/1.png", "plain.png"]
    made = []
    for number in range(count):
        reference, target, other, third = drawn.sample(names, 4)
        one = {"reference": reference, "target": target, "text": drawn.choice(["in red", "&lt; é"])}
        kind = number % 9
        if kind == 1:
            one["reference"] = f"./{reference}"
        if kind == 2:
            del one["target"]
            one["targets"] = [target, other, third]
        if kind == 3:
            del one["text"]
            one |= {"texts": ["one", " ", "in red", f"text {number}"], "id": f"mine-{number}"}
        if kind == 4:
            one |= {"source": "second", "group": [reference, "nowhere.png"]}
        if kind == 5:
            one |= {"reference": "one.png", "reference_path": "other/one.png"}
        if kind == 6:
            one |= {"target": "zwei", "target_path": "other/two.png"}
        if kind == 7:
            one |= {"reference": "UPPER.png", "meta": {"llm_caption": "x"}}
        made.append(one)
    return made


def write(path, made):
    path.write_text("".join(json.dumps(one) + "\n" for one in made))
    return str(path)


def known(root):
    """What a data set of some of the images knows."""
    return {"plain.png": str(root / "images/plain.png"), "Upper": str(root / "images/Upper.PNG")}


def read(files, root, columns, monkeypatch, blocks=8, gone=(), **options):
    """The sets of some files, as training reads them."""
    monkeypatch.setattr(conversion, "LEAST", 1 if columns else 1 << 40)
    monkeypatch.setattr(triplet_columns, "BLOCK", blocks)
    monkeypatch.setattr(token_files.token_tables, "BATCH", 5)
    sets = generated.read(files, known(root), root, images=root / "images", **options)
    assert all(isinstance(one.triplets, Columns) == columns for one in sets)
    out = HeldOut({name: str(root / "images" / name) for name in gone})
    return [out.without(one, "data.generated").of_each_target() for one in sets]


def prepared(sets, root, monkeypatch, **options):
    monkeypatch.setattr(conversion, "LEAST", 1 << 40)
    human = generated.read([human_file(root)], known(root), root, images=root / "images")
    human = [TripletSet("human", one.triplets, one.paths, by_name=True) for one in human]
    return pipeline.prepare([*human, *sets], tokens.load("clip"), **options)


def human_file(root):
    made = [{"reference": "plain.png", "target": "a/2.png", "text": "human"}] * 2
    return write(root / "human.jsonl", made)


def assert_equal(one, other):
    """Two data sets hold the same, and draw the same batches."""
    assert list(one.triplets) == list(other.triplets) and len(one.triplets) == len(other.triplets)
    assert one.triplets[-1] == other.triplets[-1] and one.triplets[3:9] == other.triplets[3:9]
    assert list(one.images.names) == list(other.images.names)
    assert list(map(str, one.images.paths)) == list(map(str, other.images.paths))
    assert dict(one.images.row_of) == dict(other.images.row_of)
    assert len(one.images.row_of) == len(other.images.row_of)
    assert dict(one.images.files()) == dict(other.images.files())
    assert one.images.fingerprint() == other.images.fingerprint()
    assert fingerprints.of(one) == fingerprints.of(other)
    assert one.sources == other.sources and one.dropped == other.dropped
    for name in ("source_of", "reference_id", "target_id", "text_start"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.tokens.start, other.tokens.start)
    joined = [np.concatenate([*data.tokens.blocks()]) for data in (one, other)]
    np.testing.assert_array_equal(*joined)
    for mixing in ("concatenate", "weights"):
        options = loader.Options(
            8, 3, FIELDS, mixing, (1,) * len(one.sources), exclude_reference=True,
            exclude_positives=True, rows=[0, 3, 5],
        )  # fmt: skip
        drawn = [itertools.islice(pipeline.batches(data, options), 4) for data in (one, other)]
        for a, b in zip(*drawn, strict=True):
            assert a.keys() == b.keys()
            for field in a:
                assert a[field].dtype == b[field].dtype
                np.testing.assert_array_equal(a[field], b[field])


def two_ways(files, root, monkeypatch, on_missing="error", **options):
    return [
        prepared(
            read(files, root, columns, monkeypatch, **options),
            root,
            monkeypatch,
            on_missing=on_missing,
        )
        for columns in (True, False)
    ]


def test_columns_are_the_same_triplets(images, monkeypatch):
    """One file of every kind of record, read as columns and as it always was."""
    file = write(images / "made.jsonl", records(60))
    one, other = two_ways([file], images, monkeypatch)
    assert_equal(one, other)
    assert (images / ".cir_jax" / "made.jsonl.triplets" / "record.json").is_file()
    again = read([file], images, True, monkeypatch)  # from what is kept
    assert_equal(prepared(again, images, monkeypatch), other)


def test_several_files(images, tmp_path, monkeypatch):
    """Names that files share are one image, also where a later file alone says where it lies."""
    for name in ("other", "images"):
        os.symlink(images / name, tmp_path / name)
    first = records(30, 1)
    first += [{"reference": "late.png", "target": "a/0.png", "text": "x"}]
    files = [write(tmp_path / "one.jsonl", first), write(tmp_path / "two.jsonl", records(40, 2))]
    late = {"reference": "a/0.png", "target": "a/2.png", "text": "y"}
    released = tmp_path / "three.json"
    runs.dump(released, [{"candidate": "a/4.png", "target": "b/5.png", "captions": ["p", "q"]}, {
        "reference": "a/6.png", "target_hard": "b/7.png", "caption": "r"}] * 3)  # fmt: skip
    write(tmp_path / "two.jsonl", [*records(40, 2), late])
    shutil.copy(images / "other" / "one.png", images / "images" / "late.png")
    one, other = two_ways([*files, str(released)], images, monkeypatch)
    assert_equal(one, other)
    small, large = files[0], str(released)
    monkeypatch.setattr(conversion, "is_large", lambda file: str(file) == large)
    monkeypatch.setattr(conversion, "LEAST", 1)
    mixed = generated.read([small, large], known(images), images, images=images / "images")
    assert all(isinstance(s.triplets, Columns) for s in mixed)


def test_held_out_and_dropped_images(images, tmp_path, monkeypatch):
    """By name, by another name of the file, and as another right answer; broken files."""
    (images / "images" / "broken.png").write_text("<html>")
    broken = [{"reference": "broken.png", "target": "a/6.png", "text": "x"}] * 2
    file = write(images / "some.jsonl", [*records(50, 5), *broken])
    for gone in [("hard.png", "link.png"), ("b/1.png", "broken.png")]:
        one, other = two_ways([file], images, monkeypatch, gone=gone, on_missing="drop")
        assert len(one.triplets) < 64  # of 66, two of which are broken
        assert one.dropped == ({} if "broken.png" in gone else {"generated": 2})
        assert_equal(one, other)
    for columns in (True, False):
        with pytest.raises(UserError, match=r"1 of \d+ images cannot be used .1 no image"):
            prepared(read([file], images, columns, monkeypatch), images, monkeypatch)


GOOD = {"reference": "a/0.png", "target": "a/2.png", "text": "x"}
WRONG = {
    "line": [GOOD, GOOD | {"text": "a\x01b"}],
    "key": ['{"reference": "a", "reference": "b", "target": "c", "text": "x"}'],
    "field": [GOOD | {"colour": "red"}],
    "nowhere": [GOOD, GOOD | {"reference": "https://x.org/a.png"}],
    "outside": [GOOD, GOOD | {"reference": "../../x.png"}],
    "link": [GOOD, GOOD | {"target": "a/out.png"}],
    "path": [GOOD, GOOD | {"reference": "new.png", "reference_path": "/etc/hosts.png"}],
    "hidden": [GOOD | {"target": "a/.hidden.png"}],
    "twice": [GOOD, {"reference": "a/0.png", "targets": ["a/2.png", "./a/2.png"], "text": "x"}],
    "two": [
        GOOD | {"reference_path": "../images/a/0.png"},
        GOOD | {"reference_path": "../images/plain.png"},
    ],
    "long": [GOOD, GOOD | {"text": "very " * 90}],
    "empty": [],
}


@pytest.fixture(scope="module")
def outside(images, tmp_path_factory):
    """A config, and a link in the folder of images that leads out of its roots."""
    there = tmp_path_factory.mktemp("elsewhere")
    runs.write_image(there / "out.png", (1, 2, 3))
    (images / "images" / "a" / "out.png").symlink_to(there / "out.png")
    return runs.tiny(there / "run", images)


@pytest.mark.parametrize("what", WRONG)
def test_messages_are_those_of_small_files(what, images, outside, tmp_path, monkeypatch):
    root = images
    lines = [one if isinstance(one, str) else json.dumps(one) for one in WRONG[what]]
    file = root / "wrong" / "made.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))
    said = []
    for columns in (True, False):
        with pytest.raises(UserError) as found, places.within(outside):
            monkeypatch.setattr(conversion, "LEAST", 0 if columns else 1 << 40)
            made = generated.read([file], {}, root, images=root / "images")
            pipeline.prepare(made, tokens.load("clip"))
        said.append(str(found.value))
    assert said[0] == said[1]
    assert ("made.jsonl" in said[0]) == (what != "nowhere")


def test_a_table_of_parquet(images, monkeypatch):
    """Rows of a table are neutral records; an empty cell is a field that is not there."""
    made = [one | {"id": f"row-{i}"} for i, one in enumerate(records(24, 7))]
    write(images / "rows.jsonl", made)
    columns = {key: None for one in made for key in one if key != "meta"}
    table = pa.table({key: [one.get(key) for one in made] for key in columns})
    parquet.write_table(table, images / "rows.parquet")
    of_lines = read([str(images / "rows.jsonl")], images, False, monkeypatch)
    for as_columns in (True, False):
        of_rows = read([str(images / "rows.parquet")], images, as_columns, monkeypatch)
        assert [list(one.triplets) for one in of_rows] == [list(x.triplets) for x in of_lines]
    table = table.set_column(table.column_names.index("text"), "text", [["a\x1b"] * len(made)])
    parquet.write_table(table, images / "rows.parquet")
    with pytest.raises(UserError, match=r"rows.parquet:1: 'a.x1b': .* is a control character"):
        read([str(images / "rows.parquet")], images, False, monkeypatch)


def test_texts_of_a_language_model(images, monkeypatch):
    made = [GOOD | {"meta": {"llm_caption": f"make it {n}"}} for n in range(12)]
    file = write(images / "llm.jsonl", made)
    for llm_captions in (True, False, True):
        one, other = (
            read([file], images, columns, monkeypatch, llm_captions=llm_captions)[0].triplets
            for columns in (True, False)
        )
        assert list(one) == list(other)


def test_tokens_are_kept_for_each_tokenizer(images, monkeypatch):
    """They are made once; another context, tokenizer or rule for long texts has its own."""
    file = write(images / "kept.jsonl", [GOOD | {"text": f"number {n} " * 3} for n in range(20)])
    made = []
    real = token_files._write
    monkeypatch.setattr(token_files, "_write", lambda *some: (made.append(some[2]), real(*some))[1])
    for _ in range(2):
        for tokenizer in (tokens.load("clip"), tokens.load("clip", 40), tokens.load("bert_enc")):
            for on_long in ("error", "truncate"):
                sets = read([file], images, True, monkeypatch)
                found = token_files.table(sets, tokenizer, on_long)
                texts = [text for one in sets for t in one.triplets for text in t.texts]
                plain = tokens.table(texts, tokenizer, on_long)
                ids = np.concatenate([*found.blocks()])
                assert found.pad == plain.pad and found.context == plain.context
                np.testing.assert_array_equal(ids, plain.flat)
                np.testing.assert_array_equal(found.start, plain.start)
                rows = np.asarray([3, 0, 19])
                np.testing.assert_array_equal(found.rows(rows, 9), plain.rows(rows, 9))
    # clip of 77 and of 40 tokens take each other's place; the others are found again.
    assert [one.name for one in made].count("bert_enc") == 2


def looked_at(monkeypatch):
    """What is asked of single images, and looked into."""
    asked = []
    real = screening.scan
    monkeypatch.setattr(screening, "scan", lambda found, *a, **k: (asked.extend(found), real(
        found, *a, **k))[1])  # fmt: skip
    return asked


def test_images_are_looked_at_once(tmp_path, monkeypatch):
    """A listing says that nothing is new; a change in the folder asks for sizes and times."""
    root = tmp_path / "set"
    for number in range(20):
        runs.write_image(root / "images" / "all" / f"{number}.png", (9, 9, 9), number)
    made = [{"reference": f"all/{n}.png", "target": f"all/{(n + 1) % 20}.png", "text": "x"}
            for n in range(20)]  # fmt: skip
    file = write(root / "made.jsonl", made)
    monkeypatch.setattr(conversion, "LEAST", 1)
    old = 1_600_000_000_000_000_000
    folder = root / "images" / "all"
    for path in (*folder.iterdir(), folder):
        os.utime(path, ns=(old, old))
    stamped, real = [], screening._stamps
    monkeypatch.setattr(
        screening, "_stamps", lambda n, some: (stamped.extend(some), real(n, some))[1]
    )
    asked = looked_at(monkeypatch)

    def start():
        asked.clear()
        stamped.clear()
        (one,) = generated.read([file], {}, root, images=root / "images")
        found = screening.Screen("drop", root=str(root)).unusable(one.paths)
        return len(stamped), len(asked), dict(found)

    assert start() == (20, 20, {})
    assert start() == (0, 0, {})
    (folder / "more.png").write_bytes(b"")  # something is new: sizes and times are asked for
    assert start() == (20, 0, {})
    (folder / "3.png").write_text("no image")
    os.utime(folder, ns=(old, old))
    stamps, looks, found = start()
    assert (stamps, looks) == (20, 1) and found["all/3.png"].reason == "no image"
    (folder / "4.png").unlink()
    os.utime(folder, ns=(old, old))
    stamps, looks, found = start()
    assert {n: p.reason for n, p in found.items()} == {
        "all/3.png": "no image",
        "all/4.png": "missing",
    }


def test_an_image_that_was_overwritten_is_found_at_the_start_after_it_was_met(
    tmp_path, monkeypatch
):
    """A listing does not tell of it: the run meets it, and says what the next start does."""
    root, old = tmp_path / "set", 1_600_000_000_000_000_000
    folder = root / "images"
    for number in range(20):
        runs.write_image(folder / f"{number}.png", (9, 9, 9), number)
    made = [{"reference": f"{n}.png", "target": f"{(n + 1) % 20}.png", "text": "x"}
            for n in range(20)]  # fmt: skip
    file = write(root / "made.jsonl", made)
    monkeypatch.setattr(conversion, "LEAST", 1)
    for path in (*folder.iterdir(), folder):
        os.utime(path, ns=(old, old))

    def start():
        (one,) = generated.read([file], {}, root, images=folder)
        screen = screening.Screen("drop", root=str(root))
        return screen, one.paths, list(screen.unusable(one.paths))

    assert start()[2] == []
    for number in (3, 5):
        with (folder / f"{number}.png").open("r+b") as there:
            there.truncate(30)
    screen, paths, found = start()
    assert found == []
    with pytest.raises(UserError, match=r"2 of 20 .*2 cut off(?s:.*)start again: data.on_missing"):
        screening.Explained(open_image, screen, paths)(str(folder / "3.png"))
    assert sorted(start()[2]) == ["3.png", "5.png"]
