# SPDX-License-Identifier: Apache-2.0
"""Places and disks: addresses of buckets are refused, full disks are said with need and room."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cir_jax import config, files, main
from cir_jax.errors import UserError
from tests.bank.test_bank_files import largest_file

TRAINING = "clip_sum:fashioniq,stage=2"
KEYS = {
    "workdir": TRAINING,
    "init_from": TRAINING,
    "data.root": TRAINING,
    "data.generated": TRAINING,
    "data.generated_images": TRAINING,
    "data.captions": TRAINING,
    "data.optimized": TRAINING,
    "data.unlabelled": TRAINING,
    "eval.root": TRAINING,
    "loss.bank_path": TRAINING,
    "data.lists": "positives:folder",
    "pair.features": "positives:folder",
    "pair.run": "positives:folder",
}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_place_refuses_the_address_of_a_bucket(key):
    message = (
        rf"{key}=gs://shop/runs/1 is the address of a bucket, and files are read and written by .*"
        r"tpu_pod.sh mount --bucket shop .*gcsfuse --implicit-dirs shop /mnt/shop.*give "
        r"/mnt/shop/runs/1$"
    )
    with pytest.raises(UserError, match=message):
        config.load(KEYS[key], [f"{key}=gs://shop/runs/1"])


def test_a_bucket_among_several_places_is_found():
    with pytest.raises(
        UserError, match=r"data.generated=s3://shop/b.json is the address of a buck"
    ):
        config.load(TRAINING, ["data.generated=a.json,s3://shop/b.json"])


@pytest.mark.parametrize(
    "command",
    [
        "train --config clip_sum:quicktest --init-from a.pt,gs://shop/w.pt",
        "train --config clip_sum:quicktest --set workdir=gs://shop/x",
        "evaluate --workdir gs://shop/x",
        "doctor fashioniq gs://shop/x",
        "export RUN gs://shop/x.pt --format spn",
        "demo --out gs://shop/x",
        "triplets clip4cir gs://shop/a.json out.jsonl",
    ],
)
def test_every_flag_refuses_the_address_of_a_bucket(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(command.split()) == 2
    assert "is the address of a bucket" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # no folder "gs:"


@pytest.mark.parametrize("place", ["/mnt/gs/x", "gs", "runs/gs:x", "C:/x", "http://h/v1", ""])
def test_other_places_are_taken(place):
    files.check_local("workdir", place)


def test_a_file_that_finds_no_room(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("before")
    message = (
        r"results.json cannot be written \(File too large\); what it held is kept. It needs 5.0 "
        r"kB, and \S+ .B are free there; make room or correct that, then give the same command ag"
    )
    with largest_file(1000), pytest.raises(UserError, match=message):
        files.put(path, bytes(5000))
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["results.json"]
    files.put(path, b"after")
    assert path.read_text() == "after"


def test_another_fault_says_nothing_of_room(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(UserError, match=r"(?s)^(?!.*are free).*folder/x cannot be written"):
        files.put(tmp_path / "folder" / "x", b"1")


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EIO, "x"), False),
        (ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"), False),
    ],
)
def test_what_is_a_full_disk(error, lacks):
    assert files.lacks_room(error) == lacks
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("a step could not be written") from inner
    except RuntimeError as outer:
        assert files.lacks_room(outer) == lacks


def test_room_is_that_of_the_nearest_folder_that_is_there(tmp_path):
    assert "are free there" in files.room_for(0, Path(tmp_path / "a" / "b" / "c"))


@pytest.mark.parametrize("command", ["doctor folder {}", "inspect {}", "evaluate --workdir {}"])
@pytest.mark.parametrize("what", ["is_file", "is_dir", "exists"])
def test_a_folder_that_may_not_be_entered_is_named(command, what, tmp_path, monkeypatch, capsys):
    """As the system says it where a folder lacks the right to be entered, also to a superuser."""
    place, ask = tmp_path / "closed", getattr(Path, what)

    def refused(path):
        if place in (path, *path.parents):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return ask(path)

    monkeypatch.setattr(Path, what, refused)
    assert main.main(command.format(place).split()) == 2
    said = capsys.readouterr().err
    assert f"{place}" in said and said.count("\n") == 1


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_closed_folders(mode, tmp_path):
    (tmp_path / "closed" / "images").mkdir(parents=True)
    (tmp_path / "closed").chmod(mode)
    command = [sys.executable, "-m", "cir_jax.main", "doctor", "folder", str(tmp_path / "closed")]
    if os.geteuid() == 0:  # a superuser without the right to enter everywhere
        powers = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", powers, "--inh-caps", "-all", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "cannot be used (Permission denied); correct its perm" in done.stderr
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_what_is_not_permitted_without_a_name():
    with pytest.raises(UserError, match=r"a file or folder cannot be used .Operation not permit"):
        with files.permitted():
            raise PermissionError(errno.EPERM, "Operation not permitted")
    with pytest.raises(FileNotFoundError), files.permitted():
        raise FileNotFoundError(errno.ENOENT, "x")
