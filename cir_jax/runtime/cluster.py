# SPDX-License-Identifier: Apache-2.0
"""What the processes of a run tell each other, beside the collectives: the thread of a process.

Each process has one such thread. Every second it writes a heartbeat (phase and step of its main
thread) into the key-value store of jax's coordination service, which process 0 hosts, and reads the
news:

    news/end       a process failed, is lost or stuck, or left for a signal; the first one counts
    news/stop      a process was asked to stop
    news/stop_at   the step after which all stop: the largest that any had entered when it heard

Process 0 also reads all heartbeats and says who is lost or late. The thread never waits for the
main one, which may be inside a collective or a compiler for long.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from cir_jax.errors import UserError
from cir_jax.runtime import watchdog
from cir_jax.runtime.limits import Limits

ROOT = "cir_jax/"
RESUME = "The last complete checkpoint stands: the same command resumes the run"


class Cluster:
    """The thread, and what it knows. `start` it once.

    Args:
      client: of jax's coordination service.
      process: number of this process.
      count: processes of the run.
      limits: of the run.
      broken: tells whether the connection to process 0 has ended.
      say: is given the text of the verdict.

    Attributes:
      verdict: why the run ends, {"process", "host", "kind", "text", "status"}; None if it goes on.
      stop: who was asked to stop, {"process", "host", "signal"}; None if nobody was.
      stop_at: the step after which all stop; None until that is agreed.
      contact: `time.monotonic()` at which process 0 answered last.
    """

    def __init__(
        self,
        client: Any,
        process: int,
        count: int,
        limits: Limits,
        broken: Callable[[], bool] = lambda: False,
        say: Callable[[str], Any] = lambda text: None,
    ):
        self.process, self.count, self.limits = process, count, limits
        self.host = socket.gethostname()
        self.verdict: dict[str, Any] | None = None
        self.stop: dict[str, Any] | None = None
        self.stop_at: int | None = None
        self.contact = time.monotonic()
        self.broken = broken
        self._say = say
        self._client = client
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._entered = -1  # step that the main thread has begun
        self._told = False  # that one, to the others
        self._outbox: list[tuple[str, str, bool]] = []
        self._beats = 0
        self._finished: set[int] = set()
        self._gone: set[int] = set()
        self._seen = {i: ("", time.monotonic()) for i in range(count)}
        self._places: dict[int, dict[str, Any]] = {}
        self._last_round = time.monotonic()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="cluster")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def post(self, name: str, value: dict[str, Any], overwrite: bool = False) -> None:
        """Has the thread write `name` for all to read; without `overwrite` the first one counts."""
        with self._changed:
            self._outbox.append((name, json.dumps(value), overwrite))
        self._wake.set()

    def end(self, kind: str, text: str, status: int, wait: float = 0.0) -> None:
        """Tells all that the run ends, and why.

        Args:
          kind: "failed", "lost", "stuck" or "stopped".
          text: a sentence that names the process.
          status: with which the others end.
          wait: seconds to wait until it is written.
        """
        me = {"process": self.process, "host": self.host}
        self.post("news/end", me | {"kind": kind, "text": text, "status": status})
        self.wait_for_verdict(wait)

    def ask_to_stop(self, signal_name: str) -> None:
        """Asks all processes to stop at one step."""
        me = {"process": self.process, "host": self.host, "signal": signal_name}
        self.post("news/stop", me)

    def may_go_on(self, step: int) -> bool:
        """Called by the main thread after `step`: False if all stop here, else it enters the next.

        While a stop is being agreed on it waits.

        Raises:
          UserError: the run has ended for another reason.
        """
        with self._changed:
            if self.stop is not None:
                self._changed.wait_for(lambda: self.stop_at is not None or self.verdict is not None)
                if self.stop_at is not None and step >= self.stop_at:
                    return False
            if self.verdict is not None:
                raise UserError(self.verdict["text"])
            self._entered = step + 1
            return True

    def wait_for_verdict(self, seconds: float) -> None:
        """Waits until it is known why the run ends, or for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self.verdict is not None, seconds)

    def get(self, key: str) -> str:
        """The value of a key of the store, once somebody has set it.

        Raises:
          UserError: the run ends before that.
        """
        while True:
            try:
                return self._client.blocking_key_value_get(key, 500)
            except Exception as error:
                if self.verdict is not None:
                    raise UserError(self.verdict["text"]) from None
                if "DEADLINE" not in str(error) and "NOT_FOUND" not in str(error):
                    raise

    def linger(self, seconds: float) -> None:
        """Process 0, which hosts the service, goes last: waits until the others know the end."""
        if self.process:
            return
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(self._gone | self._finished | {0}) < self.count:
            if self._lost_now():
                break
            time.sleep(0.05)

    def leave(self) -> None:
        """The regular end: returns when all processes are here."""
        watchdog.progress("end")
        self.post(f"finished/{self.process}", {})
        with self._changed:
            self._changed.wait_for(lambda: len(self._finished) == self.count)
        self.close()

    def close(self) -> None:
        """Ends the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join(5)

    def name(self, process: int) -> str:
        """ "process 1 on HOST"."""
        host = self._places.get(process, {}).get("host")
        return f"process {process}" + (f" on {host}" if host else "")

    def _run(self) -> None:
        while not self._closed:
            try:
                self._round()
                self.contact = time.monotonic()
            except Exception:  # whatever the service answers; `contact` says for how long
                pass
            self._wake.wait(self.limits.period)
            self._wake.clear()

    def _round(self) -> None:
        self._beats += 1
        place = watchdog.now()
        late = watchdog.overdue(self.limits.stuck, self.limits.compiling)
        beat = {"n": self._beats, "host": self.host, "rank": place.rank(), "place": str(place)}
        self._set(f"beat/{self.process}", json.dumps(beat | {"late": late}), True)
        while self._outbox:
            self._set(*self._outbox[0])
            with self._changed:
                self._outbox.pop(0)
        if 0 not in self._places:
            first = {i: text for i, text in self._list("beat/") if i == "0"}
            self._places |= {int(i): json.loads(text) for i, text in first.items()}
        if self.verdict is None:
            self._read_news()
        if self.process == 0:
            self._look_after_all()
        elif watchdog.now().phase == "end":
            self._note_finished()

    def _read_news(self) -> None:
        news = {name: json.loads(text) for name, text in self._list("news/")}
        with self._changed:
            self.stop = self.stop or news.get("stop")
            entered = self._entered  # no further one from here on, see `may_go_on`
            if "stop_at" in news and self.stop_at is None:
                self.stop_at = news["stop_at"]["step"]
            self._changed.notify_all()
        if self.stop and not self._told:
            self._set(f"entered/{self.process}", json.dumps(entered), False)
            self._told = True
            self._wake.set()
        if "end" in news:
            self._set(f"gone/{self.process}", "{}", True)
            with self._changed:
                self.verdict = news["end"]
                self._changed.notify_all()
            self._say(self.verdict["text"])

    def _look_after_all(self) -> None:
        """What process 0 does: who is lost, who is late, which step is the last."""
        now = time.monotonic()
        gap = now - self._last_round - 5 * self.limits.period
        self._last_round = now
        forgiven = max(gap, 0.0)  # this process itself could not run
        for name, text in self._list("beat/"):
            process = int(name)
            if self._seen.get(process, ("", 0.0))[0] != text:
                self._seen[process] = (text, now)
                self._places[process] = json.loads(text)
        for process, (text, at) in self._seen.items():
            self._seen[process] = (text, at + forgiven)
        self._gone = {int(name) for name, _ in self._list("gone/")}
        self._note_finished()
        if self.stop and self.stop_at is None:
            entered = [json.loads(text) for _, text in self._list("entered/")]
            if len(entered) == self.count:
                self._set("news/stop_at", json.dumps({"step": max(entered)}), False)
                self._wake.set()
        if self.verdict is None and (lost := self._lost_now()):
            self._say_lost(lost)
        elif self.verdict is None:
            self._say_late()

    def _note_finished(self) -> None:
        finished = {int(name) for name, _ in self._list("finished/")}
        with self._changed:
            self._finished = finished
            self._changed.notify_all()

    def _lost_now(self) -> list[int]:
        now = time.monotonic()
        away = self._finished | self._gone
        return [
            process
            for process, (_, at) in self._seen.items()
            if process not in away and now - at > self.limits.lost
        ]

    def _say_lost(self, lost: list[int]) -> None:
        names = " and ".join(self.name(process) for process in lost)
        last = self._places.get(lost[0], {}).get("place", "at its start")
        self.end(
            "lost",
            f"{names} gave no sign of life for {self.limits.lost:g} s (cluster.lost_seconds), last "
            f"heard of {last}: killed, out of memory, or the host is gone. {RESUME}",
            1,
        )

    def _say_late(self) -> None:
        """Who is late is who has come least far; the others wait for it."""
        here = {i: b for i, b in sorted(self._places.items()) if i not in self._finished}
        over = [b["late"] for b in here.values() if b["late"]]
        if not over:
            return
        least = min(b["rank"] for b in here.values())
        late = [i for i, b in here.items() if b["rank"] == least]
        place = here[late[0]]["place"]
        who = " and ".join(self.name(process) for process in late)
        if len(late) == len(here):
            who = "all processes"
        which = "are" if len(late) > 1 else "is"
        self.end(
            "stuck",
            f"no progress for {max(over):.0f} s (cluster.stuck_seconds, cluster.compile_seconds): "
            f"{who} {which} late, {place}. {RESUME}",
            1,
        )

    def _set(self, name: str, value: str, overwrite: bool) -> None:
        try:
            self._client.key_value_set(ROOT + name, value, allow_overwrite=overwrite)
        except Exception as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def _list(self, folder: str) -> list[tuple[str, str]]:
        """(name below the folder, value)."""
        found = self._client.key_value_dir_get(ROOT + folder)
        return [(key.rpartition("/")[2], value) for key, value in found]
