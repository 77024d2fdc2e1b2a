# SPDX-License-Identifier: Apache-2.0
"""Damage to checkpoints is found in every file and is told from what is none, on all processes."""

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cir_jax import config as configs
from cir_jax import weights
from cir_jax.errors import UserError
from cir_jax.runtime import checkpoint, checksums, commits, storage
from cir_jax.runtime import mesh as meshes
from tests import runs
from tests.bank.test_bank_files import largest_file

HERE = Path(__file__).parents[2]
TREE = {
    "fixed": {"a/kernel": jnp.arange(4096, dtype=jnp.float32)},
    "trained": {"b": jnp.ones(3)},
    "optimizer": {},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run folder with two steps."""
    folder = tmp_path_factory.mktemp("run")
    kept = checkpoint.Checkpoints(folder / checkpoint.LAST)
    for step in (3, 6):
        kept.save(step, TREE, {"step": step})
    kept.close()
    return folder


@pytest.fixture
def kept(written, tmp_path):
    """The checkpoints of a copy of it."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return checkpoint.Checkpoints(tmp_path / checkpoint.LAST)


def abstract():
    place = meshes.replicated(meshes.make())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), TREE)


def restore(kept):
    return checkpoint.restore_newest(kept, abstract(), lambda record: None)


def flip(file, at=None, bit=3):
    """One bit, in the middle of a file if it is not said where."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1 << bit
    file.write_bytes(content)


def aside(kept):
    return sorted(p.name for p in kept.folder.parent.glob("damaged/*"))


def test_a_flipped_bit_is_found_in_every_file(kept):
    assert kept.damage(6) == ""
    folder = kept.folder / "6"
    files = [p for p in folder.rglob("*") if p.is_file() and p != folder / commits.COMMITTED]
    assert len(files) >= 10 and folder / "record/metadata" in files
    for file in files:
        content = file.read_bytes()
        for at in {0, len(content) // 2, len(content) - 1}:
            flip(file, at)
            name = file.relative_to(folder).as_posix()
            assert kept.damage(6).startswith(f"{name} "), (name, at)
            file.write_bytes(content)
    assert kept.damage(6) == ""


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda p: p.unlink(), "is missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:9]), "has 9 bytes, and [0-9,]+ were written"),
        (lambda p: p.write_bytes(bytes(p.stat().st_size)), "fails its checksum"),
    ],
    ids=["missing", "short", "zeros"],
)
def test_the_step_before_a_damaged_one_is_used(harm, reason, kept, capsys):
    harm(max((kept.folder / "6").rglob("d/*"), key=lambda p: p.stat().st_size))
    step, tree, record = restore(kept)
    assert (step, record["step"]) == (3, 3) and aside(kept) == ["last-6"] and kept.steps() == [3]
    np.testing.assert_array_equal(tree["fixed"]["a/kernel"], TREE["fixed"]["a/kernel"])
    said = capsys.readouterr().out
    assert "damaged checkpoint: step 6 (state/" in said and "trying the one before it" in said
    assert re.search(rf"step 6 \(state/\S+ {reason}\), moved to", said)


def test_a_step_without_its_list_is_damaged(kept):
    (kept.folder / "6" / checksums.NAME).unlink()
    assert kept.damage(6) == "checksums.json is missing"
    with pytest.raises(UserError, match=r"step 6 in .* is damaged \(checksums.json is missing\)"):
        kept.restore(6, abstract())


def test_a_damaged_record_is_not_read(kept):
    record = kept.folder / "6" / "record" / "metadata"
    record.write_text(record.read_text().replace("6", "7"))
    message = r"step 6 in .*last is damaged \(record/metadata fails .*another step of .*: 3\)"
    with pytest.raises(UserError, match=message):
        kept.record(6)


def test_a_run_does_not_start_anew_while_its_damaged_steps_are_there(kept):
    for step in (3, 6):
        flip(kept.folder / str(step) / "record" / "metadata")
    message = r"no checkpoint in .*: step 6 \(record/met.*; step 3 .*to start from step 0 in this"
    with pytest.raises(UserError, match=message):
        restore(kept)
    message = (
        r"no checkpoint in .*/damaged/last-3; .*/damaged/last-6. Restore the files from a copy"
    )
    with pytest.raises(UserError, match=message):
        restore(kept)
    shutil.rmtree(kept.folder.parent / "damaged")  # as the message says
    assert restore(kept) is None


FAILURES = {
    "memory": (
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        "too little memory: end what els",
    ),
    "host memory": (MemoryError("no memory"), "too little memory"),
    "storage": (OSError(errno.EIO, "Input/output error"), "give the same command again"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_is_moved_when_it_is_no_damage(failure, kept, monkeypatch):
    error, advice = FAILURES[failure]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    message = rf"step 6 in .* could not be restored \(.*\). Nothing was moved. .*{advice}"
    with pytest.raises(UserError, match=message):
        restore(kept)
    assert kept.steps() == [3, 6] and not aside(kept)
    monkeypatch.undo()
    assert restore(kept)[0] == 6


def test_a_file_that_cannot_be_read_now_is_no_damage(kept, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checksums, "of_file", fail)
    with pytest.raises(UserError, match=r"step 6 in .* could not be read \(.*nothing was moved"):
        restore(kept)
    assert kept.steps() == [3, 6] and not aside(kept)


def test_another_orbax_is_named(kept, monkeypatch):
    folder = kept.folder / "6"
    checksums.write(folder, {"orbax-checkpoint": "9.9.9"}, (commits.COMMITTED,))

    def fail(*_, **__):
        raise KeyError("a field of another version")

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    with pytest.raises(UserError, match=r"written, by orbax-checkpoint 9.9.9; this is 0"):
        restore(kept)
    assert kept.steps() == [3, 6] and not aside(kept)


def test_reading_leaves_a_step_alone_that_another_process_is_writing(kept):
    begun = kept.folder / "9.orbax-checkpoint-tmp"
    begun.mkdir()
    kept.restore(6, abstract())
    kept.close()
    assert begun.is_dir()
    kept.save(9, TREE, {"step": 9})
    kept.close()
    assert kept.steps() == [6, 9] and not begun.exists()


def test_the_size_of_a_resumed_model_is_that_of_a_step_that_is_whole(tmp_path):
    trained = runs.tiny(tmp_path, "data", model="clip_sum")
    kept = checkpoint.Checkpoints(tmp_path / checkpoint.LAST)
    for step in (1, 2):
        kept.save(step, TREE, {"config": configs.to_json(trained)})
    kept.close()
    asked = configs.override(trained, ("model.tower=auto",))
    for step in (2, 1):
        assert weights.resolve(asked).model.tower == "tiny-vit"
        flip(kept.folder / str(step) / "record" / "metadata")
    with pytest.raises(UserError, match=r"step 1 in .*last is damaged"):
        weights.resolve(asked)


def tree_of(size):
    random = np.random.default_rng(0).standard_normal(size).astype(np.float32)  # does not compress
    return TREE | {"fixed": {"a/kernel": jnp.asarray(random)}}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads
@pytest.mark.parametrize("moment", ["wait", "next save", "close"])
def test_a_full_disk_is_said_whenever_it_shows(moment, kept):
    """Orbax writes in the background: the error of a step shows later, and is of that step."""
    act = {"wait": kept.wait, "next save": lambda: kept.save(12, TREE, {}), "close": kept.close}
    message = r"step 9 in .*last could not be saved: the disk is full. It needs 8.0 MB, and \S+ .B"
    with largest_file(100_000), pytest.raises(UserError, match=message):
        kept.save(9, tree_of(2_000_000), {})
        act[moment]()
    assert kept.steps() == [3, 6] and restore(kept)[0] == 6
    kept.save(9, tree_of(2_000_000), {})
    kept.close()
    assert kept.steps() == [6, 9] and kept.damage(9) == ""


def test_a_disk_that_is_full_when_checksums_are_written(kept, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checksums, "write", full)
    with pytest.raises(UserError, match=r"step 9 in .* could not be saved: the disk is full"):
        kept.save(9, TREE, {})
        kept.close()
    assert kept.steps() == [3, 6]


def on_bucket(folder, tmp_path, monkeypatch):
    """Lets a folder be on a mounted bucket."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nb {folder} fuse.gcsfuse rw 0 0\n")
    monkeypatch.setattr(storage, "MOUNTS", str(mounts))


