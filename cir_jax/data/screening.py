# SPDX-License-Identifier: Apache-2.0
"""Finds the images of a run that cannot be used, before any image gets a number.

`error` asks every file for its size and its time, reads a few bytes of it, and decodes those that
do not end as their format says; an image inside a larger file is read whole. `drop` decodes every
file once, because nothing is left out later.
Both are kept (`cir_jax.data.kept_looks`), so that the next start costs a stat per image. Where an
image of `error` is broken, at the start or later, all are decoded to say what else is.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from cir_jax import progress
from cir_jax.data import column_looks, kept_pixels, refusals, unusable
from cir_jax.data.column_images import Images, both, without
from cir_jax.data.column_table import opened
from cir_jax.data.kept_looks import LEAST, KeptLooks, Known
from cir_jax.data.pixels import RELEASED, Crop, ImageFile, Loading, open_image
from cir_jax.data.refusals import Gathering, Part, in_words, summary
from cir_jax.data.triplet_columns import Columns
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.data.unusable import (
    DECODE,
    LOOK,
    Opener,
    Problem,
    Stamp,
    look,
    source_of,
    stamp,
)
from cir_jax.errors import ServerError, UserError, nearest

CHOICES = ("error", "drop")
TRAINING = "the training set"
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
    opener: Opener | None = None,
    disproved: Collection[str] = (),
) -> dict[str, Problem]:
    """The images that cannot be used: name -> why, in the order of `images`.

    Args:
      images: name -> file; of a part of an image the whole is looked at, once for all parts.
      depth: see `cir_jax.data.unusable.look`.
      root: of the data set; what is found out is kept under it. "" keeps nothing.
      loading: how images are opened.
      threads: files that are looked at at a time.
      progressed: called now and then.
      opener: what decodes images, with the same result as `open_image`, if not that.
      disproved: files, as messages call them, that were found good and are not. They are looked
        at anew; of others a few bytes are compared, whatever sizes and times say.
    """
    sources = {name: source_of(image) for name, image in images.items()}
    places = {str(source): source for source in sources.values()}
    sized = {str(sources[n]) for n, image in images.items() if isinstance(image, Crop)}
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        stamps = dict(zip(places, _each(pool, stamp, list(places.values()), "stat"), strict=True))
        kept = KeptLooks(root if len(places) >= LEAST else "", loading.name)
        kept.read()
        opener = opener or partial(open_image, loading=loading)
        asked = _Questions(places, stamps, depth, sized, opener, disproved)
        known = _known(pool, kept, asked, progressed)
    found: dict[str, Problem] = {}
    for name, image in images.items():
        place = str(sources[name])
        now = stamps[place]
        problem = now if isinstance(now, Problem) else known[place].problem(place)
        problem = problem or unusable.outside(image, known[place].width, known[place].height)
        if problem:
            found[name] = problem
    return found


@dataclass(frozen=True)
class _Questions:
    """What is to be known of some files.

    Attributes:
      places: name -> file.
      stamps: name -> its stamp, or why it has none.
      depth: how closely they are looked at.
      sized: names of those whose images' size is asked, too: whether a box lies in one. It takes
        decoding them.
      opener: what decodes images.
      disproved: see `scan`.
    """

    places: Mapping[str, Any]
    stamps: Mapping[str, Stamp | Problem]
    depth: int
    sized: Set[str]
    opener: Opener
    disproved: Collection[str]

    def open(self, kept: KeptLooks) -> dict[str, Stamp]:
        """The files that have to be looked at."""
        found = {}
        for place, now in self.stamps.items():
            if isinstance(now, Problem):
                continue
            known = kept.known.get(place)
            held = known is not None and known.holds(now, self._depth(place), place in self.sized)
            if not held or self.disproved:
                found[place] = now
        return found

    def answer(self, place: str, now: Stamp, before: Known | None) -> Known:
        """What a closer look says, or has said about the same content."""
        source, depth = self.places[place], self._depth(place)
        opener = self.opener
        same = before is not None and before.size == now.size and not before.reason
        same = same and place not in self.disproved
        if before is not None and same and before.deep_enough(depth, place in self.sized):
            looked = look(source, LOOK, opener)
            if looked.sample == before.sample and not looked.problem:
                return before.still(now)
        return Known.now(now, look(source, depth, opener), depth)

    def _depth(self, place: str) -> int:
        return DECODE if place in self.sized else self.depth


def _known(
    pool: ThreadPoolExecutor, kept: KeptLooks, asked: _Questions, progressed: Callable[[], None]
) -> dict[str, Known]:
    """What is known of all files that have a stamp; looks at those of which too little is."""
    todo = asked.open(kept)
    if not todo:
        return kept.known
    with kept.alone(progressed) as waited:
        if waited:  # for a process that has looked at the same images, if the folder is one
            kept.read()
            todo = asked.open(kept)
        before, new = dict(kept.known), {}
        one = lambda place: asked.answer(place, todo[place], before.get(place))
        with progress.counter(len(todo), "looking at images") as bar:
            for place, known in zip(todo, _each(pool, one, list(todo), "look"), strict=True):
                new[place] = known
                bar.update(1)
                if len(new) % LEAST == 0:
                    progressed()
        kept.add(new)
    return before | new


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
      gathering: what the screens of one start have looked at.
      pixels: what keeps the squares of images that are decoded here; None for nothing.

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
    gathering: Gathering = field(default_factory=refusals.current, compare=False)
    pixels: kept_pixels.Part | None = field(default_factory=kept_pixels.current, compare=False)

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

    def unusable(
        self,
        images: Mapping[str, ImageFile],
        what: str = "",
        *,
        decode: bool = False,
        used: Collection[ImageFile] | None = None,
    ) -> dict[str, Problem]:
        """Those of `images` that are to be left out; they are listed in the folder.

        Args:
          images: name -> file.
          what: they are, for the message, e.g. "val.jsonl".
          decode: every one, also where `on_missing` is "error".
          used: files of those that will be opened, for `pixels`; None for all.

        Raises:
          UserError: there are some, and `on_missing` is "error"; the message has all of them. In
            `refusals.together` it comes when all of the start have been looked at.
        """
        if self.pixels is not None:
            self.pixels.expect(list(images.values()) if used is None else used)
        refused = any(part.found and not part.drops for part in self.gathering.parts)
        depth = DECODE if self.drops or decode or refused else LOOK
        found = self._scan(images, depth)
        if found and depth < DECODE:  # the start is over, and shall tell of every one of them
            progress.say(f"{next(iter(found.values()))}\nlooking for others ...")
            found = self._scan(images, DECODE)
            self.gathering.parts[:] = [
                part if part.drops else part._replace(found=self._scan(part.images, DECODE))
                for part in self.gathering.parts
            ]
        return self.judged(images, found, what)

    def judged(
        self, images: Mapping[str, ImageFile], found: dict[str, Problem], what: str = ""
    ) -> dict[str, Problem]:
        """As `unusable`, of images that somebody else has looked at.

        Args:
          images: name -> file.
          found: name -> why it cannot be used.
          what: see `unusable`.

        Raises:
          UserError: see `unusable`.
        """
        if self.drops:
            found = self.agree(found)
            if isinstance(images, dict):
                found = {name: found[name] for name in images if name in found}
        self.found.update(found)
        refusals.write_list(self.folder, self.found.items())
        part = Part(what, images, found, self.key, self.drops)
        self.gathering.parts.append(part)
        if not found or self.drops:
            return found
        if self.gathering.waits:
            return {}
        raise refusals.refusal([part], self.folder)

    def explained(
        self, images: Mapping[str, ImageFile], error: UserError, what: str = ""
    ) -> UserError:
        """What to raise when an image cannot be opened that was not left out.

        All that the start looked at are decoded, so that the user learns of every one that cannot
        be used at once.

        Args:
          images: name -> file, all that the run uses.
          error: what was raised.
          what: as in `unusable`.
        """
        if not str(error).startswith(("image ", "box ")):  # of a text
            return error
        progress.say(f"{error}\nlooking for others ...")
        own = Part(what, images, {}, self.key, self.drops)
        parts = [own, *self.gathering.parts]
        if any(own.places() <= part.places() for part in self.gathering.parts):
            parts = self.gathering.parts
        left = [
            {n: file for n, file in part.images.items() if n not in part.found} for part in parts
        ]
        files = {str(file): file for some in left for file in some.values()}
        # As after a crash, a file may be another one with the size and the time that it had.
        disproved = {place for place in files if str(error).startswith(f"image {place} ")}
        broken = self._scan(files, DECODE, disproved)
        if not broken:
            return error
        parts = [
            part._replace(
                images=some,
                found={n: broken[str(f)] for n, f in some.items() if str(f) in broken},
            )
            for part, some in zip(parts, left, strict=True)
        ]
        parts = [part for part in parts if part.found]
        for part in self.gathering.parts:  # so that the next start finds them
            column_looks.forget(part.images, broken, self.loading.name)
        self.found.update({name: one for part in parts for name, one in part.found.items()})
        return refusals.refusal(parts, self.folder or self.gathering.folder)

    def _scan(
        self, images: Mapping[str, ImageFile], depth: int, disproved: Collection[str] = ()
    ) -> dict[str, Problem]:
        found: dict[str, Problem] = {}
        for part in column_looks.parts_of(images):
            if isinstance(part, Images):
                one_by_one = partial(self._scan_some, depth=depth, root="")
                found |= column_looks.scan(
                    part, depth, self.loading.name, one_by_one, partial(_stamps, self.threads)
                )
            else:
                found |= self._scan_some(part, depth, self.root, disproved)
        return found

    def _scan_some(
        self, images: Mapping[str, ImageFile], depth: int, root: str, bad: Collection[str] = ()
    ) -> dict[str, Problem]:
        return scan(
            images,
            depth,
            root=root,
            loading=self.loading,
            threads=self.threads,
            progressed=self.progressed,
            opener=self._opener(depth),
            disproved=bad,
        )

    def _opener(self, depth: int) -> Opener | None:
        """Opens images so that their squares are kept, where all are decoded anyway."""
        if self.pixels is None or depth < DECODE or self.pixels.loading != self.loading:
            return None
        return self.pixels.open


def _stamps(threads: int, places: Sequence[Any]) -> list[Stamp | Problem]:
    """The stamps of some files."""
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        return list(_each(pool, stamp, places, "stat"))


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
        except ServerError:
            raise
        except UserError as error:
            with self._lock:  # several threads may meet one each
                if self._said is None:
                    self._said = self._screen.explained(self._images, error)
            raise self._said from None

    def prepare(self, sources: Sequence[Any]) -> None:
        """As `preprocess`, where it asks others for what it makes of images."""
        if (prepare := getattr(self._preprocess, "prepare", None)) is not None:
            prepare(sources)

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
    paths: Mapping[str, Any] = {}
    for one in sets:
        paths = both(paths, one.paths)
    lost = screen.unusable(paths, TRAINING, used=opened(sets, paths) if screen.drops else ())
    if not lost:
        return list(sets), {}
    kept, dropped = [], {}
    for one in sets:
        good = _without(one, lost)
        if len(good) < len(one.triplets):
            dropped[one.name] = len(one.triplets) - len(good)
        kept.append(replace(one, triplets=good))
    if not any(len(one.triplets) for one in kept):
        raise UserError(
            f"no triplet is left after dropping {len(lost)} images that cannot be used "
            f"({in_words(summary(lost))}); fetch them again, or correct data.root"
        )
    return kept, dropped


def _without(one: TripletSet, lost: Collection[str]) -> Sequence[Triplet]:
    """The triplets of a set whose images are none of those."""
    if isinstance(one.triplets, Columns) and isinstance(one.paths, Images):
        return without(one.triplets, one.paths.named(lost), answers=False)
    return tuple(t for t in one.triplets if t.reference not in lost and t.target not in lost)


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
