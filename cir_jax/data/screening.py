# SPDX-License-Identifier: Apache-2.0
"""Finds the images of a run that cannot be used, before any image gets a number.

`error` asks every file for its size and its time, reads a few bytes of it, and decodes those that
do not end as their format says. `drop` decodes every file once, because nothing is left out later.
Both are kept (`cir_jax.data.kept_looks`), so that the next start costs a stat per image. Where an
image of `error` turns out to be broken later, all are decoded to say what else is.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cir_jax import files, progress
from cir_jax.data.kept_looks import LEAST, KeptLooks, Known
from cir_jax.data.pixels import RELEASED, ImageFile, Loading, open_image
from cir_jax.data.triplets import TripletSet
from cir_jax.data.unusable import DECODE, LOOK, Problem, Stamp, look, source_of, stamp
from cir_jax.errors import UserError, nearest

CHOICES = ("error", "drop")
LIST = "unusable_images.jsonl"  # in the folder of a run
SHOWN = 10  # images in a message
_TASK = {"stat": 256, "look": 16}  # files that a thread is given at a time

A = TypeVar("A")
B = TypeVar("B")


def scan(
    images: Mapping[str, ImageFile],
    depth: int,
    *,
    root: str = "",
    loading: Loading = RELEASED,
    threads: int = 16,
    progressed: Callable[[], None] = lambda: None,
) -> dict[str, Problem]:
    """The images that cannot be used: name -> why, in the order of `images`.

    Args:
      images: name -> file; of a part of an image the whole is looked at, once for all parts.
      depth: see `cir_jax.data.unusable.look`.
      root: of the data set; what is found out is kept under it. "" keeps nothing.
      loading: how images are opened.
      threads: files that are looked at at a time.
      progressed: called now and then.
    """
    sources = {name: source_of(image) for name, image in images.items()}
    places = {str(source): source for source in sources.values()}
    # Of an image inside a larger file a look would read all of it, and decoding takes little more.
    whole = {p for p, source in places.items() if depth == DECODE or _is_path(source)}
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        stamps = dict(zip(places, _each(pool, stamp, list(places.values()), "stat"), strict=True))
        bad = {p: found for p, found in stamps.items() if isinstance(found, Problem)}
        kept = KeptLooks(root if len(places) >= LEAST else "", loading.name)
        kept.read()
        bad |= _answered(kept, stamps, depth)
        todo = [p for p in _open_questions(kept, stamps, depth) if p in whole]
        if todo:
            with kept.alone(progressed) as waited:
                if waited:  # for a process that has looked at the same images, if the folder is one
                    kept.read()
                    bad |= _answered(kept, stamps, depth)
                    unknown = {*_open_questions(kept, stamps, depth)}
                    todo = [p for p in todo if p in unknown]

                def one(place: str) -> Known:
                    before, now = kept.known.get(place), stamps[place]
                    assert isinstance(now, Stamp)
                    return _look(places[place], now, before, depth, loading)

                with progress.counter(len(todo), "looking at images") as bar:
                    new = {}
                    for place, known in zip(todo, _each(pool, one, todo, "look"), strict=True):
                        new[place] = known
                        bar.update(1)
                        if len(new) % LEAST == 0:
                            progressed()
                kept.add(new)
            bad |= {p: Problem(p, k.reason, k.why) for p, k in new.items() if k.reason}
    return {name: bad[str(source)] for name, source in sources.items() if str(source) in bad}


def summary(problems: Mapping[str, Problem]) -> dict[str, int]:
    """Reason -> how many images, the most frequent first."""
    reasons = [problem.reason for problem in problems.values()]
    return {r: reasons.count(r) for r in sorted(set(reasons), key=lambda r: (-reasons.count(r), r))}


def in_words(counts: Mapping[str, int]) -> str:
    """The result of `summary`: "3 missing, 1 no image"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


