# SPDX-License-Identifier: Apache-2.0
"""Captions that are there already: titles, alt texts, files of an earlier run; see `lists`.

Of several texts in one record the first is used. A text for an image that is not in the set and a
second text for one image are errors unless the config says what is meant: either may be a sign
that the file belongs to other images.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError, nearest
from cir_jax.generation import image_lists
from cir_jax.generation.captioner import Reply, Request

KEYS = {
    "caption.file": ((), "files of captions", "paths"),
    "caption.text_field": ("", "their column or key; '' = caption, captions, title, alt_text, text",
                           None),
    "caption.unknown": ("error", "captions of images that are not in the set", ("error", "ignore")),
    "caption.duplicates": ("error", "of several captions of one image",
                           ("error", "first", "last")),
}  # fmt: skip


def check(section: ConfigDict) -> None:
    """Raises UserError if this is asked to write, or its files are not there."""
    if "file" not in section:
        raise UserError("captioner texts looks captions up; it cannot rewrite texts")
    if section.file:  # else the set of images may bring its own
        image_lists.expand(section.file)


class Captioner:
    """See `captioner.Captioner`.

    Args:
      texts: image name -> caption.
      files: where they come from.
    """

    prompted = False
    free = True

    def __init__(self, texts: dict[str, str], files: Sequence[str]):
        self.texts = texts
        # Beside every caption, so a thousand shards cannot all be named.
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        self.identity = {"captioner": "texts", "model": ", ".join(files[:3]) + more}

    def has(self, name: str) -> bool:
        """Whether there is a caption of this image."""
        return name in self.texts

    @classmethod
    def from_config(cls, section: ConfigDict, seed: int, names: Sequence[str]) -> "Captioner":
        """Reads the files of `caption.file`.

        Raises:
          UserError: no file, an unknown image, a second caption, or what `lists` finds.
        """
        check(section)
        if not section.file:
            raise UserError(
                "caption.file is empty; captioner texts needs .json, .jsonl, .csv, .tsv or .tar "
                "files of captions"
            )
        files = image_lists.expand(section.file)
        return cls(_read(files, section, names), files)

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """The caption of each image, or that there is none."""
        for request in requests:
            text = self.texts.get(request.key, "")
            problem = "" if text else "no caption in the files"
            yield Reply(request.key, text, problem, final=True)


def _read(files: Sequence[str], section: ConfigDict, names: Sequence[str]) -> dict[str, str]:
    no_files: dict[str, Any] = dict.fromkeys(names)
    known = NamedFiles(no_files)
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    read = with_text = 0
    last: dict[str, Any] = {}
    for entry in image_lists.entries(files, files_wanted=False):
        read += 1
        found, last = entry.texts(section.text_field), entry.record
        with_text += bool(found) or not entry.record.keys().isdisjoint(image_lists.TEXT_KEYS)
        if not found:
            continue
        names_here = (known.name(n, entry.where) for n in entry.names)
        name, text = next((n for n in names_here if n in known.files), entry.name), found[0]
        if name not in known.files:
            if section.unknown == "ignore":
                continue
            raise UserError(
                f"{entry.where}: image {entry.name!r} is not among the {len(names)} images;"
                f"{nearest(entry.name, names)} set caption.unknown=ignore if the file covers more "
                "than they"
            )
        if name in texts and texts[name] != text:
            if section.duplicates == "error":
                raise UserError(
                    f"{entry.where}: image {name!r} has the caption {texts[name]!r} in "
                    f"{places[name]}, and {text!r} here; set caption.duplicates to first or last"
                )
            if section.duplicates == "first":
                continue
        texts[name], places[name] = text, entry.where
    if read and not with_text:
        raise UserError(
            f"{', '.join(files)}: none of {read} records has a text; the last has: "
            f"{', '.join(last)}. Name the one of the text in caption.text_field"
        )
    if not texts:
        raise UserError(
            f"{', '.join(files)}: no caption of any of the {len(names)} images, such as "
            f"{names[0]!r}; name images as they are named there"
        )
    return texts
