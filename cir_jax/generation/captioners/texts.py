# SPDX-License-Identifier: Apache-2.0
"""Captions that are there already: titles, alt texts, files of an earlier run.

`cir_jax.datasets.captions` reads them. Of several texts in one record the first is used. A text for
an image that is not in the set and a second text for one image are errors unless the config says
what is meant: either may be a sign that the file belongs to other images.
"""

from collections.abc import Iterable, Iterator, Sequence

from ml_collections import ConfigDict

from cir_jax.datasets import captions, image_lists
from cir_jax.errors import UserError
from cir_jax.generation.captioner import Reply, Request

KEYS = {
    "caption.file": ((), "files of captions", "paths"),
    "caption.text_field": ("", "their column or key; '' = caption, captions, title, alt_text, text",
                           None),
    "caption.empty": ("drop", "records without a text", ("drop", "error")),
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
        choices = captions.Choices.of(
            "caption.",
            text_field=section.text_field,
            empty=section.empty,
            unknown=section.unknown,
            duplicates=section.duplicates,
        )
        found = captions.collect(files, choices, names)
        return cls({name: one.texts[0] for name, one in found.items()}, files)

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """The caption of each image, or that there is none."""
        for request in requests:
            text = self.texts.get(request.key, "")
            problem = "" if text else "no caption in the files"
            yield Reply(request.key, text, problem, final=True)