@dataclass(frozen=True)
class Screen:
    """What becomes of images that cannot be used, and how they are looked for.

    Attributes:
      on_missing: "error" or "drop".
      key: the config key that says so, for messages.
      root: folder of the data set; what is found out is kept under it. "" keeps nothing.
      folder: where the list of all that was found is written; "" for nowhere.
      threads: files that are looked at at a time.
      loading: how images are opened.
      agree: what the processes of a run make of their findings, name -> why, which all then share.
      progressed: called now and then.
      found: all that was found so far.

    Raises:
      UserError: `on_missing` is neither of the two.
    """

    on_missing: str = "error"
    key: str = "data.on_missing"
    root: str = ""
    folder: str = ""
    threads: int = 16
    loading: Loading = RELEASED
    agree: Callable[[dict[str, Problem]], dict[str, Problem]] = lambda found: found
    progressed: Callable[[], None] = lambda: None
    found: dict[str, Problem] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_missing not in CHOICES:
            raise UserError(
                f"{self.key}={self.on_missing!r} is unknown; use error or drop."
                f"{nearest(self.on_missing, CHOICES)}"
            )

    @property
    def drops(self) -> bool:
        """Whether images that cannot be used are left out."""
        return self.on_missing == "drop"

    def unusable(self, images: Mapping[str, ImageFile], what: str = "") -> dict[str, Problem]:
        """Those of `images` that are to be left out; they are listed in the folder.

        Args:
          images: name -> file.
          what: they are, for the message, e.g. "val.jsonl".

        Raises:
          UserError: there are some, and `on_missing` is "error"; the message has all of them.
        """
        found = self._scan(images, DECODE if self.drops else LOOK)
        if self.drops:
            found = self.agree(found)
            found = {name: found[name] for name in images if name in found}
        self.found.update(found)
        self._list()
        if found and not self.drops:
            raise self._refusal(found, len(images), what)
        return found

    def explained(
        self, images: Mapping[str, ImageFile], error: UserError, what: str = ""
    ) -> UserError:
        """What to raise when an image cannot be opened that was not left out.

        All are decoded, so that the user learns of every one that cannot be used at once.

        Args:
          images: name -> file, all that the run uses.
          error: what was raised.
          what: as in `unusable`.
        """
        if not str(error).startswith("image "):  # of a text, or of a part that is no part of it
            return error
        progress.say(f"{error}\nlooking for others ...")
        found = self._scan(images, DECODE)
        if not found:
            return error
        self.found.update(found)
        self._list()
        return self._refusal(found, len(images), what)

    def _scan(self, images: Mapping[str, ImageFile], depth: int) -> dict[str, Problem]:
        return scan(
            images,
            depth,
            root=self.root,
            loading=self.loading,
            threads=self.threads,
            progressed=self.progressed,
        )

    def _refusal(self, found: Mapping[str, Problem], count: int, what: str) -> UserError:
        shown = "; ".join(str(problem) for problem in [*found.values()][:SHOWN])
        more = f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        where = f", all listed in {Path(self.folder) / LIST}" if self.folder else ""
        remedy = "leave them out with what needs them"
        if self.drops:  # they were not broken when the run began
            remedy = f"start again: {self.key}=drop then leaves them out"
        else:
            remedy = f"set {self.key}=drop to {remedy}"
        return UserError(
            f"{what}{what and ': '}{len(found):,} of {count:,} images cannot be used "
            f"({in_words(summary(found))}){where}: {shown}{more}. Fetch them again, or {remedy}. "
            "`cir-jax doctor NAME ROOT --out FILE` looks a whole data set over"
        )

    def _list(self) -> None:
        """Writes the list, or removes an old one."""
        if not self.folder:
            return
        file = Path(self.folder) / LIST
        if not self.found:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            return
        lines = [
            {"image": name, "file": one.file, "reason": one.reason, "why": one.why}
            for name, one in self.found.items()
        ]
        files.put(file, "".join(json.dumps(line) + "\n" for line in lines).encode())


