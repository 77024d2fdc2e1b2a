# SPDX-License-Identifier: Apache-2.0
"""Files between the steps, on a disk that is full, after a kill, and with two processes."""

import json
import multiprocessing
import subprocess
import sys
import time

import pytest

from cir_jax.errors import UserError
from cir_jax.generation import journal
from tests.generation import pictures

RECORDS = [{"n": i, "text": "é" * 20} for i in range(5)]


def written(file):
    return [record for _, record in journal.Journal(file).records()]


def test_records_come_back(tmp_path):
    file = tmp_path / "deep" / "j.jsonl"
    with journal.Journal(file, sync_every=2) as one:
        one.add(*RECORDS[:2])
        one.add(RECORDS[2])
        assert [w for w, _ in one.records()] == [f"{file}:{n}" for n in (1, 2, 3)]
        assert [r for _, r in one.records()] == RECORDS[:3]
    odd = {"name": "a\udcff\\udcff\n\u2028b", "reply": "\ud83d"}  # no UTF-8
    with journal.Journal(file) as one:
        one.add(odd)
    assert written(file) == [*RECORDS[:3], odd]
    assert len(file.read_bytes().split(b"\n")) == 5


@pytest.mark.parametrize("size", [1, 70_000, 200_000])
def test_a_torn_last_line_is_cut(tmp_path, size):
    file = tmp_path / "j.jsonl"
    with journal.Journal(file) as one:
        one.add(*RECORDS)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"n": 5, "text": "' + b"x" * size)
    with journal.Journal(file) as one:
        one.add({"n": 5})
    assert file.read_bytes() == whole + b'{"n": 5}\n'
    file.write_bytes(whole[:20])
    assert written(file) == [] and file.read_bytes() == b""


@pytest.mark.parametrize("damage", [b"\0" * 30, b'{"n": 1', b"[1]", b"\xff\xfe{}"])
def test_a_damaged_line_in_the_middle(tmp_path, damage):
    file = tmp_path / "j.jsonl"
    with journal.Journal(file) as one:
        one.add(*RECORDS)
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
    with pytest.raises(UserError, match=r"j.jsonl(:3 is| is not UTF-8 text)"):
        written(file)


FULL = """
import resource, sys
from pathlib import Path
from cir_jax.errors import UserError
from cir_jax.generation import journal
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder = Path(sys.argv[1])
try:
    with journal.Journal(folder / "j.jsonl") as one:
        for i in range(100):
            one.add({"n": i, "text": "x" * 50})
            print(i)
except UserError as error:
    print(error)
for write, content in (
    (journal.write_json, ["x" * 2000]),
    (journal.write_lines, ({"n": i} for i in range(500))),
    (journal.write_array, ({"n": i} for i in range(500))),
):
    try:
        write(folder / "w.json", content)
    except UserError as error:
        print(error)
"""


def test_a_full_disk(tmp_path):
    """The kernel refuses to let files grow: the last complete record is there, and the old file."""
    journal.write_json(tmp_path / "w.json", {"old": True})
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=60
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0 and len(said) == 14 + 4, done.stdout + done.stderr
    assert "j.jsonl cannot be written (File too large); what it held is kept" in said[14]
    assert [line.split()[0] for line in said[15:]] == [str(tmp_path / "w.json")] * 3
    assert json.loads((tmp_path / "w.json").read_text()) == {"old": True}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["j.jsonl", "w.json"]
    content = (tmp_path / "j.jsonl").read_bytes()
    assert content.endswith(b"}\n") and len(content) <= 1000
    with journal.Journal(tmp_path / "j.jsonl") as one:
        assert [r["n"] for _, r in one.records()] == list(range(14))
        one.add({"n": 14})
    assert [r["n"] for r in written(tmp_path / "j.jsonl")] == list(range(15))


