# SPDX-License-Identifier: Apache-2.0
"""Vectors from a folder of sentence-transformers, in this process.

It runs on PyTorch, because that is what such models are published for; the package is imported only
here and only when asked for.
"""

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cir_jax import files
from cir_jax.embedders.embedder import Answered
from cir_jax.embedders.items import Item
from cir_jax.errors import ServerError, UserError

MODULES = "modules.json"  # of every such folder


class Folder:
    """Runs a model of a folder; see `embedder.Embedder`. It is loaded with the first item.

    Args:
      section: the section `model` of a config, with the keys of `cir_jax.models.served`.

    Raises:
      UserError: there is no such folder, or the package is not installed.
    """

    composes = tells = True

    def __init__(self, section: Any):
        self._section, self._place = section, Path(section.tower)
        if not (self._place / MODULES).is_file():
            raise UserError(
                f"model.tower={section.tower} is no folder of sentence-transformers (it lacks "
                f"{MODULES}); name one, or the server of the model in model.url"
            )
        try:
            import sentence_transformers  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"model.tower={section.tower} needs {error.name}, which is not installed; pip "
                "install 'cir_jax[torch]', or serve the model and name the server in model.url"
            ) from None
        self.who = f"folder {self._place}"
        self.identity = {
            "model": self._place.name, "content": self._content(), "dimensions": section.dimensions,
        }  # fmt: skip

    def _content(self) -> str:
        """Of all files in the folder; copies are the same model, wherever they lie."""
        digest = hashlib.sha256()
        for file in sorted(self._place.rglob("*")):
            name = file.relative_to(self._place).as_posix()
            if file.is_file() and not name.startswith(".") and file.suffix != ".md":
                digest.update(f"{name} {files.checksum(file)}\n".encode())
        return digest.hexdigest()[:32]

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(str(self._place), local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ServerError(
                f"{self.who} cannot be loaded by sentence-transformers ({str(error)[:300]}); "
                "correct the folder, or serve the model and name the server in model.url"
            ) from None

    def answers(self, items: Iterable[Item]) -> Iterator[Answered]:
        """See `embedder.Embedder`."""
        for (_, system), alike in itertools.groupby(items, lambda item: (item.kind, item.system)):
            while group := list(itertools.islice(alike, self._section.per_request)):
                yield Answered(group, self._encoded(group, system), "torch")

    def _encoded(self, group: list[Item], system: str) -> list[np.ndarray]:
        options: dict[str, Any] = {"batch_size": len(group), "show_progress_bar": False}
        if system:
            options["prompt"] = system
        if self._section.dimensions:
            options["truncate_dim"] = self._section.dimensions
        try:
            return list(self._model.encode([_input(item) for item in group], **options))
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            both = "; model.composition=sum asks for each alone" * (group[0].kind == "both")
            raise ServerError(
                f"{self.who} has no vectors for {group[0].name} ({str(error)[:300]}); use a model "
                f"that reads images and texts{both}"
            ) from None


def _input(item: Item) -> Any:
    """As sentence-transformers takes it: a picture, a text, or a dict of both."""
    if not item.image:
        return item.text
    picture = Image.open(io.BytesIO(item.image)).convert("RGB")
    return {"image": picture, "text": item.text} if item.text else picture
