# SPDX-License-Identifier: Apache-2.0
"""One run at a time trains in a folder: on a host at once, on another after the lease."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cir_jax.errors import UserError
from cir_jax.runtime import lease
from cir_jax.training import train
from tests import runs

HERE = Path(__file__).parents[2]
ELSEWHERE = {"host": "elsewhere", "boot": "b", "process": 7, "nonce": "n", "beat": 1}


def write(folder, **changes):
    """The lease of somebody else."""
    (folder / lease.FILE).write_text(json.dumps(ELSEWHERE | changes))


@contextmanager
def held_by_a_process(folder, seconds=60):
    """The number of a process that holds the lease until it is killed."""
    script = (
        "import sys, time; from cir_jax.runtime import lease\n"
        f"with lease.hold(sys.argv[1], {seconds}): print('held', flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    arguments = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.send_signal(signal.SIGKILL)


def test_the_second_run_on_a_host_is_refused_and_a_dead_owner_replaced_at_once(tmp_path, capsys):
    with held_by_a_process(tmp_path) as number:
        message = rf"another run \(process {number} on .*\) trains in .*; give another workdir"
        with pytest.raises(UserError, match=message), lease.hold(tmp_path, 60):
            pass
    assert (tmp_path / lease.FILE).exists()
    with lease.hold(tmp_path, 60):
        pass
    assert "waiting" not in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == [lease.LOCK]


def test_a_process_that_is_no_part_of_a_run(tmp_path):
    """It says what it does there, and shows others that it lives."""
    assert lease.seen(tmp_path) is None
    with lease.hold_alone(tmp_path / "new", 0.2, "captions") as check:
        check()
        first, until = lease.seen(tmp_path / "new"), time.monotonic() + 30
        while lease.seen(tmp_path / "new") == first and time.monotonic() < until:
            time.sleep(0.01)
        assert lease.seen(tmp_path / "new") not in (first, None)
        message = r"another run \(process \d+ on .*\) captions in .*new; give another workdir"
        with (
            pytest.raises(UserError, match=message),
            lease.hold_alone(tmp_path / "new", 1, "captions"),
        ):
            pass
        write(tmp_path / "new")
        with pytest.raises(UserError, match=r"process 7 on elsewhere\) has taken over"):
            check()
    assert lease.seen(tmp_path / "new") == ("n", 1)  # of the other, and left to it


def test_training_takes_it(tmp_path):
    root = runs.write_fashioniq(tmp_path / "data")
    config = runs.tiny(tmp_path / "run", root, "steps=1", "eval.benchmark=none")
    with lease.hold(tmp_path / "run", 60):
        with pytest.raises(UserError, match=r"trains in .*run; give another workdir, or end that"):
            train.train(config)
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [lease.FILE, lease.LOCK]
    assert train.train(config)["finished"] and not (tmp_path / "run" / lease.FILE).exists()


def test_an_owner_on_another_host_that_is_not_seen_is_replaced_after_the_lease(tmp_path, capsys):
    write(tmp_path)
    began = time.monotonic()
    with lease.hold(tmp_path, 1.0) as held:
        assert time.monotonic() - began >= 1.0
        held.check()
        assert json.loads((tmp_path / lease.FILE).read_text())["process"] == os.getpid()
    said = capsys.readouterr().out
    assert "was last used by another run (process 7 on elsewhere), which has not said that" in said
    assert "waiting up to 1 s" in said and "its folder is taken over" in said


def test_an_owner_on_another_host_that_lives_is_left_alone(tmp_path):
    write(tmp_path)
    beating = threading.Timer(0.3, write, [tmp_path], {"beat": 2})
    beating.start()
    with (
        pytest.raises(UserError, match=r"another run \(process 7 on elsewhere\) trains in"),
        lease.hold(tmp_path, 5.0),
    ):
        pass
    beating.join()
    assert json.loads((tmp_path / lease.FILE).read_text()) == ELSEWHERE | {"beat": 2}


def test_an_owner_that_ends_while_another_waits(tmp_path):
    write(tmp_path)
    ending = threading.Timer(0.3, (tmp_path / lease.FILE).unlink)
    ending.start()
    with lease.hold(tmp_path, 60.0) as held:
        held.check()
    ending.join()


def test_a_host_of_the_same_name_that_was_started_anew_is_another(tmp_path, monkeypatch, capsys):
    with lease.hold(tmp_path, 1.0):
        before = (tmp_path / lease.FILE).read_text()
    (tmp_path / lease.FILE).write_text(before)
    monkeypatch.setattr(lease, "_boot", lambda: "another start")
    with lease.hold(tmp_path, 1.0):
        pass
    assert "waiting up to 1 s" in capsys.readouterr().out


def test_without_locks_the_process_is_looked_for(tmp_path, monkeypatch, capsys):
    """As on a mounted bucket, where the lease is all there is."""

    def none(self, timeout):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(lease.FileLock, "acquire", none)
    with (
        held_by_a_process(tmp_path, 2),
        pytest.raises(UserError, match="trains in"),
        lease.hold(tmp_path, 60),
    ):
        pass
    assert "waiting up to 2 s" in capsys.readouterr().out
    assert (tmp_path / lease.FILE).exists()
    with lease.hold(tmp_path, 60):
        pass
    assert "waiting" not in capsys.readouterr().out


def test_a_run_that_lost_its_folder_ends_before_it_saves(tmp_path, monkeypatch):
    root = runs.write_fashioniq(tmp_path / "data")
    changes = ("steps=2", "eval.benchmark=none", "checkpoint.every_steps=1")
    config = runs.tiny(tmp_path / "run", root, *changes)
    check = lease.Lease.check

    def late(self):
        check(self)  # still its own, before the first save
        write(self.folder)

    monkeypatch.setattr(lease.Lease, "check", late)
    with pytest.raises(
        UserError, match=r"\(process 7 on elsewhere\) has taken over .*run, as this"
    ):
        train.train(config)
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints" / "last").iterdir())
    assert names == ["1"]
    assert json.loads((tmp_path / "run" / lease.FILE).read_text()) == ELSEWHERE  # not deleted


def test_the_owner_shows_that_it_is_alive_and_stops_when_it_lost(tmp_path):
    with lease.hold(tmp_path, 0.2) as held:
        file, seen = tmp_path / lease.FILE, set()
        until = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(json.loads(file.read_text())["beat"])
            time.sleep(0.02)
        assert len(seen) == 3
        write(tmp_path)
        held._beating.join(20)
        assert not held._beating.is_alive()
        assert json.loads(file.read_text()) == ELSEWHERE


def test_a_hard_end_spares_the_next_owner_the_wait(tmp_path):
    """As after a signal: the process ends without leaving the `with`."""
    script = (
        "import sys; from cir_jax.runtime import lease, supervision\n"
        "with supervision.command('cir-jax train') as watcher, lease.hold(sys.argv[1], 60):\n"
        "    watcher._end_hard('stopped', 75)"
    )
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    arguments = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(arguments, env=environment, timeout=100).returncode == 75
    assert [p.name for p in tmp_path.iterdir()] == [lease.LOCK]
