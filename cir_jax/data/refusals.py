# SPDX-License-Identifier: Apache-2.0
"""What to say of images that cannot be used: one message and one list for all of a start.

A run looks at the images of its evaluation, of its triplets and of its bank one after the other.
Between `together` and `Gathering.settle` faults are only noted, so that the user learns of all of
them at once.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cir_jax import files
from cir_jax.data.pixels import ImageFile
from cir_jax.data.unusable import Problem
from cir_jax.errors import UserError

LIST = "unusable_images.jsonl"  # in the folder of a run
SHOWN = 10  # images in a message


class Part(NamedTuple):
    """Images that were looked at for one purpose.

    Attributes:
      what: they are, e.g. "val.jsonl"; "" if nothing is to be said of it.
      images: name -> file.
      found: name -> why it cannot be used.
      key: the config key that says what becomes of those.
      drops: whether they are left out, by that key.
    """

    what: str
    images: Mapping[str, ImageFile]
    found: Mapping[str, Problem]
    key: str
    drops: bool = False

    def places(self) -> set[str]:
        """The files, by name."""
        return {str(file) for file in self.images.values()}


@dataclass
class Gathering:
    """All that was looked at in one start.

    Attributes:
      folder: where the list of all that cannot be used is written; "" for nowhere.
      waits: faults are noted until `settle`.
      parts: what was looked at.
    """

    folder: str = ""
    waits: bool = False
    parts: list[Part] = field(default_factory=list)

    def settle(self) -> None:
        """Ends the waiting.

        Raises:
          UserError: images cannot be used that are not to be left out; the message has all.
        """
        self.waits = False
        if refused := self._refused():
            raise refusal(refused, self.folder)

    def _refused(self) -> list[Part]:
        return [part for part in self.parts if part.found and not part.drops]


_current: ContextVar[Gathering | None] = ContextVar("images of a start", default=None)


def current() -> Gathering:
    """The gathering of the `together` around the caller, or a new one that does not wait."""
    return _current.get() or Gathering()


@contextmanager
def together(folder: str = "") -> Iterator[None]:
    """A start that tells of all images that cannot be used when it is over.

    Args:
      folder: where their list is written; "" for nowhere.

    Raises:
      UserError: there are some that are not to be left out. What else stopped the start is told
        with them.
    """
    gathering = Gathering(folder, waits=True)
    token = _current.set(gathering)
    try:
        yield
        if gathering.waits:
            gathering.settle()
    except UserError as error:
        refused = gathering._refused()
        if not gathering.waits or not refused:
            raise
        raise UserError(f"{refusal(refused, folder)}.\nBeside that: {error}") from None
    finally:
        gathering.waits = False
        _current.reset(token)


def refusal(parts: Sequence[Part], folder: str = "") -> UserError:
    """The error about all images of some parts that cannot be used; also writes their list."""
    parts = _distinct(parts)
    found = {(n, p.file): p for part in parts for n, p in part.found.items()}
    distinct = {p.file: p for p in found.values()}
    problems = list(distinct.values())
    write_list(folder, ((name, problem) for (name, _), problem in found.items()))
    counts = [f"{len(part.found):,} of {len(part.images):,}" for part in parts]
    if len(parts) == 1:
        what = parts[0].what
        counted: Mapping[Any, Problem] = parts[0].found
        head = f"{what}{what and ': '}{counts[0]} images cannot be used ("
    else:
        told = [f"{n} of {part.what or 'others'}" for n, part in zip(counts, parts, strict=True)]
        counted = distinct
        head = f"{len(problems):,} images cannot be used ({'; '.join(told)}: "
    shown = "; ".join(map(str, problems[:SHOWN]))
    more = f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    where = f", all listed in {Path(folder) / LIST}" if folder else ""
    keys = " and ".join(f"{key}=drop" for key in dict.fromkeys(part.key for part in parts))
    remedy = f"set {keys} to leave them out with what needs them"
    if all(part.drops for part in parts):  # they were not broken when the run began
        remedy = f"start again: {keys} then leaves them out"
    return UserError(
        f"{head}{in_words(summary(counted))}){where}: {shown}{more}. Fetch them again, or "
        f"{remedy}. `cir-jax doctor NAME ROOT --out FILE` looks a whole data set over"
    )


def _distinct(parts: Sequence[Part]) -> list[Part]:
    """The parts but those of which an earlier one has every image: a task of a benchmark."""
    kept: list[tuple[Part, set[str]]] = []
    for part in parts:
        places = part.places()
        if not any(part.key == other.key and places <= its for other, its in kept):
            kept.append((part, places))
    return [part for part, _ in kept]


def write_list(folder: str, found: Iterable[tuple[str, Problem]]) -> None:
    """Writes the list of (name, problem), or removes an old one where there are none."""
    if not folder:
        return
    file = Path(folder) / LIST
    lines = [
        json.dumps({"image": name, "file": one.file, "reason": one.reason, "why": one.why}) + "\n"
        for name, one in found
    ]
    if lines:
        files.put(file, "".join(lines).encode())
        return
    with suppress(OSError):
        file.unlink(missing_ok=True)


def summary(problems: Mapping[Any, Problem]) -> dict[str, int]:
    """Reason -> how many images, the most frequent first."""
    reasons = [problem.reason for problem in problems.values()]
    return {r: reasons.count(r) for r in sorted(set(reasons), key=lambda r: (-reasons.count(r), r))}


def in_words(counts: Mapping[str, int]) -> str:
    """The result of `summary`: "3 missing, 1 no image"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
