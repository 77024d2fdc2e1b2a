# SPDX-License-Identifier: Apache-2.0
"""One work folder for many workers, on as many hosts: who does what, and what is done.

    workers/03-of-16/      all that worker 3 of 16 writes, and nobody else
        begun.json         the settings that its results depend on
        hashes.jsonl, captions.jsonl, rewrites.jsonl   its journals, and lists of what was refused
        hashed.json, captioned.json, paired.json, rewritten.json   steps it has done, and of what
        .lease             which process does its work just now, and that it lives

No file has two writers, so nothing depends on locks, which end at a host. An image is the work of
one worker by a hash of its name, whatever other images there are. A worker that was killed leaves
its lease behind, which then changes no more: one that waits for it takes its work over.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.config import to_json
from cir_jax.errors import UserError
from cir_jax.generation import journal
from cir_jax.runtime import supervision

FOLDER, BEGUN = "workers", "begun.json"
MOST = 9999
PATIENCE = 600.0  # seconds that workers which do not live are waited for
_LEASE = 120.0  # seconds a worker counts as living after it was last seen
_TURNS = 60  # so many take a dead one over one after the other, _POLL seconds apart, not at once
_POLL, _SAY = 2.0, 300.0  # seconds between two looks at what others have done; between messages
_ALONE = 5.0  # seconds in which others that begin have all looked whether a process works alone
_NUMBER = re.compile(r"(\d+)-of-(\d+)")
_FLAG = re.compile(r"(\d+(?:,\d+)*)/(\d+)")
# What may differ between workers: places, speed, and who is asked in the same words.
_OWN = {
    "root", "lists", "threads", "on_missing", "url", "concurrency", "per_minute", "timeout", "wait",
    "key_variable", "batch", "device", "file", "features", "feature_names", "run", "excluded",
}  # fmt: skip


@dataclass(frozen=True)
class Share:
    """The part of the work that one process does.

    Attributes:
      numbers: of the workers whose work it does, from 1; several where it takes over others'.
      count: of all workers.
      patience: seconds that workers are waited for which show no sign of life; they show one every
        30 seconds.
    """

    numbers: tuple[int, ...]
    count: int
    patience: float = PATIENCE

    @classmethod
    def parse(cls, text: str, patience: float = PATIENCE) -> "Share":
        """From "3/16", or "3,7/16" for the work of two.

        Raises:
          UserError: it is neither, a number is none of a worker, or the patience is negative.
        """
        found = _FLAG.fullmatch(text.replace(" ", ""))
        if found is None:
            raise UserError(
                f"--worker={text} is no worker; give its number and how many there are, e.g. 3/16, "
                "or several numbers whose work this process does, e.g. 3,7/16"
            )
        numbers, count = sorted({int(n) for n in found[1].split(",")}), int(found[2])
        if not 1 <= count <= MOST:
            raise UserError(f"--worker={text} says {count} workers; there may be 1 to {MOST:,}")
        wrong = [n for n in numbers if not 1 <= n <= count]
        if wrong:
            raise UserError(
                f"--worker={text}: there is no worker {wrong[0]} of {count}; they are numbered 1 "
                f"to {count}"
            )
        if not patience >= 0:
            raise UserError(f"--wait={patience:g} is no time; give seconds, 0 for no waiting")
        return cls(tuple(numbers), count, patience)


@dataclass(frozen=True)
class Workers:
    """The workers of a work folder.

    Attributes:
      workdir: the work folder.
      count: how many there are.
    """

    workdir: Path
    count: int

    @property
    def numbers(self) -> range:
        """Of all."""
        return range(1, self.count + 1)

    def folder(self, number: int) -> Path:
        """Of a worker."""
        return self.workdir / FOLDER / f"{number:02d}-of-{self.count:02d}"

    def journals(self, name: str) -> list[Path]:
        """All journals of a name: that of the work folder, begun without workers, comes first."""
        return [self.workdir / name, *(self.folder(number) / name for number in self.numbers)]

    def of(self, key: str) -> int:
        """Whose work something is, by its name."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % self.count + 1

    def held(self, number: int) -> AbstractContextManager[Callable[[], object]]:
        """The right to do the work of a worker, and what checks that it is still there.

        Raises:
          UserError: another process does its work.
        """
        from cir_jax.runtime import lease  # which imports jax

        return lease.hold_alone(self.folder(number), _LEASE, f"does the work of worker {number}")

    def begin(self, share: Share, config: ConfigDict) -> None:
        """Notes how the workers of a share are begun, if it is as the others were.

        Two that begin at the same moment both write first and look then, so one of them sees the
        other; and so does a process that does all the work alone.

        Raises:
          UserError: the folder was begun by another number of workers, or with other settings, or
            a process is at work in it without workers.
        """
        self.check(config)
        new = []
        for number in share.numbers:
            before = _read(self.folder(number) / BEGUN)
            if not before:
                new.append(number)
            begun = {**before, **settings(config)}
            journal.write_json(self.folder(number) / BEGUN, begun, indent=2)
        try:
            self.check(config)
            with journal.locked(self.workdir, wait=_ALONE):  # workers hold it but for this look
                pass
        except UserError:
            for number in new:
                (self.folder(number) / BEGUN).unlink(missing_ok=True)
            raise

    def check(self, config: ConfigDict) -> None:
        """Raises UserError if the folder was begun by other workers or with other settings."""
        other = next((one for one in _there(self.workdir) if one != self.count), 0)
        if other:
            raise UserError(
                f"{self.workdir} was begun by {other} workers, and these are {self.count}; start "
                f"workers of {other}, e.g. --worker 1/{other}, or use another workdir"
            )
        mine = settings(config)
        for number in self.numbers:
            begun = _read(self.folder(number) / BEGUN)
            for key, value in begun.items():
                if key in mine and mine[key] != value:
                    raise UserError(
                        f"worker {number} of {self.workdir} was begun with {key}={value!r}, and "
                        f"here it is {mine[key]!r}; set it back, or use another workdir. To "
                        "change it for all, end the workers and remove "
                        f"{self.workdir / FOLDER}/*/{BEGUN}: what is written is kept"
                    )

    def mark(
        self, number: int, step: str, about: Mapping[str, Any], written: Iterable[str] = ()
    ) -> None:
        """Notes that a worker has done a step, of what, and how long the files are that it wrote.

        Args:
          number: of the worker.
          step: its name.
          about: what it was done of.
          written: names of files in the worker's folder; those that are not there are left out.
        """
        files = [file for name in written if (file := self.folder(number) / name).is_file()]
        record = {"made_of": about, "counts": {file.name: file.stat().st_size for file in files}}
        journal.write_json(self.folder(number) / f"{step}.json", record)

    def missing(
        self, step: str, about: Mapping[str, Any], numbers: Collection[int] = ()
    ) -> list[int]:
        """The workers that have not done a step of this; of `numbers`, () for all."""
        return [n for n in numbers or self.numbers if not self._has_done(n, step, about)]

    def _has_done(self, number: int, step: str, about: Mapping[str, Any]) -> bool:
        folder = self.folder(number)
        try:
            sizes = journal.reuse(folder / f"{step}.json", dict(about), [])
            # The mount of another host may show a file for a while as it was: it is there when it
            # is as long as its writer left it.
            return sizes is not None and all(
                (folder / name).stat().st_size >= size for name, size in sizes.items()
            )
        except OSError:  # not there yet, or replaced while it was read
            return False

    def check_done(
        self, step: str, about: Mapping[str, Any], numbers: Collection[int] = ()
    ) -> None:
        """Raises UserError that names the workers which have not done a step of this."""
        if missing := self.missing(step, about, numbers):
            raise UserError(
                f"{self.workdir} cannot be merged: {self._not_done(step, missing)}. "
                f"{self._remedy(missing)}, and merge when they have ended"
            )

    def wait_for(
        self,
        step: str,
        about: Mapping[str, Any],
        share: Share,
        *,
        numbers: Collection[int] = (),
        take_over: Callable[[int], object] = lambda number: None,
        leave: bool = False,
    ) -> None:
        """Returns when workers have done a step of this.

        Args:
          step: its name.
          about: what it is to be done of.
          share: of the process that waits.
          numbers: of the workers; () for all.
          take_over: called with the number of a worker that was killed, to do its work if no other
            process does.
          leave: only sees to those that were killed: returns when the others live, or are not
            there.

        Raises:
          Stopped: those that have not were not seen for so long; the command can go on later.
        """
        watch = _Watch(self)
        told: tuple[list[int], float] = [], 0.0
        turn = min(share.numbers[0], _TURNS) * _POLL
        while missing := self.missing(step, about, numbers):
            watch.look(missing)
            if dead := watch.dead(missing, _LEASE + turn):
                take_over(dead[0])
                if not self.missing(step, about, dead[:1]):
                    continue
            if leave and watch.knows(missing):
                return
            if watch.quiet() >= share.patience:
                if leave:
                    return
                raise supervision.Stopped(self._given_up(step, missing, share.patience))
            if missing != told[0] or time.monotonic() - told[1] >= _SAY:
                told = missing, time.monotonic()
                why = "looking whether any was killed" if leave else "waiting"
                progress.say(f"{why}: {self._not_done(step, missing)} yet")
            time.sleep(min(_POLL, share.patience))
            numbers = missing

    def _given_up(self, step: str, missing: Sequence[int], patience: float) -> str:
        quiet = f", and showed no sign of life for {patience:.0f} s" if patience else ""
        return (
            f"{self._not_done(step, missing)}{quiet}. {self._remedy(missing)}. What is done is "
            "kept: then the same command goes on here"
        )

    def _not_done(self, step: str, numbers: Sequence[int]) -> str:
        some = ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
        if len(numbers) == 1:
            return f"worker {some} of {self.count} has not {step} its part"
        return f"workers {some} of {self.count} have not {step} their parts"

    def _remedy(self, numbers: Sequence[int]) -> str:
        all_of_them = f"{','.join(map(str, numbers))}/{self.count}"
        return (
            "Start what does not run, on any host, by its number or several in one process: "
            f"--worker {all_of_them}"
        )


