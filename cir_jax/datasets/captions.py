# SPDX-License-Identifier: Apache-2.0
"""Captions of images, from any file of `image_lists`: the one reader of stage zero and of others.

Titles of a shop, alt texts, the released captioner's list of {"image_id", "image_path", "caption"},
our own captions.jsonl: the columns have the same names everywhere, and so have the answers to what
a file leaves open. All that is open is listed at once, with the keys that decide it.

    record that cannot be read          an error
    no text, or a blank one             left out and counted, or an error            `empty`
    image that is not among the known   an error, or left out                        `unknown`
    second text for an image            an error, or the first, the last, or all     `duplicates`
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir_jax import progress
from cir_jax.data import places
from cir_jax.data.annotations import SUFFIXES
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import image_lists
from cir_jax.datasets.image_lists import Entry
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError, nearest

SOURCE = "captions"
EMPTY, UNKNOWN, DUPLICATES = ("drop", "error"), ("error", "ignore"), ("error", "first", "last")
_SHOWN = 10  # records that cannot be read are shown; further ones are counted


@dataclass(frozen=True)
class Choices:
    """What is done with what a file of captions leaves open; see the module.

    Attributes:
      text_field: key of the text; "" = what is usual.
      empty: of EMPTY.
      unknown: of UNKNOWN.
      duplicates: of DUPLICATES, or "all".
      several: take all texts of a record, and not only the first.
      keys: how each of them is set, for messages, e.g. {"unknown": "caption.unknown=ignore"}.
    """

    text_field: str = ""
    empty: str = "drop"
    unknown: str = "error"
    duplicates: str = "error"
    several: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, prefix: str, **values: Any) -> "Choices":
        """Choices whose keys begin with `prefix`, e.g. "caption." or "--"."""
        keys = {
            "text_field": f"{prefix}text_field",
            "empty": f"{prefix}empty=drop",
            "unknown": f"{prefix}unknown=ignore",
            "duplicates": f"{prefix}duplicates to first or last",
        }
        return cls(**values, keys=keys)

    @classmethod
    def of_stage_zero(
        cls,
        text_field: str = "",
        empty: str = "drop",
        duplicates: str = "error",
        on_missing: str = "error",
    ) -> "Choices":
        """Those of stage zero, keys of the section `data`: what is unknown is a missing image."""
        keys = {
            "text_field": "data.caption_text_field",
            "empty": "data.caption_empty=drop",
            "unknown": "data.on_missing=drop",
            "duplicates": "data.caption_duplicates to first, last or all",
        }
        unknown = "ignore" if on_missing == "drop" else "error"
        return cls(text_field, empty, unknown, duplicates, several=True, keys=keys)


@dataclass(frozen=True)
class Caption:
    """The texts of one image, as one record has them.

    Attributes:
      name: of the image, in the form that is known.
      path: its file, or an image in a shard; "" if the record gives none.
      texts: one or more.
      where: names the record in messages.
    """

    name: str
    path: Any
    texts: tuple[str, ...]
    where: str


@dataclass
class _Open:
    """What is left open: how often, and the line about the first."""

    count: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def note(self, kind: str, line: str) -> None:
        self.count[kind] = self.count.get(kind, 0) + 1
        self.first.setdefault(kind, line)

    def wrong(self, line: str) -> None:
        self.note("unreadable", line)
        if len(self.unreadable) < _SHOWN:
            self.unreadable.append(line)

    def error(self) -> UserError | None:
        """All that must be decided, in one message; None if nothing is."""
        more = self.count.get("unreadable", 0) - len(self.unreadable)
        lines = [
            line if ";" in line else f"{line}; correct that record, or take it out"
            for line in self.unreadable
        ]
        if more > 0:
            lines.append(f"{more:,} more records that cannot be read")
        for kind in ("unknown", "duplicates", "empty"):
            if kind in self.first:
                count = self.count[kind]
                lines.append(self.first[kind] + (f" ({count:,} such records)" if count > 1 else ""))
        if not lines:
            return None
        return UserError(lines[0] if len(lines) == 1 else "\n  ".join(["to decide:", *lines]))


def collect(
    files: Sequence[str | Path],
    choices: Choices,
    names: Sequence[str],
    undecided: Callable[[str], object] | None = None,
) -> dict[str, Caption]:
    """Image name -> its caption, for images that are known by name.

    Args:
      files: see `image_lists.expand`.
      choices: what is done with what they leave open.
      names: of the images.
      undecided: is told all that must be decided, instead of the error that says so.

    Raises:
      UserError: all that must be decided; or no caption is left.
    """
    no_files: dict[str, Any] = dict.fromkeys(names)
    known, left = NamedFiles(no_files), _Open()
    found: dict[str, Caption] = {}
    counts = _Counts()
    for entry in image_lists.entries(files, wrong=left.wrong):
        try:
            texts = counts.texts(entry, choices, left)
            if not texts:
                continue
            here = (known.name(n, entry.where) for n in entry.names)
            name = next((n for n in here if n in known.files), None)
        except UserError as error:
            left.wrong(str(error))
            continue
        if name is None:
            if choices.unknown == "error":
                hint = "" if "unknown" in left.first else nearest(entry.name, names)
                left.note(
                    "unknown",
                    f"{entry.where}: image {entry.name!r} is not among the {len(names)} images;"
                    f"{hint} set {choices.keys['unknown']} if the file covers more than they",
                )
            continue
        _add(found, Caption(name, entry.path, texts, entry.where), choices, left)
    try:
        _end(files, choices, counts, left)
    except UserError as error:
        if undecided is None or not left.first:
            raise
        undecided(str(error))
        return found
    if not counts.read:
        raise UserError(
            f"{_named(files)}: there is no record, at most a line of column names; add a line for "
            "each image"
        )
    if not found:
        raise UserError(
            f"{_named(files)}: no caption of any of the {len(names)} images, such as "
            f"{names[0]!r}; name images as they are named there"
        )
    return found


def read(
    file: str | Path, images_root: str | Path = "", choices: Choices | None = None
) -> list[TripletSet]:
    """Stage zero: one set of pairs, triplets without a reference.

    Args:
      file: of image names, or paths, and captions; see `image_lists`.
      images_root: folder that image paths are relative to; the file's own folder if "".
      choices: what is done with what it leaves open. Whether the images are there is seen later,
        with those of every other set.

    Raises:
      UserError: the file is missing or empty, or all that must be decided.
    """
    choices = choices or Choices.of_stage_zero()
    base = Path(images_root) if images_root else Path(file).parent
    files = [str(file)] if Path(file).is_file() else image_lists.expand([str(file)])
    listing, left, counts = _Listing(base), _Open(), _Counts()
    found: dict[str, Caption] = {}
    paths: dict[str, Any] = {}
    for entry in image_lists.entries(files, str(base), wrong=left.wrong):
        try:
            texts = counts.texts(entry, choices, left)
            name, path = listing.place(entry)
        except UserError as error:
            left.wrong(str(error))
            continue
        if not texts:
            continue
        if not listing.is_one(paths.setdefault(name, path), path):
            left.wrong(
                f"{entry.where}: image {name!r} is {path}, and {paths[name]} before; one name "
                "cannot be two images"
            )
            continue
        _add(found, Caption(name, path, texts, entry.where), choices, left)
    if left.first and choices.unknown == "error":
        _note_missing(found, choices, left)
    _end(files, choices, counts, left)
    if not found:
        raise UserError(f"{file} holds no caption; stage zero needs image-caption pairs")
    pairs = tuple(
        Triplet("", c.name, c.texts, c.texts[0], SOURCE, c.where.rsplit("/", 1)[-1])
        for c in found.values()
    )
    return [TripletSet(SOURCE, pairs, {c.name: c.path for c in found.values()})]


def _note_missing(found: Mapping[str, Caption], choices: Choices, left: _Open) -> None:
    """Adds images without a file to what is listed, so that all of it can be decided at once."""
    for one in found.values():
        if isinstance(one.path, str) and not os.path.isfile(one.path):
            left.note(
                "unknown",
                f"{one.where}: image {one.name!r} is not there ({one.path}); bring it, or set "
                f"{choices.keys['unknown']} to leave such records out",
            )


def _names(entry: Entry) -> tuple[str, ...]:
    """What an image may be known by; where it came from, which tables tell beside it, is no name
    of a file, and is one only where there is no other."""
    own = tuple(name for name in entry.names if not places.is_address(name))
    return own or entry.names


class _Listing:
    """The images below a folder, looked up only for names that are no files of images."""

    def __init__(self, base: Path):
        self._base = base
        self._written = places.Written(places.roots(base))
        self._identity = places.Identity()
        self._known: NamedFiles | None = None

    def is_one(self, one: Any, other: Any) -> bool:
        """Whether two paths lead to one image."""
        return one == other or self._identity.of(one) == self._identity.of(other)

    def place(self, entry: Entry) -> tuple[str, Any]:
        """(name, file) of the image of an entry.

        Raises:
          UserError: its name fits two files, can be no image, or leads out of the roots.
        """
        if not isinstance(entry.path, str):  # in a shard
            return entry.name, entry.path
        keys = ("image_path", "image", *image_lists.PATH_KEYS, *image_lists.NAME_KEYS)
        given = [g for key in keys if isinstance(g := entry.fields.get(key), str) and g]
        written = next((g for g in given if not places.is_address(g)), entry.name)
        name = str(entry.fields["image_id"]) if "image_id" in entry.fields else written
        if written.lower().endswith(SUFFIXES):
            return name, self._written.file(self._base, written, entry.where)
        if self._known is None:
            self._known = NamedFiles.below(self._base)
        for candidate in (written, *_names(entry)):
            found = self._known.name(candidate, entry.where)
            if found in self._known.files:
                return (found if name == written else name), self._known.files[found]
        return name, self._written.file(self._base, written, entry.where)


@dataclass
class _Counts:
    """How many records there are, and how many have a text, or would have one."""

    read: int = 0
    with_key: int = 0
    blank: int = 0
    last: Entry | None = None
    first_blank: str = ""

    def texts(self, entry: Entry, choices: Choices, left: _Open) -> tuple[str, ...]:
        """The texts of an entry; () if it has none, which is noted.

        Raises:
          UserError: the field of the text is not there, or what is in it is no text.
        """
        self.read += 1
        self.last = entry
        self.with_key += bool(choices.text_field) or entry.has_text_key()
        texts = entry.texts(choices.text_field, as_written=choices.several)
        if not texts:
            self.blank += 1
            self.first_blank = self.first_blank or entry.where
            if choices.empty == "error":
                left.note(
                    "empty",
                    f"{entry.where} has no text; give it one, or set {choices.keys['empty']} to "
                    "leave such records out",
                )
        return texts if choices.several else texts[:1]


def _add(found: dict[str, Caption], one: Caption, choices: Choices, left: _Open) -> None:
    """Adds a caption, of several for one image the one that is chosen."""
    before = found.get(one.name)
    if choices.duplicates == "all":
        found[f"{len(found)} {one.name}"] = one
    elif before is None or (choices.duplicates == "last" and before.texts != one.texts):
        found[one.name] = one
    elif choices.duplicates == "error" and before.texts != one.texts:
        left.note(
            "duplicates",
            f"{one.where}: image {one.name!r} has the caption {before.texts[0]!r} in "
            f"{before.where}, and {one.texts[0]!r} here; set {choices.keys['duplicates']}",
        )


def _end(files: Sequence[str | Path], choices: Choices, counts: _Counts, left: _Open) -> None:
    """Says what was left out.

    Raises:
      UserError: what must be decided, or no record has a text.
    """
    if counts.last is not None and not counts.with_key:
        raise UserError(
            f"{_named(files)}: none of {counts.read} records has a text; the last has: "
            f"{', '.join(counts.last.record)}. Name the one of the text in "
            f"{choices.keys['text_field']}"
        )
    error = left.error()
    if error is not None:
        raise error
    if counts.blank and choices.empty == "drop":
        key = choices.keys["empty"].removesuffix("drop") + "error"
        progress.say(
            f"{_named(files)}: {counts.blank:,} of {counts.read:,} records have no text, "
            f"{counts.first_blank} the first; they are left out ({key} refuses them)"
        )


def _named(files: Sequence[str | Path]) -> str:
    """The files for a message: of a thousand shards, the first few."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(map(str, files[:3])) + more