def test_a_mounted_bucket_sees_no_rename_of_a_folder(kept, tmp_path, monkeypatch):
    """Steps written in either way are read in both; what was cut off is a step in neither."""
    rename, renamed = os.rename, []

    def noted(old, new, **options):
        if os.path.isdir(old):
            renamed.append(old)
        return rename(old, new, **options)

    monkeypatch.setattr(os, "rename", noted)
    kept.save(8, TREE, {"step": 8})
    kept.close()
    assert renamed and kept.steps() == [6, 8]
    renamed.clear()
    on_bucket(kept.folder, tmp_path, monkeypatch)
    kept.save(9, TREE, {"step": 9})
    kept.close()
    assert not renamed and kept.steps() == [8, 9] and kept.damage(9) == ""
    assert restore(kept)[0] == 9
    # Killed before the end: neither the mark nor the checksums are there.
    shutil.copytree(kept.folder / "9", kept.folder / "10")
    for name in (commits.COMMITTED, checksums.NAME):
        (kept.folder / "10" / name).unlink()
    for disk in (False, True):
        if disk:
            monkeypatch.setattr(storage, "MOUNTS", str(tmp_path / "none"))
        assert kept.steps() == [8, 9] and restore(kept)[0] == 9
        kept.close()
    kept.save(10, TREE, {"step": 10})
    kept.close()
    assert kept.steps() == [9, 10] and restore(kept)[2]["step"] == 10