class _Watch:
    """What is seen of workers that are waited for, by the clock of the one that waits."""

    def __init__(self, workers: Workers):
        self._folder = workers.folder
        self._seen: dict[int, tuple[Any, float]] = {}  # number -> (its lease, seen first)
        self._changed: set[int] = set()
        self._last = time.monotonic()

    def look(self, numbers: Iterable[int]) -> None:
        """Looks at the leases of workers."""
        from cir_jax.runtime import lease  # which imports jax

        for number in numbers:
            before = self._seen.get(number)
            try:
                life = lease.seen(self._folder(number))
            except OSError:  # replaced while it was read, on a network file system
                life = before[0] if before else None
            if before is not None and before[0] == life:
                continue
            self._seen[number] = life, time.monotonic()
            if before is not None:
                self._changed.add(number)
            if life is not None:
                self._last = time.monotonic()

    def dead(self, numbers: Iterable[int], seconds: float) -> list[int]:
        """Those whose lease is there, and has not changed for so long."""
        now = time.monotonic()
        return [
            n for n in numbers if self._seen[n][0] is not None and now - self._seen[n][1] >= seconds
        ]

    def knows(self, numbers: Iterable[int]) -> bool:
        """Whether each has no lease, or one that has changed."""
        return all(n in self._changed or self._seen[n][0] is None for n in numbers)

    def quiet(self) -> float:
        """Seconds since one of them showed a sign of life."""
        return time.monotonic() - self._last