class Explained:
    """A preprocessing whose error about one image becomes one about all that cannot be used.

    Args:
      preprocess: image -> pixels.
      screen: of the run.
      images: name -> file, all that the run uses.
    """

    def __init__(self, preprocess: Any, screen: Screen, images: Mapping[str, ImageFile]):
        self._preprocess, self._screen, self._images = preprocess, screen, images
        self._lock = threading.Lock()
        self._said: UserError | None = None

    def __call__(self, source: Any) -> Any:
        """As `preprocess`.

        Raises:
          UserError: an image cannot be opened; the message has all such images.
        """
        try:
            return self._preprocess(source)
        except UserError as error:
            with self._lock:  # several threads may meet one each
                if self._said is None:
                    self._said = self._screen.explained(self._images, error)
            raise self._said from None

    def fingerprint(self) -> str:
        """As `preprocess`."""
        return self._preprocess.fingerprint()


def drop_missing(
    sets: Sequence[TripletSet], on_missing: str | Screen
) -> tuple[list[TripletSet], dict[str, int]]:
    """Leaves out triplets whose images cannot be used, if asked to.

    Args:
      sets: triplet sets.
      on_missing: "error", "drop", or a screen with one of them.

    Returns:
      The sets, and source -> number of triplets left out.

    Raises:
      UserError: there are such images and `on_missing` is "error", or nothing is left.
    """
    screen = on_missing if isinstance(on_missing, Screen) else Screen(on_missing)
    paths: dict[str, Any] = {}
    for one in sets:
        paths |= one.paths
    lost = screen.unusable(paths)
    if not lost:
        return list(sets), {}
    kept, dropped = [], {}
    for one in sets:
        good = tuple(t for t in one.triplets if t.reference not in lost and t.target not in lost)
        if len(good) < len(one.triplets):
            dropped[one.name] = len(one.triplets) - len(good)
        kept.append(replace(one, triplets=good))
    if not any(one.triplets for one in kept):
        raise UserError(
            f"no triplet is left after dropping {len(lost)} images that cannot be used "
            f"({in_words(summary(lost))})"
        )
    return kept, dropped


def _answered(
    kept: KeptLooks, stamps: Mapping[str, Stamp | Problem], depth: int
) -> dict[str, Problem]:
    """What is known to be wrong with files that are as they were."""
    return {
        place: Problem(place, known.reason, known.why)
        for place, now in stamps.items()
        if (known := kept.known.get(place)) and known.reason and _holds(known, now, depth)
    }


def _open_questions(
    kept: KeptLooks, stamps: Mapping[str, Stamp | Problem], depth: int
) -> list[str]:
    """The files that have to be looked at."""
    return [
        place
        for place, now in stamps.items()
        if isinstance(now, Stamp)
        and not ((known := kept.known.get(place)) and _holds(known, now, depth))
    ]


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def _holds(known: Known, now: Stamp | Problem, depth: int) -> bool:
    return isinstance(now, Stamp) and known.same_time(now) and known.deep_enough(depth)


def _look(source: Any, now: Stamp, before: Known | None, depth: int, loading: Loading) -> Known:
    """What a closer look says, or has said about the same content."""
    opener = partial(open_image, loading=loading)
    if before and before.size == now.size and not before.reason and before.deep_enough(depth):
        problem, sample = look(source, LOOK, opener)
        if sample == before.sample:
            return Known.now(now, sample, before.depth, problem)
    problem, sample = look(source, depth, opener)
    return Known.now(now, sample, depth, problem)


def _each(
    pool: ThreadPoolExecutor, act: Callable[[A], B], items: Sequence[A], kind: str
) -> Iterable[B]:
    """The results of all items in their order; a thread is given some at a time.

    A task of one file would cost more to hand out than a stat, or than a small image to decode.
    """
    size = _TASK[kind]

    def task(start: int) -> list[B]:
        return [act(item) for item in items[start : start + size]]

    for results in pool.map(task, range(0, len(items), size)):
        yield from results


def home_of(paths: Iterable[Any]) -> str:
    """The folder that these images share, for a data set without a root; "" if there is none."""
    folders = {os.path.dirname(os.path.abspath(p)) for p in paths if isinstance(p, str)}
    with suppress(ValueError):  # of none, or of several drives
        return os.path.commonpath(folders)
    return ""
