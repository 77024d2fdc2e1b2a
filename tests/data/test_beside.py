# SPDX-License-Identifier: Apache-2.0
"""What is kept beside a file is found again, and made again where it is stale or damaged."""

import os
import threading
import time

import pytest

from cir_jax.data import beside
from cir_jax.errors import UserError

OLD = 1_600_000_000_000_000_000


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "data" / "made.jsonl"
    file.parent.mkdir()
    file.write_text("one\n" * 5000)
    os.utime(file, ns=(OLD, OLD))
    return file


def kept(source):
    return source.parent / ".cir_jax" / "made.jsonl.letters"


class Maker:
    """Keeps the first letters of a file, and counts how often it does."""

    def __init__(self, source, key="k"):
        self.source, self.key, self.made = source, key, 0

    def __call__(self):
        return beside.kept(self.source, "letters", {"key": self.key}, self.make, self.load)

    def make(self, folder):
        self.made += 1
        (folder / "letters").write_text(self.source.read_text()[:3])
        (folder / "more").write_bytes(bytes(100))
        return {"count": 3}

    def load(self, folder, noted):
        assert noted == {"count": 3}
        return folder, (folder / "letters").read_text()


def test_it_is_made_once_and_found_again(source):
    make = Maker(source)
    assert make()[1] == "one"
    assert make() == (kept(source), "one") and make.made == 1
    other = Maker(source, "another key")
    assert other()[1] == "one" and other.made == 1
    assert make() and make.made == 2  # the newest key has the place


def test_what_is_stale_is_made_again(source):
    make = Maker(source)
    make()
    os.utime(source, ns=(OLD + 10**9,) * 2)  # copied: the same content with another time
    assert make()[1] == "one" and make.made == 1
    content = source.read_text()
    middle = 2000  # neither the start, the middle nor the end, where samples are taken
    source.write_text(content[: 3 * middle] + "ONE" + content[3 * middle + 3 :])
    os.utime(source, ns=(OLD + 2 * 10**9,) * 2)
    make()
    assert make.made == 2
    source.write_text("two\n" * 5000)
    os.utime(source, ns=(OLD,) * 2)  # the same size and time
    assert make()[1] == "two" and make.made == 3
    source.write_text("two\n" * 6000)
    assert make()[1] == "two" and make.made == 4
    source.write_text("six\n" * 6000)  # just now, perhaps within one tick of the clock
    assert make()[1] == "six"


@pytest.mark.parametrize("how", ["bit", "cut", "gone", "record", "words", "more", "file"])
def test_what_is_damaged_is_made_again(source, how):
    make = Maker(source)
    make()
    place = kept(source)
    if how == "bit":
        content = bytearray((place / "more").read_bytes())
        content[50] ^= 1
        (place / "more").write_bytes(content)
    elif how == "cut":
        (place / "more").write_bytes(bytes(99))
    elif how == "gone":
        (place / "letters").unlink()
    elif how == "record":
        (place / "record.json").unlink()
    elif how == "words":
        (place / "record.json").write_text('{"origin": 1')
    elif how == "more":
        (place / "stranger").write_text("x")
    else:
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
        place.write_text("a file of this name")
    assert make()[1] == "one" and make.made == 2
    assert make() == (place, "one") and make.made == 2


def test_the_cache_folder_is_used_where_the_place_cannot_be_written(source, monkeypatch, tmp_path):
    (source.parent / ".cir_jax").write_text("in the way")
    make = Maker(source)
    assert make()[1] == "one"
    assert make()[0].is_relative_to(tmp_path / "cache") and make.made == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"letters of .*made.jsonl has no place: neither can be"):
        make()


def test_a_killed_writer_leaves_nothing_that_counts(source):
    make = Maker(source)
    make.make = lambda folder: (folder / "letters").write_text("o") and 1 / 0
    with pytest.raises(ZeroDivisionError):
        make()
    folder = source.parent / ".cir_jax"
    assert [file.name for file in folder.iterdir()] == ["made.jsonl.letters.lock"]
    left = folder / ".made.jsonl.letters.partial-killed"
    left.mkdir()
    (left / "letters").write_text("o")
    assert Maker(source)()[1] == "one" and not left.exists()


@pytest.mark.parametrize("locks", [True, False])
def test_two_writers_do_no_harm(source, monkeypatch, locks):
    """With locks one waits for the other; without, each makes its own, and both are right."""
    if not locks:
        monkeypatch.setattr(beside, "FileLock", lambda path: (_ for _ in ()).throw(OSError()))
    make, found = Maker(source), []
    real = make.make
    make.make = lambda folder: (time.sleep(0.2), real(folder))[1]
    writers = [threading.Thread(target=lambda: found.append(make())) for _ in range(3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [letters for _, letters in found] == ["one"] * 3
    assert make.made == (1 if locks else 3)
    left = {file.name for file in (source.parent / ".cir_jax").iterdir()}
    assert left - {"made.jsonl.letters.lock"} == {"made.jsonl.letters"}


def test_a_file_that_changes_while_it_is_read_is_refused(source):
    make = Maker(source)
    real = make.make
    make.make = lambda folder: (source.write_text("other"), real(folder))[1]
    with pytest.raises(UserError, match=r"made.jsonl changed while it was read"):
        make()
    make.make = real
    assert make()[1] == "oth"
    source.unlink()
    with pytest.raises(UserError, match=r"made.jsonl cannot be read"):
        make()