def begun(workdir: str | Path) -> Workers | None:
    """The workers that began a work folder; None if it was begun without.

    Raises:
      UserError: there are those of two numbers of workers.
    """
    counts = _there(Path(workdir))
    if len(counts) > 1:
        raise UserError(
            f"{Path(workdir) / FOLDER} was begun by {counts[0]} and by {counts[1]} workers; move "
            "the folders of one of them away"
        )
    return Workers(Path(workdir), counts[0]) if counts else None


def settings(config: ConfigDict, pairs: bool = True) -> dict[str, Any]:
    """What all workers must agree on: key of the config -> value.

    Args:
      config: see configs/positives.py.
      pairs: with what pairs and their texts depend on, if workers rewrite these.
    """
    values = json.loads(to_json(config))
    sections = ["data", "dedupe", "caption"]
    if pairs and config.rewrite.captioner:
        sections += ["pair", "rewrite"]
    found = {"seed": values["seed"]}
    for section in sections:
        for key, value in values[section].items():
            if key not in _OWN:
                found[f"{section}.{key}"] = value
    return found


def fingerprint(content: Any) -> str:
    """Names something that JSON can write."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _there(workdir: Path) -> list[int]:
    """For how many workers there are folders that were begun, each number once."""
    if not (workdir / FOLDER).is_dir():
        return []
    found = set()
    for place in (workdir / FOLDER).iterdir():
        name = _NUMBER.fullmatch(place.name)
        if name and (place / BEGUN).is_file():
            found.add(int(name[2]))
    return sorted(found)


def _read(path: Path) -> dict[str, Any]:
    """A record of `begin`; {} where there is none. One that is damaged is as good as none."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
