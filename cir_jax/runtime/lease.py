# SPDX-License-Identifier: Apache-2.0
"""One run at a time trains in a folder, on whichever host it is.

    .lock     held by a process of this host while it trains (flock; it falls with the process)
    .lease    {"host", "boot", "process", "nonce", "seconds", "beat"}: the owner, which
              counts `beat` up several times in so many seconds

Locks end at a host, or do not exist (a mounted bucket), so the lease decides between hosts. Clocks
of hosts differ and are not compared: an owner on another host is dead if its lease has not changed
for as long as a lease is, by the clock of the one that waits. An owner that was thought dead, as
after a long stop of its machine, finds another nonce there before it saves, and ends.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cir_jax import files, progress
from cir_jax.errors import UserError
from cir_jax.runtime import agreement, storage, supervision

LOCK = ".lock"  # stays there: deleting it would let two runs in
FILE = ".lease"
_BEATS = 4  # times in a lease that its owner shows it is alive
_BOOT = "/proc/sys/kernel/random/boot_id"


class Lease:
    """The right to train in a folder, of all processes of a run; process 0 holds it.

    Args:
      folder: of the run.
      seconds: how long a lease counts after its owner was last seen.
      doing: what its owner does there, for messages.
    """

    def __init__(self, folder: str | Path, seconds: float, doing: str = "trains"):
        self.folder, self.seconds, self._doing = Path(folder), seconds, doing
        self._path = self.folder / FILE
        self._me = {
            "host": socket.gethostname(),
            "boot": _boot(),
            "process": os.getpid(),
            "nonce": uuid.uuid4().hex,
            "seconds": seconds,
        }
        self._lock: FileLock | None = None
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)

    def check(self) -> None:
        """Called by all processes, before something is written that another run might write.

        Raises:
          UserError: another run has taken the folder.
        """
        agreement.first(self._check, "lost its folder to another run")

    def _acquire(self) -> str:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            self._take_over()
            self._write(0)
        except BaseException as error:
            self._unlock()
            if isinstance(error, OSError):
                raise UserError(
                    f"workdir={self.folder} cannot be used ({error.strerror or error}); give a "
                    "folder that can be written"
                ) from None
            raise
        self._beating.start()
        return ""

    def _locked(self) -> FileLock | None:
        """The lock of this host; None where the file system has none."""
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise self._taken(_read(self._path)) from None
        except NotImplementedError:
            return None
        return lock

    def _take_over(self) -> None:
        """Returns once nobody else trains here.

        Raises:
          UserError: somebody does.
        """
        owner = _read(self._path)
        if not owner or self._is_dead(owner):
            return
        seconds = float(owner.get("seconds", self.seconds))
        progress.say(
            f"{self.folder} was last used by {_name(owner)}, which has not said that it ended: "
            f"waiting up to {seconds:.0f} s to see whether it still runs"
        )
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(1.0, seconds / _BEATS / 2))
            now = _read(self._path)
            if not now:
                return
            if now != owner:
                raise self._taken(now)
        progress.say(f"{_name(owner)} was not seen for {seconds:.0f} s: its folder is taken over")

    def _is_dead(self, owner: dict[str, Any]) -> bool:
        """Whether the owner certainly is: it was on this host, as it was started last."""
        if any(owner.get(key) != self._me[key] for key in ("host", "boot")):
            return False
        return self._lock is not None or not Path(f"/proc/{owner.get('process')}").exists()

    def _taken(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{_name(owner)} {self._doing} in {self.folder}; give another workdir, or end that run "
            "first"
        )

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(self.seconds / _BEATS):
            count += 1
            # A full disk or storage that is away says nothing about who owns the folder.
            with contextlib.suppress(OSError, UserError):
                if _read(self._path).get("nonce", self._me["nonce"]) != self._me["nonce"]:
                    return
                self._write(count)

    def _check(self) -> str:
        owner = _read(self._path)
        if owner.get("nonce", self._me["nonce"]) != self._me["nonce"]:
            raise UserError(
                f"{_name(owner)} has taken over {self.folder}, as this run was not seen for "
                f"{self.seconds:.0f} s; this one ends without saving. Leave the folder to the "
                "other run, or end it and give the same command again"
            )
        return ""

    def _write(self, beat: int) -> None:
        files.put(self._path, json.dumps(self._me | {"beat": beat}).encode())

    def _release(self) -> None:
        self._ended.set()
        if self._beating.is_alive():
            self._beating.join()
        with contextlib.suppress(OSError):
            if _read(self._path).get("nonce") == self._me["nonce"]:
                self._path.unlink()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()


@contextmanager
def hold(folder: str | Path, seconds: float) -> Iterator[Lease]:
    """The lease of a folder while a run trains there; all processes of the run call this.

    Args:
      folder: of the run, made if need be.
      seconds: how long a lease counts after its owner was last seen.

    Raises:
      UserError: another run trains there, or the folder cannot be written.
    """
    _check_mounts(folder)
    lease = Lease(folder, seconds)
    agreement.first(lease._acquire, "cannot train in the folder of the run")
    if (watcher := supervision.current()) is not None:
        watcher.before_exit(lease._release)
    try:
        yield lease
    finally:
        lease._release()


@contextmanager
def hold_alone(folder: str | Path, seconds: float, doing: str) -> Iterator[Callable[[], object]]:
    """The lease of a folder for a process that is no part of a run of several, and asks no jax.

    Args:
      folder: made if need be.
      seconds: how long a lease counts after its owner was last seen.
      doing: what its owner does there, e.g. "captions".

    Yields:
      What checks that it is still held: it raises UserError where another process has taken it.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    lease = Lease(folder, seconds, doing)
    lease._acquire()
    try:
        yield lease._check
    finally:
        lease._release()


def seen(folder: str | Path) -> tuple[Any, Any] | None:
    """What changes for as long as the owner of a folder's lease lives; None where it has none."""
    owner = _read(Path(folder) / FILE)
    return (owner.get("nonce"), owner.get("beat")) if owner else None


def _check_mounts(folder: str | Path) -> None:
    """Raises UserError where a bucket is mounted on some hosts only: others would miss it."""
    told = agreement.tell("a mounted bucket" if storage.is_bucket(folder) else "on a disk")
    for process, kind in enumerate(told):
        if kind != told[0]:
            raise UserError(
                f"{folder} is {told[0]} for process 0 and {kind} for process {process}; mount the "
                "bucket at the same place on every host"
            )


def _read(path: Path) -> dict[str, Any]:
    """The lease; {} where there is none, or what is there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "another run"
    return f"another run (process {owner.get('process')} on {owner.get('host')})"


def _boot() -> str:
    try:
        return Path(_BOOT).read_text().strip()
    except OSError:
        return ""
