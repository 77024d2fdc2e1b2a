# SPDX-License-Identifier: Apache-2.0
"""A folder of images and a table of their titles: what can be trained on, and what is left out."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax.data import picture_files, places
from cir_jax.data.annotations import SUFFIXES
from cir_jax.data.pixels import NATURAL
from cir_jax.datasets import captions, image_lists
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError, nearest
from cir_jax.generation import journal
from cir_jax.generation.image_hashes import hash_images

_KEYS = {
    "text_field": "--text-field",
    "empty": "--empty=drop",
    "unknown": "--unknown=ignore",
    "duplicates": "--duplicates to first or last",
}
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
      copies: names of images that show the picture of an item, with a title or without.
    """

    items: tuple[Item, ...]
    left_out: tuple[tuple[str, str], ...]
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How a table is read.

    Attributes:
      text_field, empty, unknown, duplicates: see `captions.Choices`.
      group: column of the product; "" for none.
    """

    text_field: str = ""
    empty: str = "drop"
    unknown: str = "error"
    duplicates: str = "error"
    group: str = ""


def look(
    folder: str | Path,
    titles: Sequence[str],
    options: Options,
    cache: Path,
    threads: int = 16,
    check: Callable[[Sequence[Item]], object] = lambda items: None,
) -> Catalogue:
    """Looks a folder over.

    Args:
      folder: of the images.
      titles: tables, as `image_lists.expand` takes them.
      options: how they are read.
      cache: folder in which hashes of pictures are noted, so that none is decoded twice.
      threads: images decoded at a time.
      check: raises UserError for images that are of no use together. Where there is more to be
        decided it is asked before any is decoded, so that all is said at once, and each image is
        taken for a picture of its own.

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
    titles_of = _titles(known, tables, options, check)
    outside = known.listing.outside
    left_out = _others(base, {**known.files, **outside}, tables)
    left_out += [(name, f"a link out of the folder: {to}") for name, to in outside.items()]
    with journal.locked(cache):
        hashes = hash_images(known.files, cache / "hashes.jsonl", threads=threads, loading=NATURAL)
    left_out += [
        (name, f"cannot be used: {one.reason}{one.why and ': '}{one.why}")
        for name, one in hashes.problems.items()
    ]
    return _distinct(known, titles_of, hashes.pixels, left_out)


def _distinct(
    known: NamedFiles,
    titles_of: Mapping[str, tuple[str, str]],
    pixels_of: Mapping[str, str],
    left_out: list[tuple[str, str]],
) -> Catalogue:
    """Each picture with a title once; `left_out` gets what is not used."""
    identity, first = places.Identity(), dict[str, Item]()
    copies = []
    # Those with a title first, so that an image without one is the copy.
    names = sorted((n for n in known.files if n in pixels_of), key=lambda n: n not in titles_of)
    for name in names:
        pixels, path = pixels_of[name], str(known.files[name])
        if pixels in first:
            left_out.append((name, f"the same picture as {first[pixels].name}"))
            # What is said of a name of the same file would be said of the picture that is used.
            if identity.of(path) != identity.of(first[pixels].path):
                copies.append(name)
        elif name in titles_of:
            title, product = titles_of[name]
            first[pixels] = Item(name, path, title, product or pixels, pixels)
        else:
            left_out.append((name, "no title"))
    return Catalogue(tuple(first.values()), tuple(left_out), tuple(copies))


def _titles(
    known: NamedFiles,
    tables: Sequence[str],
    options: Options,
    check: Callable[[Sequence[Item]], object],
) -> dict[str, tuple[str, str]]:
    """Name of an image -> (title, product).

    Raises:
      UserError: all that must be decided.
    """
    problems: list[str] = []
    products, lacking = _products(tables, options.group)
    if lacking:
        more = f" ({len(lacking):,} such records)" if lacking[1:] else ""
        problems.append(f"{lacking[0]}{more}")
    choices = captions.Choices(
        options.text_field, options.empty, options.unknown, options.duplicates, keys=_KEYS
    )
    undecided: list[str] = []
    found = captions.collect(tables, choices, list(known.files), undecided.append)
    titles = {
        name: (" ".join(one.texts[0].split()), products.get(one.where, ""))
        for name, one in found.items()
    }
    # Without other faults it is seen later, when pictures that are the same count once.
    if undecided and titles and not lacking:
        try:
            check([Item(n, "", title, product or n, n) for n, (title, product) in titles.items()])
        except UserError as error:
            problems.append(f"of the records that can be used, {error}")
    problems = undecided + problems
    if problems:
        raise UserError("\n  ".join(problems))
    return titles


def _products(tables: Sequence[str], column: str) -> tuple[dict[str, str], list[str]]:
    """(record -> its product, what is wrong with records that have none)."""
    found: dict[str, str] = {}
    lacking: list[str] = []
    if not column:
        return found, lacking
    wrong: list[str] = []  # `captions.collect` says what is wrong with these
    for entry in image_lists.entries(tables, wrong=wrong.append):
        value = entry.record.get(column, entry.fields.get(image_lists.plain(column)))
        if isinstance(value, str | int) and str(value).strip():
            found[entry.where] = str(value).strip()
            continue
        there = column in entry.record
        hint = " It is empty." if there else nearest(column, entry.record)
        lacking.append(
            f"{entry.where} has no {column!r}, the column of products (--group).{hint} It has: "
            f"{', '.join(map(str, entry.record))}"
        )
    return found, lacking


def _others(base: Path, known: Mapping[str, Any], tables: Sequence[str]) -> list[tuple[str, str]]:
    """Files of the folder that are not among the `known`, and why."""
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
            elif kind := picture_files.format_of(file):
                ending = {"JPEG": ".jpg"}.get(kind, f".{kind.lower()}")
                why = f"{kind} in a file whose name does not end in {ending}; rename it"
            else:
                why = "no image"
            found.append((below, why))
    return sorted(found)
