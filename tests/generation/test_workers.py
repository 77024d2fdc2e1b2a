# SPDX-License-Identifier: Apache-2.0
"""Many workers in one work folder: the triplets of one process, nothing asked twice, none lost."""

import threading
from collections import Counter

import pytest

from cir_jax.errors import UserError
from cir_jax.generation import dedupe, image_hashes, journal, steps, workers
from cir_jax.generation.workers import Share, Workers
from cir_jax.main import main
from tests.generation import pictures
from tests.generation.shared_work import AGAIN, SAME, in_turns, rewriting, worker


@pytest.fixture
def root(tmp_path):
    """Twelve pictures, the last the same as the first."""
    return pictures.folder(tmp_path / "in")


@pytest.fixture
def counting(tmp_path):
    return pictures.Counting(tmp_path)


def without_dates(file):
    return [{k: v for k, v in record.items() if k != "date"} for record in pictures.lines(file)]


@pytest.mark.parametrize("kind", ["captions", "near", "rewrites", "texts"])
def test_the_merge_is_what_one_process_makes(kind, tmp_path, root, counting):
    changes = list(counting.sets)
    if kind == "near":
        changes.append("dedupe.near=8")
    if kind in ("rewrites", "texts"):
        changes += [*rewriting(counting), "rewrite.texts=2"]
    if kind == "texts":
        rows = "".join(f"{i:02d}.png,number {i}\n" for i in range(12))
        (tmp_path / "texts.csv").write_text("image,caption\n" + rows)
        changes = [c for c in changes if not c.startswith("caption.")]
        changes += ["caption.captioner=texts", "caption.model="]
        changes.append(f"caption.file={tmp_path / 'texts.csv'}")
    one, made = tmp_path / "one", tmp_path / "made"
    assert pictures.make(one, root, *changes) == 0
    asked = counting.asked()
    in_turns(made, root, 3, *changes)
    assert sorted(counting.asked()) == sorted(asked) and len(asked) >= 11
    assert not (made / "triplets.jsonl").exists()
    for _ in range(2):  # merging twice changes nothing
        assert pictures.make(made, root, *changes) == 0
        for name in SAME:
            assert (made / name).read_bytes() == (one / name).read_bytes(), name
        assert without_dates(made / "captions.jsonl") == without_dates(one / "captions.jsonl")
        if kind in ("rewrites", "texts"):
            texts = [without_dates(w / "rewrites.jsonl") for w in (one, made)]
            assert len(texts[0]) == 22
            assert sorted(texts[0], key=str) == sorted(texts[1], key=str)
    assert counting.asked() == []


def test_each_works_on_its_own_and_nothing_is_done_twice(tmp_path, root, counting):
    made = tmp_path / "made"
    in_turns(made, root, 3, *counting.sets)
    found = Workers(made, 3)
    hashed = [pictures.lines(found.folder(n) / dedupe.HASHES) for n in found.numbers]
    assert sorted(r["image"] for part in hashed for r in part) == [
        f"{i:02d}.png" for i in range(12)
    ]
    for number, part in zip(found.numbers, hashed, strict=True):
        assert part and {found.of(r["image"]) for r in part} == {number}
        captions = pictures.lines(found.folder(number) / "captions.jsonl")
        assert {found.of(r["image"]) for r in captions} <= {number}
    assert {key for key, _, _ in counting.asked()} == {f"{i:02d}.png" for i in range(11)}


def test_whose_work_an_image_is_never_changes():
    """Written out: another hash would make a folder that was begun be asked for everything anew."""
    found = Workers("made", 16)
    assert {name: found.of(name) for name in WORK} == WORK
    spread = Counter(Workers("made", 7).of(str(i)) for i in range(7000))
    assert set(spread) == set(range(1, 8)) and max(spread.values()) < 1200


def test_workers_wait_for_each_other(tmp_path, root, counting, monkeypatch):
    """As they do beside each other: one is there long before the other."""
    monkeypatch.setattr(workers, "_POLL", 0.02)
    made, results = tmp_path / "made", {}
    settings = pictures.config(made, root, *counting.sets, *rewriting(counting))

    def first():
        results[1] = steps.run(settings, share=Share.parse("1/2", 60))

    thread = threading.Thread(target=first)
    thread.start()
    results[2] = steps.run(settings, share=Share.parse("2/2", 60))
    thread.join(60)
    assert results[1] == results[2] == {"images": 12, "distinct": 11, "captions": 11}
    assert max(Counter(key for key, _, _ in counting.asked()).values()) == 1
    assert steps.run(settings)["triplets"] == 11


def test_workers_that_are_not_there_are_named(tmp_path, root, counting, capsys):
    made = tmp_path / "made"
    assert worker(made, root, "1,3/4", *counting.sets, wait="0.1") == AGAIN
    said = capsys.readouterr()
    assert "waiting: workers 2, 4 of 4 have not hashed their parts yet" in said.out
    assert "showed no sign of life for 0 s. Start what does not run" in said.err
    assert "--worker 2,4/4. What is done is kept: then the same command goes on" in said.err


