# SPDX-License-Identifier: Apache-2.0
"""Spoils files and reads them: `python tools/fuzz.py`. Only a UserError may come of it.

Every reader of data sets, captions, pictures, weights, runs and evaluations gets files that it
takes, of which one or two are changed at random: bytes, numbers, structure, encoding. Any other
exception, a read that takes longer than the limit, or one that takes more memory is a finding; each
is shown once, with the command that repeats it, and the program ends with status 1.

  python tools/fuzz.py --seconds 3600
  python tools/fuzz.py --only captions --seed 7 --first 1234 --trials 1
"""

import argparse
import gc
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

from cir_jax import progress
from cir_jax.errors import UserError, nearest
from tools.fuzzing import mutations, readers

# Readers that write, so that all of their files are as they were only if all are put back.
_WRITE = ("banks", "checkpoints", "looks", "columns", "squares")
LATE = 20.0  # seconds that one read may take
MEMORY = 512 << 20  # bytes by which the process may grow in one trial


class LateError(BaseException):
    """A read took longer than it may; no reader catches it."""


@dataclass
class Findings:
    """What came of it.

    Attributes:
      trials: how many files were spoiled and read.
      found: kind of finding -> the trial that has it first, and its traceback.
    """

    trials: int = 0
    found: dict[str, str] = field(default_factory=dict)

    def note(self, kind: str, trial: str, details: str) -> None:
        """Keeps the first of each kind."""
        if kind not in self.found:
            self.found[kind] = f"{trial}\n{details}"
            progress.say(f"FOUND {kind}\n  {trial}\n{details}")


class Trials:
    """Spoils the files of one reader, and reads them.

    Args:
      name: of the reader, see `readers`.
      root: an empty folder for its files.
    """

    def __init__(self, name: str, root: Path):
        self.name, self._root = name, root
        self._read = readers.READERS[name](root)
        self._content = {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        self._read()  # it takes them as they are, and imports what it needs

    def run(self, seed: int, number: int, findings: Findings, late: float = LATE) -> None:
        """One trial, which its seed and number say entirely."""
        rng = random.Random(f"{seed} {self.name} {number}")
        names = [p for p in self._content if p.suffix not in (".png", ".npy.lock")]
        chosen = rng.sample(names, min(rng.choice((1, 1, 2)), len(names)))
        for path in chosen:
            path.write_bytes(mutations.mutated(self._content[path], path.name, rng))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trial = (
            f"python tools/fuzz.py --only {self.name} --seed {seed} --first {number} --trials 1"
            f"  ({', '.join(str(p.relative_to(self._root)) for p in chosen)})"
        )
        try:
            with _limit(late):
                self._read()
        except UserError:
            pass
        except LateError:
            findings.note(f"{self.name}: over {late:g} s", trial, traceback.format_exc(limit=-4))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            findings.note(_kind(self.name, error), trial, traceback.format_exc(limit=-6))
        finally:
            self._restore(chosen)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown << 10 > MEMORY:
            findings.note(f"{self.name}: {grown >> 10} MiB more", trial, "")
        findings.trials += 1

    def _restore(self, chosen: Sequence[Path]) -> None:
        for path in self._root.rglob("*"):
            if path.is_file() and path not in self._content:
                path.unlink()
        missing = [p for p in self._content if not p.exists()]
        for path in {
            *chosen,
            *missing,
            *(p for p in self._content if self.name in _WRITE),
        }:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._content[path])


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise LateError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _kind(name: str, error: BaseException) -> str:
    """The exception and the last place of ours that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/cir_jax/" in f.filename] or frames
    place = ours[-1].filename.rpartition("/cir_jax/")[2]
    return f"{name}: {type(error).__name__} in {place}:{ours[-1].lineno}"


def search(
    names: Sequence[str], seed: int, first: int, trials: int, seconds: float = float("inf")
) -> Findings:
    """Spoils the files of these readers in turns.

    Args:
      names: of readers.
      seed, first: of the trials.
      trials: of each reader at most.
      seconds: after which no further trial begins.
    """
    findings, end = Findings(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = []
        for name in names:
            (Path(folder) / name).mkdir()
            made.append(Trials(name, Path(folder) / name))
        for number in range(first, first + trials):
            for one in made:
                if time.monotonic() >= end:
                    return findings
                one.run(seed, number, findings)
            if number % 200 == 199:
                gc.collect()
    return findings


def main(argv: Sequence[str] | None = None) -> int:
    """Searches, and says how many kinds of finding there are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to search")
    parser.add_argument("--seed", type=int, default=0, help="of the changes")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--trials", type=int, default=10**9, help="of each reader at most")
    parser.add_argument("--only", default="", help=f"of {', '.join(readers.READERS)}: a,b")
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(readers.READERS)
    for name in names:
        if name not in readers.READERS:
            print(f"fuzz.py: no reader {name!r}.{nearest(name, readers.READERS)}", file=sys.stderr)
            return 2
    findings = search(names, args.seed, args.first, args.trials, args.seconds)
    progress.say(f"{findings.trials:,} trials, {len(findings.found)} kinds of finding")
    return 1 if findings.found else 0


if __name__ == "__main__":
    sys.exit(main())
