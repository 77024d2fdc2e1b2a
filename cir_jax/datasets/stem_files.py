# SPDX-License-Identifier: Apache-2.0
"""Images by their names without suffix, as FashionIQ and GeneCIS write them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cir_jax.data import places
from cir_jax.data.listing import images_below
from cir_jax.datasets.named_files import NamedFiles, one_picture
from cir_jax.errors import UserError


class StemFiles(Mapping[str, str]):
    """Name without suffix -> file, of a folder and, with `depth`, the folders directly in it.

    A name may fit several files. Then, in this order: those in the folder of the category that asks
    for it, those in the folder itself, any other. If two are left, they are either pixel-identical,
    and the first is read, or the name is refused.

    Args:
      folder: of the images.
      depth: 0 or 1.
      root: the data set, in which links may lead from one place to another.
    """

    def __init__(self, folder: str | Path, depth: int = 1, root: str | Path = ""):
        self._allowed = places.roots(root or folder)
        listing = images_below(folder, depth, self._allowed)
        self._folder, self._listing = folder, listing
        self._names: dict[str, list[str]] = {}
        # A folder's own images before those of the folders in it, as a name is looked for.
        for name in sorted(listing.files, key=lambda n: (n.count("/"), n.split("/"))):
            self._names.setdefault(_stem(name), []).append(name)
        self._outside = {_stem(name): (name, target) for name, target in listing.outside.items()}
        self._by_path: NamedFiles | None = None

    def find(self, name: str, category: str = "", where: str = "") -> str | None:
        """The file of a name; None if there is none.

        Args:
          name: as it is written.
          category: of the record, "" for none.
          where: names the record in messages; "" the folder.

        Raises:
          UserError: two different pictures fit, or the file leads out of the roots.
        """
        where = where or str(self._folder)
        fitting = self._names.get(name, [])
        if not fitting:
            return self._otherwise(name, where)
        own = [n for n in fitting if category and n.startswith(f"{category}/")]
        flat = [n for n in fitting if "/" not in n]
        names = own or flat or fitting
        names = list(dict.fromkeys(self._listing.same.get(n, n) for n in names))
        paths = [self._listing.files[n] for n in names]
        if len(paths) > 1 and not one_picture(paths):
            raise UserError(
                f"{where}: image {name!r} may be {' or '.join(paths)}, which are two pictures; "
                "keep one of them, or put the one that is meant into the folder of its category"
            )
        return paths[0]

    def double(self) -> dict[str, list[str]]:
        """Names that several files fit, with these."""
        return {
            stem: [self._listing.files[n] for n in names]
            for stem, names in self._names.items()
            if len({self._listing.same.get(n, n) for n in names}) > 1
        }

    def _otherwise(self, name: str, where: str) -> str | None:
        """The file of a name that is spelled otherwise than files here are."""
        if name in self._outside:
            raise places.outside(name, self._outside[name][1], self._allowed, where)
        if self._by_path is None:
            self._by_path = NamedFiles(
                self._listing.files, self._folder, self._listing, self._allowed
            )
        plain = self._by_path.name(name, where)
        if plain in self._listing.files:
            return self._listing.files[plain]
        found = self._by_path.file(plain)
        return str(found) if "/" in plain and os.path.isfile(str(found)) else None

    def __getitem__(self, name: str) -> str:
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]