def test_beside_a_process_that_works_alone(tmp_path, root, counting, monkeypatch, capsys):
    """It would ask for the same captions."""
    monkeypatch.setattr(workers, "_ALONE", 0.05)
    made = tmp_path / "made"
    with journal.locked(made):
        assert worker(made, root, "1/1", *counting.sets) == 2
    assert "another process is at work in" in capsys.readouterr().err
    assert counting.asked() == [] and workers.begun(made) is None
    assert worker(made, root, "1/1", *counting.sets) == 0


WRONG = [
    ("3", "--worker=3 is no worker; give its number and how many there are, e.g. 3/16"),
    ("a/3", "is no worker"),
    ("3/3/3", "is no worker"),
    ("1-2/3", "several numbers whose work this process does, e.g. 3,7/16"),
    ("0/3", "--worker=0/3: there is no worker 0 of 3; they are numbered 1 to 3"),
    ("2,4/3", "there is no worker 4 of 3"),
    ("1/0", "says 0 workers; there may be 1 to 9,999"),
    ("1/10000", "says 10000 workers"),
]


@pytest.mark.parametrize(("which", "message"), WRONG)
def test_no_such_worker(tmp_path, root, capsys, which, message):
    assert worker(tmp_path / "made", root, which) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_other_wrong_flags(tmp_path, root, capsys):
    assert worker(tmp_path / "made", root, "1/2", wait="-1") == 2
    assert "--wait=-1 is no time; give seconds" in capsys.readouterr().err
    assert main([*pictures.flags(tmp_path / "made", root), "--wait", "5"]) == 2
    assert "--wait is how long a --worker waits" in capsys.readouterr().err
    assert Share.parse("7, 3,3/16") == Share((3, 7), 16, workers.PATIENCE)


def test_a_folder_of_another_number_of_workers(tmp_path, root, counting, capsys):
    made = tmp_path / "made"
    assert worker(made, root, "1/2", *counting.sets) == AGAIN
    capsys.readouterr()
    assert worker(made, root, "1/3", *counting.sets) == 2
    said = capsys.readouterr().err
    assert (
        "made was begun by 2 workers, and these are 3; start workers of 2, e.g. --worker 1/2"
        in (said)
    )
    assert not (Workers(made, 3).folder(1) / workers.BEGUN).exists()
    assert worker(made, root, "2/2", *counting.sets) == 0
    # Two that begin at the same moment: each writes before it looks again.
    Workers(made, 3).folder(2).mkdir()
    journal.write_json(Workers(made, 3).folder(2) / workers.BEGUN, {})
    assert worker(made, root, "1/2", *counting.sets) == 2
    assert "was begun by 3 workers" in capsys.readouterr().err
    assert pictures.make(made, root, *counting.sets) == 2
    assert "was begun by 2 and by 3 workers; move the folders of one" in capsys.readouterr().err


def test_of_two_that_begin_at_once_one_sees_the_other(tmp_path, monkeypatch):
    config = pictures.config(tmp_path, "unused")
    check, seen = Workers.check, []

    def checked(self, config):
        seen.append(1)
        if len(seen) == 2:  # the other has written in between
            journal.write_json(Workers(tmp_path, 5).folder(1) / workers.BEGUN, {"seed": 42})
        check(self, config)

    monkeypatch.setattr(Workers, "check", checked)
    with pytest.raises(UserError, match="was begun by 5 workers, and these are 2"):
        Workers(tmp_path, 2).begin(Share((1,), 2), config)
    assert workers.begun(tmp_path) == Workers(tmp_path, 5)


def test_other_settings(tmp_path, root, counting, capsys):
    made = tmp_path / "made"
    assert worker(made, root, "1/2", *counting.sets) == AGAIN
    capsys.readouterr()
    assert worker(made, root, "2/2", *counting.sets, "caption.words=7") == 2
    said = capsys.readouterr().err
    assert "worker 1 of" in said and "was begun with caption.words=10, and here it is 7" in said
    # The merge, too; and nothing was written that would stand in the way of the right ones.
    assert pictures.make(made, root, *counting.sets, "seed=1") == 2
    assert "begun with seed=42, and here it is 1" in capsys.readouterr().err
    assert worker(made, root, "2/2", *counting.sets, "data.on_missing=drop") == 0


