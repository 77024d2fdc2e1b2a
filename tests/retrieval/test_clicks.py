# SPDX-License-Identifier: Apache-2.0
"""Clicks become triplets that training reads; what is evaluated with never gets in."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from cir_jax.datasets import generated
from cir_jax.datasets.readers import folder
from cir_jax.errors import UserError
from cir_jax.retrieval import clicks
from cir_jax.retrieval.clicks import Clicks, HeldOut, Refused, held_out_of
from tests import runs


@pytest.fixture
def root(tmp_path):
    """A data set of one's own: c and d are held out, e is a copy of d, f a link to c."""
    images = tmp_path / "data" / "images"
    for i, name in enumerate("abcd"):
        runs.write_image(images / f"{name}.png", runs.COLORS["red"], i)
    shutil.copy(images / "d.png", images / "e.png")
    os.symlink("c.png", images / "f.png")
    (tmp_path / "data" / "val.jsonl").write_text(
        '{"reference": "c.png", "target": "d.png", "text": "x"}\n'
    )
    return tmp_path / "data"


@pytest.fixture
def kept(root, tmp_path):
    images = root / "images"
    return Clicks(
        tmp_path / "index", lambda name: str(images / name), [held_out_of("folder", root)]
    )


def lines(kept, name=clicks.TRIPLETS):
    path = kept.folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_click_is_a_triplet_that_training_reads(kept, root):
    key = kept.save("a.png", "  but\nred \u05d0\U0001f3a8 ", "b.png", {"rank": 3})
    (record,) = lines(kept)
    assert record["meta"].pop("time").endswith("Z")
    assert record == {
        "reference": "a.png", "target": "b.png", "text": "but red \u05d0\U0001f3a8", "id": key,
        "source": "clicks", "meta": {"rank": 3},
    }  # fmt: skip
    known = folder.images(root)
    (read,) = generated.read([kept.folder / clicks.TRIPLETS], known, root)
    (triplet,) = read.triplets
    assert (read.name, triplet.reference, triplet.target) == ("clicks", "a.png", "b.png")
    assert triplet.texts == ("but red \u05d0\U0001f3a8",)
    assert kept.counts() == {"triplets": 1, "excluded": 0}


def test_the_same_click_stands_once_and_undo_takes_it_back(kept):
    first, second = kept.save("a.png", "red", "b.png"), kept.save("b.png", "red", "a.png")
    assert kept.save("a.png", " red", "b.png") == first != second
    bad = kept.exclude("a.png", "blue", "b.png")
    assert kept.counts() == {"triplets": 2, "excluded": 1}
    assert [r["excluded"] for r in lines(kept, clicks.EXCLUDED)] == ["b.png"]
    assert kept.undo(first) and not kept.undo(first) and not kept.undo("nothing")
    assert [r["id"] for r in lines(kept)] == [second]
    assert kept.undo(bad) and kept.counts() == {"triplets": 1, "excluded": 0}


def test_an_answer_cannot_be_none_as_well(kept):
    kept.save("a.png", "red", "b.png")
    with pytest.raises(Refused, match=r"b.png stands as the answer to this question; undo"):
        kept.exclude("a.png", "red", "b.png")
    kept.exclude("a.png", "green", "b.png")
    with pytest.raises(Refused, match=r"b.png stands as no answer"):
        kept.save("a.png", "green", "b.png")


@pytest.mark.parametrize("name", ["c.png", "d.png", "e.png", "f.png"])
def test_what_is_held_out_never_gets_in(kept, name, root):
    """c and d are named by val.jsonl; e is a copy, f a link."""
    for save in (kept.save, kept.exclude):
        for pair in ((name, "a.png"), ("a.png", name)):
            with pytest.raises(Refused, match=rf"{name} is one of the pictures that .*data is"):
                save(pair[0], "red", pair[1])
    assert kept.counts() == {"triplets": 0, "excluded": 0}


def test_files_of_one_size_that_differ_are_not_held_out(tmp_path):
    for name, content in (("a", b"x" * 9), ("b", b"x" * 8 + b"y")):
        (tmp_path / name).write_bytes(content)
    held = HeldOut([str(tmp_path / "a")], "it")
    assert len(held) == 1 and held.holds(str(tmp_path / "a"))
    assert not held.holds(str(tmp_path / "b"))
    with pytest.raises(Refused, match="cannot be compared"):
        held.holds(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.png", " \n ", "b.png"), "needs the text"),
        (("a.png", "red", "a.png"), "is the reference itself"),
        (("a.png", "x" * 2001, "b.png"), "2,001 characters, the limit is 2,000"),
        (("a.png", "\ud800", "b.png"), "half a character"),
    ],
)
def test_what_is_no_triplet(kept, arguments, message):
    for save in (kept.save, kept.exclude):
        with pytest.raises(Refused, match=message):
            save(*arguments)
    assert not kept.folder.exists()


def test_many_at_once_lose_nothing(kept, root, tmp_path):
    other = Clicks(tmp_path / "index", lambda name: str(root / "images" / name))
    with ThreadPoolExecutor(8) as pool:
        keys = list(
            pool.map(lambda n: (kept, other)[n % 2].save("a.png", f"text {n}", "b.png"), range(40))
        )
    assert len({*keys}) == 40 and {r["id"] for r in lines(kept)} == {*keys}


def test_a_folder_that_cannot_be_written(root, tmp_path):
    (tmp_path / "index").write_text("a file")
    kept = Clicks(tmp_path / "index", lambda name: str(root / "images" / name))
    with pytest.raises(Refused, match="cannot be written"):
        kept.save("a.png", "red", "b.png")


def test_damaged_clicks_are_named_and_kept(kept, root, tmp_path):
    kept.save("a.png", "red", "b.png")
    path = kept.folder / clicks.TRIPLETS
    for bad, message in (
        ("{", "triplets.jsonl:2"),
        ('{"reference": "a", "target": "b", "text": "x"}', "triplets.jsonl:2 has no id"),
        ('{"reference": "a", "target": "b", "id": "1"}', "triplets.jsonl:2"),
    ):
        whole = path.read_text()
        path.write_text(whole + bad + "\n")
        with pytest.raises(UserError, match=message):
            kept.save("b.png", "blue", "a.png")
        assert path.read_text() == whole + bad + "\n"
        path.write_text(whole)