def test_no_space_left(tmp_path):
    """/dev/full refuses every write, and cannot be cut back."""
    with journal.Journal(tmp_path / "j.jsonl") as one:
        one.add(RECORDS[0])
        kept, one._file = one._file, open("/dev/full", "ab", buffering=0)
        with pytest.raises(UserError, match=r"j.jsonl cannot be written \(No space left on dev"):
            one.add(RECORDS[1])
        one._file.close()
        one._file = kept
        one.add(RECORDS[2])
    assert written(tmp_path / "j.jsonl") == [RECORDS[0], RECORDS[2]]
    (tmp_path / "w.json.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"w.json cannot be written \(No space left on device\)"):
        journal.write_lines(tmp_path / "w.json", RECORDS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["j.jsonl"]


def test_an_error_of_the_caller_leaves_the_old_file(tmp_path):
    journal.write_lines(tmp_path / "w.jsonl", RECORDS[:1])

    def records():
        yield RECORDS[1]
        raise KeyError("mine")

    for write in (journal.write_lines, journal.write_array):
        with pytest.raises(KeyError, match="mine"):
            write(tmp_path / "w.jsonl", records())
    assert pictures.lines(tmp_path / "w.jsonl") == RECORDS[:1]
    assert [p.name for p in tmp_path.iterdir()] == ["w.jsonl"]


def test_arrays_and_counts(tmp_path):
    for records in ([], RECORDS):
        assert journal.write_array(tmp_path / "a.json", iter(records)) == len(records)
        assert json.loads((tmp_path / "a.json").read_text()) == records
    assert journal.write_lines(tmp_path / "l.jsonl", iter(RECORDS)) == 5
    assert written(tmp_path / "l.jsonl") == RECORDS
    journal.write_json(tmp_path / "o.json", {"é": [1, {"\udcff": None}]}, indent=2)
    assert json.loads((tmp_path / "o.json").read_text()) == {"é": [1, {"\udcff": None}]}


def test_places_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for write in (
        lambda: journal.Journal(tmp_path / "file" / "j.jsonl"),
        lambda: journal.Journal(tmp_path / "folder"),
        lambda: journal.write_json(tmp_path / "file" / "w.json", 1),
        lambda: journal.write_json(tmp_path / "folder", 1),
        lambda: journal.locked(tmp_path / "file").__enter__(),
    ):
        with pytest.raises(UserError, match=r"cannot be written .*(irectory|exists)"):
            write()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_what_another_process_is_writing(tmp_path):
    """Half a record at the end is not there yet, and nobody cuts it off."""
    file = tmp_path / "j.jsonl"
    assert list(journal.read(file)) == []
    with journal.Journal(file) as one:
        one.add(*RECORDS, {"reply": "\ud83d"})
    whole = file.read_bytes()
    file.write_bytes(whole + b'\n{"n": 5, "te')
    found = list(journal.read(file))
    assert [r for _, r in found] == [*RECORDS, {"reply": "\ud83d"}]
    assert [w for w, _ in found] == [f"{file}:{n}" for n in range(1, 7)]
    assert file.read_bytes() == whole + b'\n{"n": 5, "te'
    for damage, message in ((b"{oh\n", ":2 is no JSON"), (b"\xff\n", ":2 is not UTF-8 text")):
        file.write_bytes(b'{"n": 1}\n' + damage + b'{"n": 2}\n')
        with pytest.raises(UserError, match=message):
            list(journal.read(file))


@pytest.mark.parametrize("bucket", [True, False])
def test_a_journal_on_a_bucket_is_closed_now_and_then(tmp_path, monkeypatch, bucket):
    """An open file is not there for others, and lost with its host."""
    monkeypatch.setattr(journal.storage, "is_bucket", lambda path: bucket)
    monkeypatch.setattr(journal, "REOPEN", 0.0)
    files = []
    with journal.Journal(tmp_path / "j.jsonl") as one:
        for record in RECORDS:
            files.append(one._file)
            one.add(record)
        assert [f.closed for f in files] == [bucket] * len(files)
    assert written(tmp_path / "j.jsonl") == RECORDS


def test_a_bucket_that_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr(journal.storage, "is_bucket", lambda path: True)
    monkeypatch.setattr(journal, "REOPEN", 0.0)
    (tmp_path / "made").mkdir()
    with journal.Journal(tmp_path / "made" / "j.jsonl") as one:
        (tmp_path / "made").rename(tmp_path / "away")
        with pytest.raises(UserError, match=r"j.jsonl cannot be written \(No such file"):
            one.add(RECORDS[0])
    assert written(tmp_path / "away" / "j.jsonl") == RECORDS[:1]


def test_a_folder_on_storage_without_locks(tmp_path, monkeypatch):
    def none(self, **_):
        raise NotImplementedError

    monkeypatch.setattr(journal.FileLock, "acquire", none)
    with journal.locked(tmp_path / "made"):
        assert (tmp_path / "made").is_dir()


def _hold(folder, ready):
    with journal.locked(folder):
        ready.set()
        time.sleep(600)  # until it is killed


def test_one_process_at_a_time(tmp_path):
    with journal.locked(tmp_path / "made"):
        with pytest.raises(UserError, match=r"another process is at work in .*made; wait for it"):
            journal.locked(tmp_path / "made").__enter__()
    with journal.locked(tmp_path / "made"):
        pass
    spawned = multiprocessing.get_context("spawn")
    ready = spawned.Event()
    other = spawned.Process(target=_hold, args=(tmp_path / "made", ready))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(UserError, match="another process is at work"):
            journal.locked(tmp_path / "made").__enter__()
    finally:
        other.kill()
        other.join()
    with journal.locked(tmp_path / "made"):  # the lock of a killed process is gone with it
        assert (tmp_path / "made").is_dir()


def test_a_result_is_used_again_only_if_it_was_made_of_the_same(tmp_path):
    made, result = tmp_path / "made.json", tmp_path / "r.npy"
    counts = {"images": 3}
    journal.write_json(made, {"made_of": {"names": [1, 2]}, "counts": counts})
    assert journal.reuse(made, {"names": (1, 2)}, [result]) is None
    result.write_text("")
    assert journal.reuse(made, {"names": (1, 2)}, [result]) == counts
    assert journal.reuse(made, {"names": (1, 3)}, [result]) is None
    for broken in (b"[1]", b"{", b"\xff", b'{"counts": 1}'):
        made.write_bytes(broken)
        assert journal.reuse(made, {"names": (1, 2)}, [result]) is None
    made.unlink()
    assert journal.reuse(made, {"names": (1, 2)}, [result]) is None