def test_merging_while_workers_are_missing(tmp_path, root, counting, capsys):
    made = tmp_path / "made"
    assert worker(made, root, "1/3", *counting.sets) == AGAIN
    assert pictures.make(made, root, *counting.sets) == 2
    said = capsys.readouterr().err
    assert "made cannot be merged: workers 2, 3 of 3 have not hashed their parts. Start" in said
    assert "--worker 2,3/3, and merge when they have ended" in said
    assert worker(made, root, "2/3", *counting.sets) == AGAIN
    assert worker(made, root, "3/3", *counting.sets) == 0
    assert worker(made, root, "1/3", *counting.sets) == 0
    capsys.readouterr()
    counting.asked()
    assert pictures.make(made, root, *counting.sets) == 2
    assert "worker 2 of 3 has not captioned its part" in capsys.readouterr().err
    assert counting.asked() == [] and not (made / "triplets.jsonl").exists()
    # A new image is nobody's yet.
    assert worker(made, root, "2/3", *counting.sets) == 0
    (root / "12.png").write_bytes((root / "05.png").read_bytes())
    assert pictures.make(made, root, *counting.sets) == 2
    assert "workers 1, 2, 3 of 3 have not hashed" in capsys.readouterr().err


def test_what_was_refused_to_workers_is_listed_and_not_asked_for_again(tmp_path, root, capsys):
    counting = pictures.Counting(tmp_path, {"03.png": ["a thing ..."], "05.png": ["", "a hat"]})
    one, made = tmp_path / "one", tmp_path / "made"
    assert pictures.make(one, root, *counting.sets) == 0
    asked = counting.asked()
    in_turns(made, root, 2, *counting.sets)
    assert sorted(counting.asked()) == sorted(asked)
    capsys.readouterr()
    assert pictures.make(made, root, *counting.sets) == 0
    assert "1 of 11 images have no caption (1 x cut at 9 tokens)" in capsys.readouterr().out
    assert counting.asked() == []
    refused = "captions_refused.jsonl"
    assert (made / refused).read_bytes() == (one / refused).read_bytes()
    assert (made / "triplets.jsonl").read_bytes() == (one / "triplets.jsonl").read_bytes()
    # A worker that is started again asks again, and the merge then has it.
    counting.answers({})
    in_turns(made, root, 2, *counting.sets)
    assert [key for key, _, _ in counting.asked()] == ["03.png"]
    assert pictures.make(made, root, *counting.sets) == 0
    assert len(pictures.lines(made / "triplets.jsonl")) == 11 and not (made / refused).exists()


def test_what_was_there_before_there_were_workers_is_not_asked_for(tmp_path, root, counting):
    made = tmp_path / "made"
    assert pictures.make(made, root, *counting.sets) == 0
    before = (made / "captions.jsonl").read_bytes()
    assert len(counting.asked()) == 11
    in_turns(made, root, 2, *counting.sets)
    assert counting.asked() == []
    assert pictures.make(made, root, *counting.sets) == 0
    assert (made / "captions.jsonl").read_bytes() == before


def test_images_that_cannot_be_used(tmp_path, root, counting, capsys):
    (root / "02.png").write_bytes(b"")
    made, one = tmp_path / "made", tmp_path / "one"
    statuses = [worker(made, root, f"{n}/2", *counting.sets) for n in (1, 2)]
    assert sorted(statuses) == [2, AGAIN]  # the one whose image it is says so
    assert "1 empty (0 bytes)" in capsys.readouterr().err
    drop = (*counting.sets, "data.on_missing=drop")
    in_turns(made, root, 2, *drop)
    assert pictures.make(made, root, *drop) == pictures.make(one, root, *drop) == 0
    assert (made / "triplets.jsonl").read_bytes() == (one / "triplets.jsonl").read_bytes()


def test_hashes_of_others(tmp_path, root):
    """Of copies elsewhere, with other times; of a file that was replaced, those of what is here."""
    paths = {f.name: str(f) for f in sorted(root.iterdir())}
    files = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    parts = [dict(list(paths.items())[:5]), dict(list(paths.items())[5:])]
    for part, file in zip(parts, files, strict=True):
        image_hashes.hash_images(part, file)
    whole = image_hashes.hash_images(paths, tmp_path / "all.jsonl")
    assert image_hashes.gathered(paths, files, False) == whole
    records = pictures.lines(files[0])
    other = records[0] | {"file": [1, 2], "pixels": "of another time"}
    journal.write_lines(files[0], [records[0], other, *[r | {"file": [3]} for r in records[1:]]])
    assert image_hashes.gathered(paths, files, False) == whole
    journal.write_lines(files[0], [other | {"file": [0]}, other, *records[1:]])
    assert image_hashes.gathered(paths, files, False).pixels["00.png"] == "of another time"
    with pytest.raises(
        UserError, match=r"lack 12 of 12 images, '00.png' the first; start the work"
    ):
        image_hashes.gathered(paths, files, True)
    files[1].write_text("{}\n")
    with pytest.raises(UserError, match=r"2.jsonl:1 is no record of an image; remove that line"):
        image_hashes.gathered(paths, files, False)


# Name -> worker of 16: the first 8 bytes of its SHA-256, modulo 16, and one.
WORK = {"00.png": 12, "01.png": 12, "02.png": 4, "a/é.jpg": 9}
