# SPDX-License-Identifier: Apache-2.0
"""The contract of a reader: the module that reads one data set, named by `data.name`.

A reader is a module of `cir_jax.datasets.readers`, or a .py file of yours. Only `read` is needed
to train; each other function adds one thing that can be done with the data set:

    read(root, split, categories)  annotated triplets of a split            `Reader`
    images(root, split)            generated triplets, unlabelled images    `HasImages`
    captions(root)                 stage zero                               `HasCaptions`
    caption_file(root)             captions for `cir-jax positives`         `HasCaptionFile`
    held_out(root, splits)         images that training must not see        `HasHeldOut`
    home(root)                     the folder that files are relative to    `HasHome`
    examine(root, categories)      `cir-jax doctor`                         `Examinable`

Names are those of images inside the data set; a file is a path or whatever else
`cir_jax.data.pixels.ImageFile` allows. A reader without `read` is for evaluation alone: its
benchmark calls functions of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

from cir_jax import plugins
from cir_jax.data.pixels import ImageFile
from cir_jax.data.triplets import TripletSet
from cir_jax.datasets.examination import Examination
from cir_jax.errors import UserError

PACKAGE = "cir_jax.datasets.readers"


@runtime_checkable
class Reader(Protocol):
    """What every data set that can be trained on defines."""

    def read(
        self, root: str | Path, split: str = "train", categories: Sequence[str] = ()
    ) -> list[TripletSet]:
        """The annotated triplets of a split, one set per source.

        Args:
          root: folder of the data set, `data.root`.
          split: "train", or a split that is evaluated, e.g. "val".
          categories: parts of the data set, `data.categories`; () for all.

        Raises:
          UserError: a file or a field is missing; the message names the file and the record.
        """


@runtime_checkable
class HasImages(Protocol):
    """A data set that knows its images without triplets."""

    def images(self, root: str | Path, split: str = "train") -> Mapping[str, ImageFile]:
        """Name -> file of all images of a split, also of those that no triplet names."""


@runtime_checkable
class HasCaptions(Protocol):
    """A data set with image captions, which stage zero trains on."""

    def captions(self, root: str | Path) -> list[TripletSet]:
        """Image-caption pairs: triplets without a reference."""


@runtime_checkable
class HasCaptionFile(Protocol):
    """A data set whose captions lie in one file."""

    def caption_file(self, root: str | Path) -> Path:
        """The file of image captions, in a layout of `cir_jax.datasets.captions`."""


@runtime_checkable
class HasHeldOut(Protocol):
    """A data set whose `images` include some that are for evaluation alone."""

    def held_out(
        self, root: str | Path, splits: Sequence[str] = ("val",)
    ) -> Mapping[str, ImageFile]:
        """Name -> file of the images of `images(root, "train")` that `splits` evaluate with, and of
        other copies of them."""


@runtime_checkable
class HasHome(Protocol):
    """A data set whose files of triplets are relative to another folder than the root."""

    def home(self, root: str | Path) -> Path:
        """That folder."""


@runtime_checkable
class Examinable(Protocol):
    """A data set that `cir-jax doctor` can examine."""

    def examine(self, root: str | Path, categories: Sequence[str] = ()) -> Examination:
        """Counts what the annotation files hold and names the images that should be there.

        Raises:
          UserError: there are no annotations at all, or a file of them is malformed.
        """


def load(name: str) -> Reader:
    """The reader that `data.name` names, e.g. "fashioniq", or that of a file of yours.

    Raises:
      UserError: no such reader (what exists is listed), or it defines no `read`.
    """
    module = _module(name)
    if isinstance(module, Reader):
        return module
    if name.endswith(".py"):
        raise UserError(
            f"data.name={name} defines no read(root, split, categories), which returns the "
            "annotated triplets of a split; add it, see cir_jax/datasets/reader.py"
        )
    others = [n for n in plugins.available(PACKAGE) if isinstance(_module(n), Reader)]
    raise UserError(
        f"data.name={name} has no triplets to train on, it is for evaluation alone: set "
        f"eval.benchmark={name}, and data.name to one of {', '.join(others)}"
    )


def examine(name: str, root: str | Path, categories: Sequence[str] = ()) -> Examination:
    """What the reader `name` finds in the annotation files below `root`, see `Examinable`.

    Raises:
      UserError: no such reader, it defines no `examine`, or whatever that finds unusable.
    """
    module = _module(name)
    if not isinstance(module, Examinable):
        raise UserError(
            f"{name} cannot be examined: it defines no examine(root, categories), which returns "
            "a cir_jax.datasets.examination.Examination; add it, see cir_jax/datasets/reader.py"
        )
    return module.examine(root, categories)


def training_images(name: str, root: str | Path, need: str) -> dict[str, ImageFile]:
    """Name -> file of all training images of the reader `name`, see `HasImages`.

    Args:
      name, root: `data.name` and `data.root`.
      need: what they are for, as the end of "no images(root, split), which ...".

    Raises:
      UserError: the reader defines no `images`.
    """
    module = load(name)
    if not isinstance(module, HasImages):
        raise UserError(
            f"{name} defines no images(root, split), which {need}; add it, see "
            "cir_jax/datasets/reader.py"
        )
    return dict(module.images(root, "train"))


def is_published(name: str) -> bool:
    """Whether the reader `name` is of a published set, whose pixels are those of published runs.

    Images of your own are a "folder", a "list" of `cir-jax positives`, or read by a file of yours.
    """
    return name not in ("folder", "list") and not name.endswith(".py")


def home(name: str, root: str | Path) -> str | Path:
    """The folder that files of triplets are relative to: the reader's `home`, or the root."""
    module = load(name)
    return module.home(root) if isinstance(module, HasHome) else root


def _module(name: str) -> ModuleType:
    # Every module has a __name__: what a reader must define depends on what it is asked for.
    return plugins.load(PACKAGE, name, marker="__name__")
