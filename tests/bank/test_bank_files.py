# SPDX-License-Identifier: Apache-2.0
"""Files of a growing bank: other makers' rows, kills, full disks, and folders that are none."""

import errno
import json
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from cir_jax.bank import build, files, folders
from cir_jax.errors import UserError
from cir_jax.runtime import checksums

KIND = np.dtype("float32")
ARRAYS = {"targets": ((10, 1, 64), KIND), "references": ((20, 8, 64), KIND)}


def add(writer, items, value):
    """Rows of so many items."""
    writer.add("targets", np.full((items, 1, 64), value))
    writer.add("references", np.full((2 * items, 8, 64), value))


def begun(folder, maker, items, value=1.0):
    """A build that was killed behind so many items, the last of its record."""
    writer = files.Writer(folder, ARRAYS, {"parameters": maker})
    with writer:
        writer.start(0, dict.fromkeys(ARRAYS, 0))
        add(writer, items, value)
        writer.commit(items, every=0.0)


def gone_on(folder, maker="A", value=1.0):
    """Goes on to the end; (where it went on, the rows of the bank)."""
    writer = files.Writer(folder, ARRAYS, {"parameters": maker})
    done = writer.done
    with writer:
        writer.start(done, {"targets": done, "references": 2 * done})
        add(writer, 10 - done, value)
        writer.finish(10)
    assert sorted(p.name for p in folder.iterdir()) == [
        "bank.json",
        "references.npy",
        "references.sums",
        "targets.npy",
        "targets.sums",
    ]
    return done, files.load(folder, {"parameters": maker})["targets"]


def test_rows_of_another_maker_are_not_taken_up(tmp_path):
    begun(tmp_path, "A", 5)
    with files.Writer(tmp_path, ARRAYS, {"parameters": "B"}) as writer:
        assert writer.done == 0
        writer.start(0, dict.fromkeys(ARRAYS, 0))
        add(writer, 7, 2.0)  # and is killed before it has noted anything
    done, targets = gone_on(tmp_path)
    assert done == 0 and (targets == 1.0).all()


@pytest.mark.parametrize("renamed", [("targets",), ("targets", "references")])
def test_a_kill_while_files_get_their_names(renamed, tmp_path):
    begun(tmp_path, "A", 10)
    for name in renamed:
        (tmp_path / f"{name}.npy.part").replace(tmp_path / f"{name}.npy")
    done, targets = gone_on(tmp_path)
    assert done == 10 and (targets == 1.0).all()


def test_files_without_their_record_are_begun_anew(tmp_path):
    """A file of a bank is no part of a build that is not at its end."""
    begun(tmp_path, "A", 5)
    (tmp_path / "targets.npy.part").replace(tmp_path / "targets.npy")
    assert gone_on(tmp_path)[0] == 0


def test_room_of_what_is_cut_off_counts(tmp_path, monkeypatch):
    begun(tmp_path, "A", 10)
    needed = 10 * 64 * 4 + 20 * 8 * 64 * 4
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)

    def lacking(maker):
        return files.Writer(tmp_path, ARRAYS, {"parameters": maker}).lacks_room()

    assert not lacking("B")
    (tmp_path / "references.npy.part").replace(tmp_path / "references.npy")
    assert not lacking("B") and not lacking("A")
    (tmp_path / "references.npy").unlink()
    assert f"needs {needed / 1e3:.1f} kB in" in lacking("B") and "3.7 kB are free" in lacking("B")
    free.free = 5000
    begun(tmp_path, "A", 9)  # whose own rows stay: room for a tenth is wanted
    assert "the bank needs 4.4 kB" not in lacking("A")
    free.free = 3000
    assert "the bank needs 4.4 kB" in lacking("A")


def version_of(path):
    return json.loads(path.read_text())["version"]


def set_version(path, version):
    """Rewrites a record with this version, or as 0.1.0 wrote it: with none, nor checksums."""
    content = json.loads(path.read_text()) | {"version": version}
    content.pop(checksums.OWN, None)
    if version is None:
        for name in ("version", "checksums", "tails"):
            content.pop(name, None)
        path.write_text(json.dumps(content))
    else:
        path.write_bytes(checksums.sealed(content))


def test_versions_of_a_bank(tmp_path):
    begun(tmp_path, "A", 10)
    gone_on(tmp_path)
    record = tmp_path / files.RECORD
    assert version_of(record) == files.VERSION == 2
    set_version(record, None)  # as version 0.1.0 wrote it
    assert len(files.load(tmp_path, {"parameters": "A"})["targets"]) == 10
    set_version(record, 3)
    message = (
        r"the bank in .* is of version 3 of its format, and this code reads versions 1 to 2; upd"
    )
    with pytest.raises(UserError, match=message):
        files.load(tmp_path, {"parameters": "A"})


