# SPDX-License-Identifier: Apache-2.0
"""A folder of images and a table of their titles: what can be trained on, and what is left out."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax.data.annotations import SUFFIXES
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError, nearest
from cir_jax.generation import image_lists
from cir_jax.generation.image_hashes import hash_images

_SHOWN = 3  # cases of one kind that a message names
_PICTURES = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".svg", ".psd")


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
      name: path below the folder.
      path: its file.
      title: of the table.
      group: its product, or whatever else keeps images on one side of the split; its own picture
        where no column says so.
      pixels: hash of what it shows.
    """

    name: str
    path: str
    title: str
    group: str
    pixels: str


@dataclass(frozen=True)
class Catalogue:
    """What a folder holds.

    Attributes:
      items: distinct pictures with a title, by name.
      left_out: (file below the folder, why).
    """

    items: tuple[Item, ...]
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Options:
    """How a table is read.

    Attributes:
      text_field: column of the title; "" finds it by its name.
      group: column of the product; "" for none.
      unknown: titles of images that are not there: "error" or "ignore".
      duplicates: of two titles of one image: "error", "first" or "last".
    """

    text_field: str = ""
    group: str = ""
    unknown: str = "error"
    duplicates: str = "error"


def look(
    folder: str | Path, titles: Sequence[str], options: Options, journal: Path, threads: int = 16
) -> Catalogue:
    """Looks a folder over.

    Args:
      folder: of the images.
      titles: tables, as `image_lists.expand` takes them.
      options: how they are read.
      journal: file that notes the hashes of pictures, so that none is decoded twice.
      threads: images decoded at a time.

    Raises:
      UserError: there is no such folder, or everything that must be decided, in one message.
    """
    base = Path(folder)
    if not base.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of your images")
    tables = image_lists.expand(titles)
    known = NamedFiles.below(base)
    if not known.files:
        raise UserError(
            f"{folder} holds no image ({', '.join(SUFFIXES)}); name the folder of your images"
        )
    table = _Table(known, options)
    for entry in image_lists.entries(tables):
        table.add(entry)
    table.check(titles)
    left_out = _others(base, known.files, tables)
    left_out += [(name, "no title") for name in known.files if name not in table.titles]
    titled = {name: known.files[name] for name in known.files if name in table.titles}
    hashes = hash_images(titled, journal, threads=threads)
    left_out += [(name, f"cannot be read: {why}") for name, why in hashes.problems.items()]
    first: dict[str, str] = {}
    items = []
    for name in titled:
        pixels = hashes.pixels.get(name, "")
        if not pixels:
            continue
        if pixels in first:
            left_out.append((name, f"the same picture as {first[pixels]}"))
            continue
        first[pixels] = name
        group = table.groups[name] if options.group else pixels
        items.append(Item(name, str(titled[name]), table.titles[name], group, pixels))
    return Catalogue(tuple(items), tuple(left_out))


class _Table:
    """Collects titles, and everything that is wrong with them."""

    def __init__(self, known: NamedFiles, options: Options):
        self._known, self._options = known, options
        self.titles: dict[str, str] = {}
        self.groups: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._absent: list[str] = []
        self._twice: list[str] = []
        self._other: list[str] = []
        self._read = 0

    def add(self, entry: image_lists.Entry) -> None:
        """Takes in one record."""
        self._read += 1
        try:
            names = [self._known.name(name, entry.where) for name in entry.names]
            texts = entry.texts(self._options.text_field)
        except UserError as error:
            self._other.append(str(error))
            return
        name = next((n for n in names if n in self._known.files), "")
        if not name:
            self._absent.append(f"{entry.name!r} ({entry.where})")
            return
        title = " ".join(texts[0].split()) if texts else ""
        if not title:
            return
        before = self.titles.get(name)
        if before is not None and before != title:
            self._twice.append(f"{name}: {before!r} ({self._places[name]}) and {title!r}")
        if before is not None and self._options.duplicates != "last":
            return
        if self._options.group and not self._grouped(name, entry):
            return
        self.titles[name], self._places[name] = title, entry.where

    def _grouped(self, name: str, entry: image_lists.Entry) -> bool:
        column, record = self._options.group, entry.record
        value = record.get(column) if isinstance(record, Mapping) else None
        if isinstance(value, str | int) and str(value).strip():
            self.groups[name] = str(value).strip()
            return True
        has = nearest(column, record) if column not in record else " It is empty there."
        self._other.append(
            f"{entry.where} has no {column!r} to tell its product (--group).{has} It has: "
            f"{', '.join(map(str, record))}"
        )
        return False

    def check(self, titles: Sequence[str]) -> None:
        """Raises UserError for all that must be decided before anything is made."""
        named, options = ", ".join(titles), self._options
        if not self.titles and not self._other and not self._twice:
            raise UserError(
                f"{named}: none of {self._read} records is the title of one of the "
                f"{len(self._known.files)} images, such as {next(iter(self._known.files))!r}"
                + (f"; the first is of {self._absent[0]}" if self._absent else "")
                + ". Name images as they are named in the folder, and the column of the titles "
                "with --text-field"
            )
        found = []
        if self._absent and options.unknown == "error":
            found.append(
                (f"{len(self._absent)} titles of images that are not there", self._absent,
                 "--unknown ignore leaves them out")
            )  # fmt: skip
        if self._twice and options.duplicates == "error":
            found.append(
                (f"{len(self._twice)} images with several titles", self._twice,
                 "--duplicates first, or last, takes one")
            )  # fmt: skip
        if self._other:
            found.append(
                (f"{len(self._other)} records that cannot be used", self._other, "correct them")
            )
        if found:
            lines = [
                f"\n  {what}: {'; '.join(cases[:_SHOWN])}"
                f"{'; ...' if len(cases) > _SHOWN else ''}. To decide: {remedy}"
                for what, cases, remedy in found
            ]
            raise UserError(f"{named} and the folder do not go together:{''.join(lines)}")


def _others(base: Path, known: Mapping[str, Any], tables: Sequence[str]) -> list[tuple[str, str]]:
    """Files of the folder that are no images, and why."""
    there = {os.path.realpath(table) for table in tables}
    found = []
    for where, _, names in os.walk(base):
        for name in sorted(names):
            file = Path(where, name)
            below = file.relative_to(base).as_posix()
            if below in known or os.path.realpath(file) in there:
                continue
            suffix = file.suffix.lower()
            if name.startswith(".") or name in ("Thumbs.db", "desktop.ini"):
                why = "a hidden file"
            elif suffix in _PICTURES:
                why = f"{suffix} is not read; convert it to .png"
            else:
                why = "no image"
            found.append((below, why))
    return sorted(found)