TWO = """
import errno, sys
from pathlib import Path
import jax, jax.numpy as jnp
from types import SimpleNamespace
from cir_jax.errors import UserError
from cir_jax.runtime import checkpoint, checksums, distributed, lease
from cir_jax.runtime import mesh as meshes
from cir_jax.training import records
distributed.initialize()
this = jax.process_index()
kept = checkpoint.Checkpoints(Path(sys.argv[1]) / checkpoint.LAST, keep=3)
place = meshes.row_sharding(meshes.make())
rows = jax.make_array_from_callback((4, 64), place, lambda i: jnp.arange(256.0).reshape(4, 64)[i])
tree = {"fixed": {"a": rows}, "trained": {}, "optimizer": {}}
for step in (1, 2, 3):
    kept.save(step, tree, {"step": step})
kept.close()
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

def restored():
    try:
        return checkpoint.restore_newest(kept, abstract, lambda record: None)[0]
    except UserError as error:
        return str(error)

whole = checksums.of_file
def away(path):
    raise OSError(errno.EIO, "Input/output error")
checksums.of_file = away if this == 1 else whole
said = restored()
assert "Input/output error" in said and "nothing was moved" in said, said
assert this == 1 or said.startswith("process 1 could not check"), said
checksums.of_file = whole
assert kept.steps() == [1, 2, 3]
if this == 0:
    for file in (kept.folder / "3").rglob("ocdbt.process_1/d/*"):  # what the other has written
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    (kept.folder / "2" / "record" / "metadata").unlink()
checkpoint.agreement.tell("harmed")
assert restored() == 1
run = object.__new__(records.Records)  # its notes of evaluations alone
run._evaluations = Path(sys.argv[1]) / records.EVALUATIONS
entry = {"step": 2, "score": 7.5}

def recalled():
    state = SimpleNamespace(step=3, history=[], best=None)
    run._recall(state)
    return state.history, state.best

for harm, want in ((False, ([entry], 7.5)), (True, ([], None)), (False, ([], None))):
    if this == 0:
        content = checksums.sealed({"history": [entry]})
        run._evaluations.write_bytes(content.replace(b"7.5", b"9.5") if harm else content)
    checkpoint.agreement.tell("written")
    if want[1] is None and not harm and this == 1:  # whom the network disk says something else
        records._evaluations_in = lambda path: ([], "Input/output error")
    found = recalled()
    assert found == want, found
    checkpoint.agreement.tell("read")
    assert run._evaluations.exists() == (want[1] is not None)
    checkpoint.agreement.tell("looked")  # before process 0 writes the file of the next round
with lease.hold(sys.argv[1], 60) as held:
    held.check()
    if this == 0:
        (Path(sys.argv[1]) / lease.FILE).write_text('{"nonce": "other", "host": "elsewhere"}')
    try:
        held.check()
    except UserError as error:
        print("lost:", error)
lease.storage.is_bucket = lambda path: this == 1
try:
    lease.hold(sys.argv[1], 60).__enter__()
except UserError as error:
    print("mounts:", error)
print(f"process {this} of {jax.process_count()} is at step 1")
"""


def test_two_processes_agree_on_what_is_damaged(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    environment = os.environ | {"PYTHONPATH": str(HERE), "XLA_FLAGS": flags}
    environment |= {"CIR_JAX_COORDINATOR": address, "CIR_JAX_PROCESSES": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(tmp_path)],
            env=environment | {"CIR_JAX_PROCESS": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=200)[0] for process in started]
    for i in range(2):
        assert f"process {i} of 2 is at step 1" in said[i], "\n".join(said)
        assert "elsewhere) has taken over" in said[i].partition("lost:")[2]
        assert "is on a disk for process 0 and a mounted bucket for process 1; mount" in said[i]
    assert "damaged checkpoint: step 3 (state/ocdbt.process_1" in said[0]
    assert "damaged checkpoint: step 2 (record/metadata is missing)" in said[0]
    assert said[0].count("evaluations since the last checkpoint are made again") == 2
    assert "evaluations.json" in said[0] and "Input/output error" in said[0]
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("damaged/*")) == [
        "last-2", "last-3"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "listed",
    [None, [], {"a": 1}, {"a": [1]}, {"a": ["1", "x"]}, {"a": [True, "x"]}, {"a": [[], "x"]},
     {"../a": [1, "x"]}, {"/a": [1, "x"]}],
)  # fmt: skip
def test_an_odd_list_under_a_checksum_of_its_own(listed, tmp_path):
    content = {"version": 1, "algorithm": checksums.ALGORITHM, "about": {}, "files": listed}
    (tmp_path / checksums.NAME).write_bytes(checksums.sealed(content))
    for check in (lambda: checksums.check(tmp_path), lambda: checksums.check_file(tmp_path, "a")):
        with pytest.raises(checksums.Damaged, match=r"checksums.json lists no files"):
            check()


def test_a_name_that_no_file_can_have_is_missing(tmp_path):
    name = "a" * 5000
    content = {"version": 1, "about": {}, "files": {name: [1, "x"]}}
    (tmp_path / checksums.NAME).write_bytes(checksums.sealed(content))
    assert checksums.check(tmp_path) == [f"{name} is missing"]