def test_versions_of_a_bank_that_was_begun(tmp_path):
    begun(tmp_path, "A", 5)
    record = tmp_path / files.PARTIAL
    assert version_of(record) == files.VERSION == 2
    set_version(record, 3)
    with pytest.raises(
        UserError, match=r"was begun in .* is of version 3 .* reads versions 1 to 2; u"
    ):
        files.Writer(tmp_path, ARRAYS, {"parameters": "A"})
    set_version(record, None)
    done, targets = gone_on(tmp_path)
    assert done == 5 and (targets == 1.0).all()


def use(folder):
    """Reads all of a bank, as training does."""
    rows = files.load(folder, MADE_OF, STORED)
    assert files.check(rows["targets"], [(0, 10)])
    with ThreadPoolExecutor(2) as pool:
        files.Store(rows["references"]).read(range(20), pool)


STORED = ARRAYS | {"references": ((20, 8, 64), np.dtype(ml_dtypes.bfloat16))}
MADE_OF = {"parameters": "A", "references": "R"}


def stored(folder):
    """A whole bank whose references are read row by row."""
    with files.Writer(folder, STORED, MADE_OF) as writer:
        writer.start(0, dict.fromkeys(STORED, 0))
        add(writer, 10, 0.1)
        writer.finish(10)


