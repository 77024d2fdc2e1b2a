# SPDX-License-Identifier: Apache-2.0
"""Squares on disk: whoever is killed, whatever is damaged, however many write, a row is right."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cir_jax.data import pixel_files
from tests.data.numbered_squares import SIDE, fill, identity, opened, place, square

ROW = SIDE * SIDE * 3
COUNT = 2000


def numbers_of(store, count):
    """The numbers whose squares are there; every one that is must be right."""
    found = set()
    for number in range(count):
        row = store.find(place(number))
        pixels = None if row is None else store.read(row)
        if pixels is not None:
            assert row.identity == identity(number)
            np.testing.assert_array_equal(pixels, square(number))
            found.add(number)
    return found


def test_what_was_written_is_there_for_later_processes(tmp_path):
    store = fill(tmp_path, range(20))
    assert numbers_of(store, 25) == numbers_of(opened(tmp_path), 25) == set(range(20))
    assert opened(tmp_path).missing({place(n) for n in range(25)}) == 5
    store.close()
    again = fill(tmp_path, range(20, 25))  # takes the files over
    assert numbers_of(again, 25) == set(range(25))
    assert len(list(tmp_path.glob("*.pixels"))) == 1
    with pytest.raises(ValueError, match="square of"):
        again.write(place(0), identity(0), np.zeros((8, 8, 3), np.uint8))


def test_other_preprocessing_has_another_folder(monkeypatch):
    one = pixel_files.folder_of("pad=none", 16)
    assert one != pixel_files.folder_of("pad=square", 16)
    assert one != pixel_files.folder_of("pad=none", 32)
    monkeypatch.setattr(pixel_files.picture_files.PIL, "__version__", "0.1")
    assert one != pixel_files.folder_of("pad=none", 16)


def test_killed_writers_leave_only_whole_rows(tmp_path):
    """The same command, killed at any moment, again and again, and taken up each time."""
    command = [sys.executable, "-m", "tests.data.numbered_squares", str(tmp_path), str(COUNT)]
    before, draw = set(), random.Random(5)
    for _ in range(3):
        until = (len(before) + draw.randrange(5, 450)) * pixel_files._BYTES
        with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
            while process.poll() is None and sum(map(size_of, tmp_path.glob("*.index"))) < until:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        now = numbers_of(opened(tmp_path), COUNT)
        assert now >= before
        before = now
    assert before
    store = fill(tmp_path, range(COUNT))
    assert numbers_of(store, COUNT) == set(range(COUNT))
    assert [size_of(path) for path in tmp_path.glob("*.pixels")] == [COUNT * ROW]


def size_of(path):
    return path.stat().st_size


def damage(path, where, content):
    with path.open("r+b") as file:
        file.seek(where)
        file.write(content)


@pytest.mark.parametrize(
    ("suffix", "where", "lost"),
    [
        (".pixels", 3 * ROW + 40, {3}),  # a flipped value
        (".index", 2 * pixel_files._BYTES + 20, {2}),  # another time of its file
        (".index", 4 * pixel_files._BYTES, {4}),  # another place
    ],
)
def test_damaged_rows_are_none_and_are_written_anew(tmp_path, suffix, where, lost):
    fill(tmp_path, range(8)).close()
    [path] = tmp_path.glob(f"*{suffix}")
    before = path.read_bytes()
    damage(path, where, bytes([before[where] ^ 1]))
    store = opened(tmp_path)
    assert numbers_of(store, 8) == set(range(8)) - lost
    for number in lost:
        store.write(place(number), identity(number), square(number))
    store.close()
    assert numbers_of(opened(tmp_path), 8) == set(range(8))
    assert path.stat().st_size <= len(before) + len(lost) * ROW


@pytest.mark.parametrize("suffix", [".pixels", ".index"])
def test_files_that_were_cut_lose_their_end_alone(tmp_path, suffix):
    fill(tmp_path, range(8)).close()
    [path] = tmp_path.glob(f"*{suffix}")
    os.truncate(path, path.stat().st_size * 6 // 10 + 3)
    store = opened(tmp_path)
    assert numbers_of(store, 8) == set(range(4))
    for number in range(4, 8):
        store.write(place(number), identity(number), square(number))
    store.close()
    assert numbers_of(opened(tmp_path), 8) == set(range(8))


def test_writers_at_a_time_have_files_of_their_own_and_read_all(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_files, "_AGAIN", 0.0)
    one, other = opened(tmp_path), opened(tmp_path)
    for number in range(0, 20, 2):
        one.write(place(number), identity(number), square(number))
        other.write(place(number + 1), identity(number + 1), square(number + 1))
    assert numbers_of(one, 20) == numbers_of(other, 20) == set(range(20))
    assert len(list(tmp_path.glob("*.pixels"))) == 2


def test_a_changed_file_replaces_its_row_whoever_wrote_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_files, "_AGAIN", 0.0)
    one, other = fill(tmp_path, range(3)), opened(tmp_path)
    assert other.find(place(1)) is not None
    other.write(place(1), identity(1, time=9), square(101))
    other.write(place(1), identity(1, time=9), square(102))
    for store in (other, opened(tmp_path), opened(tmp_path)):
        row = store.find(place(1))
        assert row.identity.time == 9
        np.testing.assert_array_equal(store.read(row), square(102))
    assert len(one._rows) == 3
    sizes = sorted(path.stat().st_size for path in tmp_path.glob("*.pixels"))
    assert sizes == [ROW, 3 * ROW]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_ends_in_a_line(tmp_path, monkeypatch, capsys, code):
    store, write, written = opened(tmp_path), os.pwrite, []

    def limited(file, content, offset):
        """A disk that takes a part of what it is given, and then no more."""
        if sum(written) > 5 * ROW:
            raise OSError(code, os.strerror(code))
        written.append(write(file, content[:500], offset))
        return written[-1]

    monkeypatch.setattr(os, "pwrite", limited)
    kept = [store.write(place(n), identity(n), square(n)) for n in range(12)]
    assert kept[:4] == [True] * 4 and not any(kept[6:])
    told = capsys.readouterr().out
    assert told.count(f"no more are kept in {tmp_path} ({os.strerror(code)})") == 1
    assert "set CIR_JAX_CACHE to a folder on another disk" in told
    assert numbers_of(store, 12) == {n for n in range(12) if kept[n]}
    assert numbers_of(opened(tmp_path), 12) == {n for n in range(12) if kept[n]}


def test_a_share_of_the_disk_stays_free(tmp_path, monkeypatch, capsys):
    usage = pixel_files.shutil._ntuple_diskusage
    left = [usage(100_000_000, 0, 60_000_000), usage(100_000_000, 0, 20_000_000)]
    monkeypatch.setattr(pixel_files, "_LOOK", 2)
    monkeypatch.setattr(pixel_files.shutil, "disk_usage", lambda place: left.pop(0))
    store = opened(tmp_path, leave=0.2)
    assert [store.write(place(n), identity(n), square(n)) for n in range(4)] == [True] * 2 + [
        False
    ] * 2
    assert "20.0 MB of 100.0 MB are free there, and 20% stay free" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_ends_in_a_line(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    store = opened(tmp_path / "file" / "pixels")
    assert not store.write(place(1), identity(1), square(1))
    assert store.find(place(1)) is None
    assert "no more are kept" in capsys.readouterr().out
