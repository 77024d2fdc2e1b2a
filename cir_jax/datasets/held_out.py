# SPDX-License-Identifier: Apache-2.0
"""Images that are for evaluation alone: nothing that trains may see them.

A reader says which they are (`reader.HasHeldOut`). They are known by name and by file, so another
name of the same file, such as that of a folder given beside the data set, does not bring one in.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.data import column_images, places
from cir_jax.data.column_images import Images
from cir_jax.data.stacked import among
from cir_jax.data.triplet_columns import Columns
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import reader
from cir_jax.errors import UserError


class HeldOut:
    """Images that training must not see.

    Attributes:
      images: name -> file.
    """

    def __init__(self, images: Mapping[str, Any]):
        self.images = dict(images)
        self._identity = places.Identity()
        self._files = {self._identity.of(path) for path in images.values()}

    def is_file(self, path: Any) -> bool:
        """Whether a file is one of them, whatever its name is."""
        return bool(self._files) and self._identity.of(path) in self._files

    def without(self, one: TripletSet, origin: str) -> TripletSet:
        """A set without the triplets that show one of the images, which are counted.

        Args:
          one: whose files of images are named in `paths`.
          origin: the key that brings the set in, for messages.

        Raises:
          UserError: no triplet is left.
        """
        if not self.images:
            return one
        kept: Sequence[Triplet]
        if isinstance(one.triplets, Columns) and isinstance(one.paths, Images):
            first, kept = self._of_columns(one.triplets, one.paths)
        else:
            gone = {name for name in _shown(one.triplets) if name in self.images}
            gone |= {name for name, path in one.paths.items() if self.is_file(path)}
            first = min(gone, default="")
            kept = tuple(t for t in one.triplets if gone.isdisjoint(_shown([t])))
        left_out = len(one.triplets) - len(kept)
        if not len(kept):
            raise UserError(
                f"{origin}: each of the {left_out:,} records of {one.name!r} shows an image that "
                f"is held out for evaluation, {first} for one; give records of other images, "
                "or take these images out of what is evaluated"
            )
        if left_out:
            progress.say(
                f"{origin}: {left_out:,} of {len(one.triplets):,} records of {one.name!r} show "
                f"images that are held out for evaluation, {first} for one; they are left out"
            )
        return replace(one, triplets=kept)

    def _of_columns(self, triplets: Columns, images: Images) -> tuple[str, Columns]:
        """(the first of the images that are shown, the triplets that show none of them)."""
        numbers = np.fromiter(self._identity.numbers(), np.uint64)
        gone, names = {}, list[str]()
        for one, shown in images.parts.items():
            mask = np.zeros(len(shown), bool)
            known = np.asarray([one.part.names.find(name) for name in self.images], np.int64)
            mask[known[known >= 0]] = True
            # A listing tells that the others are no such files.
            odd = shown & ~mask & ((one.number == 0) | among(one.number, numbers))
            mask[[n for n in np.flatnonzero(odd).tolist() if self.is_file(one.file(n))]] = True
            gone[one.part] = mask
            if mask.any():
                mine = column_images.shown(triplets.shares)[one.part]
                names += one.part.names.take(np.flatnonzero(mask & mine)).to_pylist()
        return min(names, default=""), column_images.without(triplets, gone, answers=True)


def of(config: ConfigDict) -> HeldOut:
    """What the data set of a run holds out of its training images."""
    return of_reader(config.data.name, config.data.root, ("val", config.eval.split))


def of_reader(name: str, root: str, splits: Sequence[str] = ("val",)) -> HeldOut:
    """What the reader `name` holds out of its training images; nothing if it cannot tell."""
    module = reader.load(name)
    return HeldOut(module.held_out(root, splits) if isinstance(module, reader.HasHeldOut) else {})


def _shown(triplets: Iterable[Triplet]) -> set[str]:
    """Names of all images that training would show."""
    return {n for t in triplets for n in (t.reference, t.target, *t.truths) if n}
