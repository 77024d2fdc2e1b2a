# SPDX-License-Identifier: Apache-2.0
"""TFDS builders for FashionIQ and CIRR, in ArrayRecord format, without TensorFlow.

Each has two configs: "images" (every image once: its name and its file) and "triplets" (names and
texts, per split). They are built from the official layout on disk; nothing is downloaded.
"""

import abc
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from cir_jax.data.inspection import inspect_images
from cir_jax.data.pixels import ImageFile
from cir_jax.datasets import records
from cir_jax.datasets.readers import cirr, fashioniq
from cir_jax.errors import UserError

VERSION = tfds.core.Version("1.0.0")


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Both configs of one data set; `root` is its official layout."""

    VERSION = VERSION
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="images", version=VERSION),
        tfds.core.BuilderConfig(name="triplets", version=VERSION),
    ]
    splits: tuple[str, ...] = ()

    def __init__(self, *, root: str | Path, **options: Any):
        self.root = Path(root)
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        if self.builder_config.name == "images":
            features = {"name": text, "image": tfds.features.Image(shape=(None, None, None))}
        else:
            features = {
                "reference": text, "target": text, "eval_text": text, "query_id": text,
                "category": text, "texts": tfds.features.Sequence(text),
                "members": tfds.features.Sequence(text),
            }  # fmt: skip
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # record numbers are the order of `names`
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        if self.builder_config.name == "images":
            return {records.SPLIT: self._generate_examples(records.SPLIT)}
        return {split: self._generate_examples(split) for split in self.splits if self.has(split)}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.builder_config.name == "images":
            for number, (name, path) in enumerate(sorted(self.paths().items())):
                yield number, {"name": name, "image": path}
            return
        for number, t in enumerate(self.read(split)):
            yield number, {
                "reference": t.reference, "target": t.target, "eval_text": t.eval_text,
                "query_id": t.query_id, "category": t.category, "texts": list(t.texts),
                "members": list(t.members),
            }  # fmt: skip

    @abc.abstractmethod
    def has(self, split: str) -> bool:
        """True if the split is on disk; whether it is well-formed shows when it is read."""

    @abc.abstractmethod
    def annotations(self) -> Path:
        """The folder that holds captions/ and image_splits/."""

    @abc.abstractmethod
    def read(self, split: str) -> tuple:
        """The annotated triplets of a split."""

    @abc.abstractmethod
    def paths(self) -> Mapping[str, ImageFile]:
        """Name -> file of every image of every split."""


class FashionIq(_Builder):
    """FashionIQ; see `cir_jax.datasets.readers.fashioniq` for the layout."""

    splits = ("train", "val", "test")

    def has(self, split: str) -> bool:
        """True if any category has it."""
        return any((self.root / "captions").glob(f"cap.*.{split}.json"))

    def annotations(self) -> Path:
        """The root."""
        return self.root

    def read(self, split: str) -> tuple:
        """All categories, one after the other."""
        return tuple(fashioniq.read(self.root, split)[0].triplets)

    def paths(self) -> Mapping[str, ImageFile]:
        """The images folder, which may hold more than the splits name."""
        return fashioniq.every_file(self.root)


class Cirr(_Builder):
    """CIRR; see `cir_jax.datasets.readers.cirr` for the layout."""

    splits = ("train", "val", "test1")

    def has(self, split: str) -> bool:
        """True if it has captions."""
        return (self.annotations() / "captions" / f"cap.rc2.{split}.json").is_file()

    def annotations(self) -> Path:
        """cirr/, or the root."""
        return cirr.annotation_folder(self.root)

    def read(self, split: str) -> tuple:
        """The split's triplets."""
        return tuple(cirr.read(self.root, split)[0].triplets)

    def paths(self) -> Mapping[str, ImageFile]:
        """The images that the split files name."""
        found: dict[str, ImageFile] = {}
        for split in self.splits:
            if self.has(split):
                found |= cirr.gallery(self.root, split)[1]
        return found


BUILDERS = {"fashioniq": FashionIq, "cirr": Cirr}


def pack(dataset: str, root: str | Path, out: str | Path) -> Path:
    """Packs a data set in its official layout into `out`: annotations copied, images in records.

    Args:
      dataset: "fashioniq" or "cirr".
      root: the data set.
      out: a new folder, to be used as data.root.

    Raises:
      UserError: no such data set, broken images, or `out` is not empty.
    """
    if dataset not in BUILDERS:
        raise UserError(f"no builder for {dataset!r}; there are: {', '.join(BUILDERS)}")
    root, out = Path(root), Path(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give a new folder")
    store = out / records.FOLDER
    builders = {
        name: BUILDERS[dataset](root=root, config=name, data_dir=str(store))
        for name in ("images", "triplets")
    }
    paths = builders["images"].paths()
    bad = inspect_images(paths).unusable()
    if bad or not paths:
        raise UserError(
            f"{len(bad)} of {len(paths)} images of {root} cannot be packed: {', '.join(bad[:3])}; "
            f"run `cir-jax doctor {dataset} {root}`"
        )
    for builder in builders.values():
        builder.download_and_prepare()
    source = builders["images"].annotations()
    for name in ("captions", "image_splits"):  # not all of the folder, it may hold the images too
        if (source / name).is_dir():
            shutil.copytree(source / name, out / source.relative_to(root) / name)
    folder = Path(builders["images"].data_dir).relative_to(store)
    index = {"folder": folder.as_posix(), "names": sorted(paths)}
    (store / records.INDEX).write_text(json.dumps(index))  # last: without it nothing is packed
    return out
