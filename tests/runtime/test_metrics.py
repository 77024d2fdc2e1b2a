# SPDX-License-Identifier: Apache-2.0
"""The logs of a run: what TensorBoard reads, full disks, and mounted buckets."""

import json
import os
import struct

import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from cir_jax.errors import UserError
from cir_jax.runtime import metrics, storage
from tests.bank.test_bank_files import largest_file


def events(folder):
    """All events of a folder, in the order of its files; every checksum is compared."""
    found = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            for part, after in ((content[:8], content[8:12]), (content[12 : 12 + size], None)):
                after = content[12 + size : 16 + size] if after is None else after
                assert struct.pack("<I", masked_crc32c(part)) == after
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            event.ClearField("wall_time")
            found.append(event)
            content = content[16 + size :]
    return found


def test_events_are_those_of_tensorboardx(tmp_path):
    with SummaryWriter(str(tmp_path / "theirs"), purge_step=3) as theirs:
        for name, value in (("loss", 0.5), ("loss/a b", 2)):
            theirs.add_scalar(name, value, 4)
    logger = metrics.Logger(tmp_path / "run", 2)
    logger.write(4, {"loss": 0.5, "loss/a b": 2, "text": "not a number"})
    logger.close()
    want, got = events(tmp_path / "theirs"), events(tmp_path / "run" / "tensorboard")
    repeated = event_pb2.Event(step=3, file_version="brain.Event:2")  # says nothing new
    assert got == [event for event in want if event != repeated] and len(got) == 4
    assert got[1].session_log.status == event_pb2.SessionLog.START and got[1].step == 3


def test_a_full_disk_is_said_and_what_was_logged_stays(tmp_path):
    logger = metrics.Logger(tmp_path)
    logger.write(1, {"loss": 1.0})
    message = (
        r"metrics.jsonl cannot be written \(File too large\); what it held is kept. It needs 5.\d "
        r"kB, and [0-9.]+ .B are free there; make room"
    )
    with largest_file(600), pytest.raises(UserError, match=message):
        logger.write(2, {"text": "x" * 5000})
    logger.close()
    assert metrics.read(tmp_path / metrics.FILE) == [{"step": 1, "loss": 1.0}]  # no half line
    logger = metrics.Logger(tmp_path, 1)
    logger.write(2, {"loss": 2.0})
    logger.close()
    assert [line["step"] for line in metrics.read(tmp_path / metrics.FILE)] == [1, 2]
    assert len(events(tmp_path / "tensorboard")) == 6


def test_a_full_disk_does_not_stop_the_events_in_silence(tmp_path):
    logger = metrics.Logger(tmp_path)
    with largest_file(300), pytest.raises(UserError, match=r"events.out.\S+ cannot be written"):
        for step in range(50):
            logger._events.write(step, {"loss": 1.0})
    logger.close()


def test_a_full_disk_at_the_start(tmp_path):
    (tmp_path / metrics.FILE).write_text(json.dumps({"step": 1, "text": "x" * 500}) + "\n")
    before = (tmp_path / metrics.FILE).read_text()
    with largest_file(100), pytest.raises(UserError, match=r"metrics.jsonl cannot be written"):
        metrics.Logger(tmp_path, 1)
    assert (tmp_path / metrics.FILE).read_text() == before


def test_logs_in_a_mounted_bucket_are_closed_once_a_minute(tmp_path, monkeypatch):
    """Nobody sees an open file there, and it is lost with its host."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nb {tmp_path}/bucket fuse.gcsfuse rw 0 0\n")
    monkeypatch.setattr(storage, "MOUNTS", str(mounts))
    monkeypatch.setattr(metrics, "REOPEN", 0.0)
    logger = metrics.Logger(tmp_path / "bucket")
    opened = {os.fstat(log._file.fileno()).st_ino for log in (logger._file, logger._events._log)}
    first = logger._file._file
    for step in (1, 2):
        logger.write(step, {"loss": 1.0})
    assert first.closed and len(opened) == 2
    logger.close()
    assert len(metrics.read(tmp_path / "bucket" / metrics.FILE)) == 2
    assert len(list((tmp_path / "bucket" / "tensorboard").iterdir())) == 1
    local = metrics.Logger(tmp_path / "disk")
    first = local._file._file
    local.write(1, {"loss": 1.0})
    assert not first.closed
    local.close()


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/", "ext4"),
        ("/mnt/b/runs/x", "fuse.gcsfuse"),
        ("/mnt/bc", "ext4"),
        ("/mnt/b/disk", "tmpfs"),
        ("/mnt/with space/x", "nfs4"),
        ("/data/x", "fuse"),
    ],
)
def test_the_file_system_of_a_place(place, kind, tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\nb /mnt/b fuse.gcsfuse rw 0 0\nt /mnt/b/disk tmpfs rw 0 0\n"
        "n /mnt/with\\040space nfs4 rw 0 0\nb /data fuse rw 0 0\n\n"
    )
    monkeypatch.setattr(storage, "MOUNTS", str(mounts))
    assert storage.kind(place) == kind
    assert storage.is_bucket(place) == (kind in ("fuse", "fuse.gcsfuse"))
    monkeypatch.setattr(storage, "MOUNTS", str(tmp_path / "none"))
    assert storage.kind(place) == ""
