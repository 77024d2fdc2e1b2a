# SPDX-License-Identifier: Apache-2.0
"""The watching thread of a command: signals, faults of other processes, and work that stands still.

`cir-jax train` and the like run inside `command(...)`. The main thread may be in a compiler or in a
collective for minutes and hears nothing there; so a thread of its own reads the signals and the
news of the cluster, and where the main thread cannot end in time ends the process: it prints the
reason last and leaves with `os._exit`. Nothing does so in a program that uses the library: without
`command` there is no such thread, and a stop is a request that the loop answers (`interrupts`).

Exit statuses: STOPPED (75, "temporary failure" of sysexits.h) after a signal: the same command goes
on. 1 if a process failed, is lost or stuck; 2 if one refused its input. 130 at a second Ctrl-C.

Free of jax, so that it watches from the first moment.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from cir_jax.errors import UserError
from cir_jax.runtime import watchdog
from cir_jax.runtime.cluster import RESUME, Cluster
from cir_jax.runtime.limits import Limits

STOPPED = 75
TICK = 0.2  # seconds between two looks
PAUSE = 3.0  # a look that is later than this: the process, or the machine, did not run
GOODBYE = 0.2  # share of the grace period that is kept for taking leave
SHORT = ("read", "step", "save", "report", "end")  # phases that are waited for after a signal


class Stopped(UserError):
    """A part of a command was stopped by a signal; the command ends with STOPPED."""


_current: "Supervisor | None" = None


def current() -> "Supervisor | None":
    """The supervisor of the command that runs; None in a program that uses the library."""
    return _current


@contextlib.contextmanager
def command(name: str) -> Iterator["Supervisor"]:
    """Runs a command under watch.

    An exception in one of several processes ends all of them; it does not return from here.
    """
    global _current
    watcher = Supervisor(name)
    before, _current = _current, watcher
    watcher.begin()
    try:
        yield watcher
        if watcher.cluster is not None:
            watcher.cluster.leave()
    except BaseException as error:
        if watcher.cluster is not None:
            watcher.fail(error)
        raise
    finally:
        watcher.finish()
        _current = before


class Supervisor:
    """The thread of one command. `command` starts and ends it.

    Attributes:
      limits: of the run; those of its config once that is read.
      asked: a signal has come.
      cluster: the other processes; None where there is one.
    """

    def __init__(self, name: str):
        self.limits = Limits()
        self.asked = False
        self.cluster: Cluster | None = None
        self._name = name
        self._signal = 0
        self._interrupts = 0
        self._asked_at = 0.0
        self._made: Callable[[], tuple[int, int]] | None = None
        self._before_exit: list[Callable[[], Any]] = []
        self._handlers: dict[int, Any] = {}
        self._wakeup = -1
        self._over = False
        self._failed, self._failed_status, self._failed_at = "", 1, 0.0
        self._read, self._write = os.pipe()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="supervision")

    def begin(self) -> None:
        """Takes the signals, if this is the main thread, and starts to watch."""
        watchdog.progress("start", 0)
        if threading.current_thread() is threading.main_thread():
            os.set_blocking(self._write, False)
            for number in (signal.SIGINT, signal.SIGTERM):
                # The number comes through the pipe, also while the main thread runs no Python.
                self._handlers[number] = signal.signal(number, lambda *_: None)
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()

    def finish(self) -> None:
        """Ends the thread and gives the signals back."""
        self._over = True
        os.write(self._write, b"\0")
        self._thread.join()
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def counts(self, made: Callable[[], tuple[int, int]] | None) -> None:
        """Tells how much a hard end would lose.

        Args:
          made: returns (steps that were made, steps in the newest complete checkpoint); None where
            nothing is made.
        """
        self._made = made

    def before_exit(self, callback: Callable[[], Any]) -> None:
        """Has `callback` called before a hard end, e.g. to let go of a lock; it may take 2 s."""
        self._before_exit.append(callback)

    def fail(self, error: BaseException) -> None:
        """Tells the other processes of `error`, prints it and ends this process. Never returns."""
        status = 2 if isinstance(error, UserError) else 1
        cluster = self.cluster
        assert cluster is not None
        if status == 1:
            traceback.print_exception(error)
        self.announce(error)
        if not self._failed and cluster.verdict is not None:
            self._end_for(cluster.verdict)
        if self.asked or cluster.stop:  # a peer that has left for the signal breaks collectives
            self._end_hard(self._stopped_text(), STOPPED)
        if cluster.verdict and cluster.verdict["process"] != cluster.process:
            self._end_for(cluster.verdict)
        what = str(error) if status == 2 else f"{type(error).__name__}: {error}".rstrip(": ")
        self._end_hard(f"{what}\n(process {cluster.process} on {cluster.host})", status)

    def announce(self, error: BaseException) -> None:
        """Tells the other processes of `error` before anything waits for them, once."""
        cluster = self.cluster
        if cluster is None or self._failed:
            return
        if _of_a_collective(error):  # most likely a peer is gone: who, the heartbeats will tell
            cluster.wait_for_verdict(self.limits.lost + 5)
        if cluster.verdict is not None:
            return
        status = 2 if isinstance(error, UserError) else 1
        self._failed = str(error) if status == 2 else f"{type(error).__name__}: {error}"
        self._failed_status, self._failed_at = status, time.monotonic()
        stopped = self.asked or cluster.stop
        kind = "stopped" if stopped else "failed"
        text = f"process {cluster.process} on {cluster.host} ended: {self._failed}"
        cluster.end(kind, text, STOPPED if stopped else status, wait=5.0)

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            ready, _, _ = select.select([self._read], [], [], TICK)
            numbers = os.read(self._read, 64) if ready else b""
            if self._over:
                return
            now = time.monotonic()
            if now - last > PAUSE:
                self._forgive(now - last)
            last = now
            try:
                for number in numbers:
                    self._note(number)
                self._look(now)
            except Exception:  # a defect here must not leave the run without a watch
                traceback.print_exc()

    def _forgive(self, seconds: float) -> None:
        """The process did not run for so long: nobody is late for it."""
        watchdog.forgive(seconds)
        if self.cluster is not None:
            self.cluster.contact += seconds
        if self.asked:
            self._asked_at += seconds

    def _note(self, number: int) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            return
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                self._end_hard(f"ended at a second Ctrl-C. {RESUME}", 130)
        self._ask(number)

    def _ask(self, number: int) -> None:
        if self.asked:
            return
        self.asked, self._signal, self._asked_at = True, number, time.monotonic()
        if self.cluster is not None:
            self.cluster.ask_to_stop(signal.Signals(number).name)

    def _look(self, now: float) -> None:
        cluster = self.cluster
        if cluster is not None:
            if cluster.stop and not self.asked:
                self._ask(signal.SIGTERM)
            if cluster.verdict:
                self._hear(cluster.verdict, now)
            elif cluster.process and watchdog.now().phase != "end":
                self._look_at_process_0(cluster, now)
        elif late := watchdog.overdue(self.limits.stuck, self.limits.compiling):
            self._end_hard(
                f"no progress for {late:.0f} s (cluster.stuck_seconds, cluster.compile_seconds): "
                f"this process is late, {watchdog.now()}. {RESUME}",
                1,
            )
        if self.asked:
            self._look_at_stop(now)

    def _hear(self, verdict: dict[str, Any], now: float) -> None:
        cluster = self.cluster
        assert cluster is not None
        if not self._failed:
            self._end_for(verdict)
        if now - self._failed_at > 10:  # the main thread waits, as it unwinds, for one that is gone
            place = f"(process {cluster.process} on {cluster.host})"
            self._end_hard(f"{self._failed}\n{place}", self._failed_status)

    def _look_at_process_0(self, cluster: Cluster, now: float) -> None:
        silent = now - cluster.contact
        if not cluster.broken() and silent <= self.limits.lost:
            return
        if self.asked:
            self._end_hard(self._stopped_text(), STOPPED)
        why = "its connection has ended" if cluster.broken() else f"no answer for {silent:.0f} s"
        self._end_hard(
            f"{cluster.name(0)} is gone ({why}): killed, out of memory, or the host is gone. "
            f"{RESUME}",
            1,
        )

    def _look_at_stop(self, now: float) -> None:
        """Ends the process if it has nothing to save, or cannot any more within the grace."""
        waited = now - self._asked_at
        if self.cluster is not None and self.cluster.stop is None and waited < 5:
            return  # the others do not know yet
        short = watchdog.now().phase in SHORT
        if waited > self.limits.grace * (1 - GOODBYE) or (not short and not self._unsaved()):
            text = self._stopped_text()
            if self.cluster is not None:
                self.cluster.end("stopped", text, STOPPED, wait=2.0)
            self._end_hard(text, STOPPED)

    def _unsaved(self) -> int:
        if self._made is None:
            return 0
        try:
            made, saved = self._made()
        except OSError:  # the storage does not answer: not known to be saved
            return 1
        return made - saved

    def _stopped_text(self) -> str:
        place, made, saved = watchdog.now(), 0, 0
        if self._made is not None:
            with contextlib.suppress(OSError):
                made, saved = self._made()
        if made <= saved:
            what = f"step {made} is saved" if made else "there was nothing to save"
        else:
            what = (
                f"no time to save steps {saved + 1} to {made} within checkpoint.grace_seconds="
                f"{self.limits.grace:g}: they are made again"
            )
        who = ""
        if self.cluster is not None and self.cluster.stop:
            stop = self.cluster.stop
            who = f" asked of process {stop['process']} on {stop['host']}"
        name = signal.Signals(self._signal or signal.SIGTERM).name
        return f"stopped by {name}{who} {place}; {what}. The same command goes on"

    def _end_for(self, verdict: dict[str, Any]) -> None:
        if verdict["kind"] == "stopped" and self._made is not None:
            self._end_hard(self._stopped_text(), verdict["status"])
        text = verdict["text"]
        if verdict["status"] != 2 and RESUME not in text:  # 2: it would be refused again
            text = f"{text}\n{RESUME}"
        self._end_hard(text, verdict["status"])

    def _end_hard(self, text: str, status: int) -> None:
        """Prints the reason, and ends the process whatever its other threads do."""
        if self.cluster is not None:
            self.cluster.linger(min(5.0, self.limits.grace * GOODBYE))
        _within(2.0, [*self._before_exit, sys.stdout.flush, sys.stderr.flush])
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self._name}: {text}\n".encode())
        os._exit(status)


def _of_a_collective(error: BaseException) -> bool:
    """Whether `error` may be what jax raises in a collective when another process is gone."""
    words = (
        *("Gloo", "NCCL", "closed by peer", "reset by peer", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
        *("ABORTED", "coordination service", "barrier"),
    )
    return not isinstance(error, UserError) and any(word in str(error) for word in words)


def _within(seconds: float, calls: list[Callable[[], Any]]) -> None:
    """Calls each, and waits no longer: the main thread may hold what they need."""

    def run() -> None:
        for call in calls:
            with contextlib.suppress(Exception):
                call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
