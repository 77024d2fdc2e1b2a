# SPDX-License-Identifier: Apache-2.0
"""What a reader reports when it examines its data set, for `cir-jax doctor`.

A reader's `examine` makes an `Examination`, counts into it what its annotation files hold, and
names the images that should be there. Whether these can be opened is `cir_jax.datasets.doctor`'s
work, the same for every data set.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from cir_jax.data.pixels import Crop, ImageFile
from cir_jax.data.triplets import Triplet


class Count(TypedDict):
    """How many of something there are, and how many the published files have, if that is known."""

    what: str
    found: int
    official: int | None


@dataclass
class Examination:
    """What the annotation files of a data set hold.

    Attributes:
      images: name -> file of every image that should be there.
      parts: name -> part of one of them, cut out by a box of the annotations.
      counts: one entry per thing counted, in the order of the printed table.
      outside: "query id (image name)" of names that a triplet uses and its split does not list.
      notes: what is worth knowing and changes no result.
      size: counts below the official ones, as those of a part of the data set are.
      problems: what changes results. With one of them `cir-jax doctor` exits with status 1.
      texts: (query id, text) of every text that was looked over.
      same: query ids of triplets whose reference is their target; in evaluation, in training.
    """

    images: Mapping[str, ImageFile] = field(default_factory=dict)
    parts: Mapping[str, Crop] = field(default_factory=dict)
    counts: list[Count] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    size: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    same: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))

    def count(self, what: str, found: int, official: int | None = None) -> None:
        """Notes a count; a problem if it is above the official one, a matter of size if below."""
        self.counts.append({"what": what, "found": found, "official": official})
        if official is not None and found != official:
            (self.size if found < official else self.problems).append(
                f"{what}: {found:,}, officially {official:,}; recalls are not comparable with "
                "published ones"
            )

    def has_files(self, split: str, files: Sequence[Path]) -> bool:
        """Whether all annotation files of a split are there; a problem for each that is not.

        A split whose name starts with "test" may be absent as a whole: that is only a note.
        """
        missing = [str(file) for file in files if not file.is_file()]
        if missing and len(missing) == len(files) and split.startswith("test"):
            self.notes.append(f"no {split} split: {', '.join(missing)}")
        else:
            self.problems += [f"no annotation file {file}; fetch it" for file in missing]
        return not missing

    def check_names(
        self,
        listed: Iterable[str],
        triplets: Sequence[Triplet],
        targets_only: bool = False,
        split: str = "",
    ) -> None:
        """Notes the images that triplets name and their split does not list; see `look_over`, too.

        Args:
          listed: names of all images of the split.
          triplets: of the same split.
          targets_only: look at the targets alone, where `listed` is a gallery of targets.
          split: its name.
        """
        self.look_over(triplets, split)
        known = set(listed)
        outside = [
            f"{t.query_id} ({name})"
            for t in triplets
            for name in (t.truths or (t.target,))
            + (() if targets_only else (t.reference, *t.members))
            if name and name not in known
        ]
        self.outside += dict.fromkeys(outside)

    def look_over(self, triplets: Iterable[Triplet], split: str = "") -> None:
        """Notes the texts of triplets, and those whose reference is their target."""
        for t in triplets:
            self.texts += [(t.query_id, text) for text in dict.fromkeys((*t.texts, t.eval_text))]
            if t.reference and t.reference == t.target:
                self.same[split == "train"].append(t.query_id)

    def note_unlabelled(self, listed: Iterable[str], triplets: Iterable[Triplet]) -> None:
        """Notes how many images of the train split no triplet names."""
        rest = set(listed) - {name for t in triplets for name in (t.reference, t.target)}
        if rest:
            self.notes.append(
                f"{len(rest):,} images of the train split are in no triplet; data.unlabelled=split "
                "puts them into the bank of stage two"
            )

    def note_folders(self, root: str | Path, files: Mapping[str, ImageFile]) -> None:
        """Notes how many images there are, and in which folders below `root`."""
        paths = [file for file in files.values() if isinstance(file, str)]
        if not files or len(paths) < len(files):
            self.notes.append(f"{len(files):,} images, packed" if files else "no image at all")
            return
        folders = sorted({os.path.dirname(os.path.relpath(path, root)) for path in paths})
        suffixes = sorted({os.path.splitext(path)[1] for path in paths})
        shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
        self.notes.append(f"{len(files):,} images ({', '.join(suffixes)}) in {shown}")
