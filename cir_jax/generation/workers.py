# SPDX-License-Identifier: Apache-2.0
"""One work folder for many workers, on as many hosts: who does what, and what is done.

    workers/03-of-16/      all that worker 3 of 16 writes, and nobody else
        begun.json         the settings that its results depend on
        hashes.jsonl, captions.jsonl, rewrites.jsonl   its journals, and lists of what was refused
        hashed.json, captioned.json, paired.json, rewritten.json   steps it has done, and of what
        .lease             who it is just now, and that it lives

No file has two writers, so nothing depends on locks, which end at a host. An image is the work of
one worker by a hash of its name, whatever other images there are.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
_POLL, _SAY = 2.0, 300.0  # seconds between two looks at what others have done; between messages
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

        return lease.hold_alone(self.folder(number), _LEASE, "makes triplets")

    def begin(self, share: Share, config: ConfigDict) -> None:
        """Notes how the workers of a share are begun, if it is as the others were.

        Two that begin at the same moment both write first and look then, so one of them sees the
        other.

        Raises:
          UserError: the folder was begun by another number of workers, or with other settings.
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

    def mark(self, number: int, step: str, about: Mapping[str, Any]) -> None:
        """Notes that a worker has done a step, and of what."""
        record = {"made_of": about, "counts": {}}
        journal.write_json(self.folder(number) / f"{step}.json", record)

    def missing(
        self, step: str, about: Mapping[str, Any], numbers: Collection[int] = ()
    ) -> list[int]:
        """The workers that have not done a step of this; of `numbers`, () for all."""
        return [
            n
            for n in numbers or self.numbers
            if journal.reuse(self.folder(n) / f"{step}.json", dict(about), []) is None
        ]

    def check_done(
        self, step: str, about: Mapping[str, Any], numbers: Collection[int] = ()
    ) -> None:
        """Raises UserError that names the workers which have not done a step of this."""
        if missing := self.missing(step, about, numbers):
            raise UserError(
                f"{self.workdir} cannot be merged: {self._named(missing)} not {step} all of its "
                f"images. {self._remedy(missing)}, and merge when they have ended"
            )

    def wait_for(
        self, step: str, about: Mapping[str, Any], patience: float, numbers: Collection[int] = ()
    ) -> None:
        """Returns when workers have done a step of this.

        Args:
          step: its name.
          about: what it is to be done of.
          patience: see `Share`.
          numbers: of the workers; () for all.

        Raises:
          Stopped: those that have not were not seen for so long; the command can go on later.
        """
        from cir_jax.runtime import lease  # which imports jax

        lives: dict[int, Any] = {}
        alive = time.monotonic()
        told: tuple[list[int], float] = [], 0.0
        missing = self.missing(step, about, numbers)
        while missing:
            now = time.monotonic()
            for number in missing:
                life = lease.seen(self.folder(number))
                if life is not None and life != lives.get(number):
                    lives[number], alive = life, now
            if now - alive >= patience:
                raise supervision.Stopped(
                    f"{self._named(missing)} not {step} all of its images, and showed no sign of "
                    f"life for {patience:.0f} s. {self._remedy(missing)}. What is done is kept: "
                    "then the same command goes on here"
                )
            if missing != told[0] or now - told[1] >= _SAY:
                told = missing, now
                progress.say(f"waiting: {self._named(missing)} not {step} all of its images yet")
            time.sleep(min(_POLL, patience))
            missing = self.missing(step, about, missing)

    def _named(self, numbers: Sequence[int]) -> str:
        some = ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
        if len(numbers) == 1:
            return f"worker {some} of {self.count} has"
        return f"workers {some} of {self.count} have each"

    def _remedy(self, numbers: Sequence[int]) -> str:
        all_of_them = f"{','.join(map(str, numbers))}/{self.count}"
        return (
            "Start what does not run, on any host, by its number or several in one process: "
            f"--worker {all_of_them}"
        )


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
