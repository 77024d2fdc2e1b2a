# SPDX-License-Identifier: Apache-2.0
"""A query with what was found for it, as reports show it and as JSON keeps it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cir_jax.data.pixels import Crop, ImageFile

SHOWN = 5  # results of an example


@dataclass(frozen=True)
class Hit:
    """One result of an example: image name, its file, and its score."""

    name: str
    path: ImageFile
    score: float


@dataclass(frozen=True)
class Example:
    """One query and what was found, for the report.

    Attributes:
      query_id: names the query.
      text: its modification text.
      reference, target: files.
      target_name: name of the target, to mark it among the results.
      also: names of further right answers, marked too.
      rank: 1 if the target came first.
      results: the best candidates, best first.
    """

    query_id: str
    text: str
    reference: ImageFile
    target: ImageFile
    target_name: str
    rank: int
    results: tuple[Hit, ...]
    also: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; files become text, and parts of files objects."""
        hits = [
            {"name": hit.name, "path": _written(hit.path), "score": hit.score}
            for hit in self.results
        ]
        files = {"reference": _written(self.reference), "target": _written(self.target)}
        return asdict(self) | files | {"results": hits}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Example":
        """The inverse of `to_json`."""
        hits = tuple(Hit(**hit | {"path": _read(hit["path"])}) for hit in content["results"])
        files = {key: _read(content[key]) for key in ("reference", "target")}
        also = tuple(content.get("also", ()))  # earlier runs lack it
        return cls(**{**content, **files, "results": hits, "also": also})


def _written(file: ImageFile) -> str | dict[str, Any]:
    """A file as JSON holds it."""
    return asdict(file) | {"source": str(file.source)} if isinstance(file, Crop) else str(file)


def _read(written: str | Mapping[str, Any]) -> ImageFile:
    """The inverse of `_written`."""
    if isinstance(written, Mapping):
        return Crop(**{**written, "box": tuple(written["box"])})
    return written