def test_a_flipped_bit_is_found_in_every_file_of_a_bank(tmp_path):
    stored(tmp_path)
    use(tmp_path)
    found = sorted(p for p in tmp_path.iterdir() if p.suffix in (".npy", ".sums", ".json"))
    assert len(found) == 5
    for file in found:
        content = file.read_bytes()
        places = {0, 8, 70, len(content) // 2, len(content) - 1}  # headers have 128 bytes
        for at in (at for at in places if at < len(content)):
            harmed = bytearray(content)
            harmed[at] ^= 2
            file.write_bytes(harmed)
            with pytest.raises(UserError, match=r"the bank in .* is (damaged \(|of version)"):
                use(tmp_path)
        file.write_bytes(content)
    use(tmp_path)


def test_a_bank_of_zeros_is_refused(tmp_path):
    stored(tmp_path)
    file = tmp_path / "targets.npy"
    content = file.read_bytes()
    file.write_bytes(content[:128] + bytes(len(content) - 128))
    message = (
        r"is damaged \(bytes 0 to 2,560 of its rows in targets.npy fail their checksum\); delete"
    )
    with pytest.raises(UserError, match=message):
        use(tmp_path)


@pytest.mark.parametrize("name", ["targets.sums", "references.sums", "references.npy"])
def test_a_file_of_a_bank_that_is_missing(name, tmp_path):
    stored(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"is damaged \(.*{name}.*\); delete it"):
        use(tmp_path)


@pytest.mark.parametrize("where", ["the record", "the rows", "the checksums"])
def test_a_bank_that_cannot_be_read_now_is_not_called_damaged(where, tmp_path, monkeypatch):
    stored(tmp_path)

    def away(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        if where == "the record":
            broken.setattr(Path, "read_bytes", away)
        elif where == "the rows":
            broken.setattr(np, "load", away)
        else:
            broken.setattr(files.Sums, "check", away)
        message = r"the bank in .* could not be read \(.*Input/output error\); if the storage was"
        with pytest.raises(UserError, match=message):
            use(tmp_path)
    use(tmp_path)


def test_only_the_rows_that_are_used_are_checked(tmp_path):
    """Of a large bank each process checks its own; a block is some rows of 64 KB together."""
    arrays, made_of = {"targets": ((4000, 1, 64), KIND)}, {"parameters": "A"}
    with files.Writer(tmp_path, arrays, made_of) as writer:
        writer.start(0, {"targets": 0})
        for _ in range(8):
            writer.add("targets", np.ones((500, 1, 64)))
        writer.finish(4000)
    file = tmp_path / "targets.npy"
    harmed = bytearray(file.read_bytes())
    harmed[128 + 600 * 256] ^= 1  # row 600, in the third block of 256 rows
    file.write_bytes(harmed)
    rows = files.load(tmp_path, made_of, arrays)["targets"]
    assert files.check(rows, [(0, 512), (768, 4000)])
    for span in ((512, 768), (0, 4000), (767, 768)):
        with pytest.raises(UserError, match=r"bytes 131,072 to 196,608 of its rows in targets.np"):
            files.check(rows, [span])


def test_the_shape_of_an_older_bank_is_compared(tmp_path):
    begun(tmp_path, "A", 10)
    gone_on(tmp_path)
    set_version(tmp_path / files.RECORD, None)
    rows = files.load(tmp_path, {"parameters": "A"}, ARRAYS)["targets"]
    assert not files.check(rows, [(0, 10)])  # it has no checksums
    other = {"targets": ((5, 2, 64), KIND)}
    message = r"targets.npy says that it holds float32 \[10, 1, 64\], and float32 \[5, 2, 64\] were"
    with pytest.raises(UserError, match=message):
        files.load(tmp_path, {"parameters": "A"}, other)


@pytest.mark.parametrize("where", ["tail", "full block"])
def test_rows_that_were_damaged_while_a_build_stood_still(where, tmp_path, capsys):
    """Those of the last block are found as the build goes on, and others when the bank is read."""
    arrays, made_of = {"targets": ((2000, 1, 64), KIND)}, {"parameters": "A"}
    with files.Writer(tmp_path, arrays, made_of) as writer:
        writer.start(0, {"targets": 0})
        writer.add("targets", np.ones((1000, 1, 64)))
        writer.commit(1000, every=0.0)
    file = tmp_path / "targets.npy.part"
    harmed = bytearray(file.read_bytes())
    harmed[128 + 256 * (990 if where == "tail" else 10)] ^= 1
    file.write_bytes(harmed)
    with files.Writer(tmp_path, arrays, made_of) as writer:
        assert writer.done == 1000
        begun_at = writer.start(1000, {"targets": 1000})
        assert begun_at == (0 if where == "tail" else 1000)
        writer.add("targets", np.ones((2000 - begun_at, 1, 64)))
        writer.finish(2000)
    rows = files.load(tmp_path, made_of, arrays)["targets"]
    if where == "tail":
        assert "are damaged: its bank is built anew" in capsys.readouterr().out
        assert files.check(rows, [(0, 2000)]) and (rows == 1).all()
    else:
        with pytest.raises(UserError, match="bytes 0 to 65,536 of its rows"):
            files.check(rows, [(0, 2000)])


@contextmanager
def largest_file(size):
    """As a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 20000])  # in the header, and at some row
def test_a_full_disk(size, tmp_path):
    writer = files.Writer(tmp_path, ARRAYS, {"parameters": "A"})
    full = r"(targets|references).npy.part cannot be written \(File too large\); what it held is k"
    with largest_file(size), pytest.raises(UserError, match=full), writer:
        writer.start(0, dict.fromkeys(ARRAYS, 0))
        for _ in range(10):
            add(writer, 1, 1.0)
        writer.commit(10, every=0.0)
    assert (gone_on(tmp_path)[1] == 1.0).all()


def test_a_full_disk_keeps_what_is_noted(tmp_path):
    begun(tmp_path, "A", 3)
    writer = files.Writer(tmp_path, ARRAYS, {"parameters": "A"})
    with largest_file(20000), pytest.raises(UserError, match=r"cannot be written"), writer:
        writer.start(3, {"targets": 3, "references": 6})
        add(writer, 7, 2.0)
    assert json.loads((tmp_path / files.PARTIAL).read_text())["done"] == 3
    done, targets = gone_on(tmp_path)
    assert done == 3 and (targets == 1.0).all()


@pytest.mark.parametrize("below", ["", "disk"])
def test_a_file_is_no_folder(below, tmp_path):
    (tmp_path / "bank").write_text("a file")
    message = r"the bank cannot be in .*bank.* \((File exists|Not a directory)\); set loss.bank_pa"
    with pytest.raises(UserError, match=message):
        folders.make(tmp_path / "bank" / below)


def test_one_run_builds_at_a_time(tmp_path):
    held = folders.lock(tmp_path)
    message = r"another run is building the bank in .*; wait for it, or set loss.bank_path to anot"
    with pytest.raises(UserError, match=message):
        folders.lock(tmp_path)
    held.release()
    folders.lock(tmp_path).release()


def test_a_failure_elsewhere_stops_this_process_too(monkeypatch):
    assert build._in_every_process(lambda: 3, "it says why") == 3
    monkeypatch.setattr(build, "_everywhere", lambda here: False)
    with pytest.raises(UserError, match="it says why"):
        build._in_every_process(lambda: 3, "it says why")


@pytest.mark.parametrize("rows", [11, 2**63, -1])
def test_more_rows_than_the_bank_has_are_begun_anew(rows, tmp_path, capsys):
    """As many as a record says that anybody may have made."""
    with files.Writer(tmp_path, ARRAYS, MADE_OF) as writer:
        assert writer.start(0, dict.fromkeys(ARRAYS, 0)) == 0
        add(writer, 4, 0.1)
        assert writer.start(4, dict.fromkeys(ARRAYS, rows)) == 0
    assert "are damaged: its bank is built anew" in capsys.readouterr().out
    assert writer.missing() == sum(np.prod(s) * np.dtype(k).itemsize for s, k in ARRAYS.values())
