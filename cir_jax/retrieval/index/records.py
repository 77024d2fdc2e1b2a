# SPDX-License-Identifier: Apache-2.0
"""The folder of an index: its files, and what its records say.

    index.json                  of which model, by which preprocessing, from where
    current                     number of the generation in use, replaced at once
    generations/N.json          its segments, their checksums, the name of its catalogue
    catalogue-N.parquet         its images, see `catalogue`
    segments/S/rows.npy ...     rows, see `segments`
    unreadable.jsonl            images that cannot be read, and why
    queries.jsonl               queries with known right answers, if there are any
    gallery.jsonl               names of the images of a benchmark, where it is of one
    golden.safetensors          what the model made of the golden inputs, see `cir_jax.retrieval`
    building/                   how far an index that is being made has come, see `building`
    lock, writer.json           held by the process that writes, and who that is

A generation never changes: readers keep the one that they opened, and an update makes the next one
beside it, names it in `current` when it is whole, and leaves the files of the old one to the update
after it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cir_jax import files
from cir_jax.errors import UserError
from cir_jax.runtime import checksums

VERSION = 1
RECORD, CURRENT, GENERATIONS, SEGMENTS = "index.json", "current", "generations", "segments"
UNREADABLE, QUERIES, BUILDING = "unreadable.jsonl", "queries.jsonl", "building"
GALLERY = "gallery.jsonl"


@dataclass(frozen=True)
class Generation:
    """One state of an index.

    Attributes:
      number: of the generation.
      images: how many it has.
      catalogue: name of the file of its images.
      catalogue_sum: [bytes, checksum] of that file.
      segments: number -> what `segments.Writer.finish` gave.
      next_id: the id of the next new image; ids are never given twice.
      next_segment: likewise.
      fields: [{"name", "type"}] of what is known of its images.
      loss: what the type of the rows costs, see `sample`; None for float32.
      sample: name of the file of the sample that it was measured on.
      query_side: checksum of the parameters that queries are made by.
    """

    number: int = 0
    images: int = 0
    catalogue: str = ""
    catalogue_sum: tuple[int, str] = (0, "")
    segments: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    next_id: int = 0
    next_segment: int = 1
    fields: tuple[dict[str, str], ...] = ()
    loss: dict[str, Any] | None = None
    sample: str = ""
    query_side: str = ""


def exists(folder: str | Path) -> bool:
    """Whether there is an index, or one that was begun."""
    return (Path(folder) / RECORD).is_file()


def read(folder: str | Path) -> dict[str, Any]:
    """What `index.json` holds.

    Raises:
      UserError: there is none, it is damaged, or of a newer version than this code reads.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        what = "is no folder" if not Path(folder).is_dir() else f"holds no {RECORD}"
        raise UserError(
            f"{folder} {what}, so it is no index; make one with `cir-jax index FOLDER --model "
            f"WEIGHTS --out {folder}`"
        )
    found = _sealed(path)
    files.check_version(found, VERSION, f"the index in {folder}")
    return found


def write(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Writes `index.json`.

    Raises:
      UserError: the disk is full.
    """
    files.put(Path(folder) / RECORD, checksums.sealed({"version": VERSION, **record}))


def current(folder: str | Path) -> int:
    """Number of the generation in use; 0 if there is none yet.

    Raises:
      UserError: the file is damaged or cannot be read.
    """
    path = Path(folder) / CURRENT
    try:
        text = path.read_text(encoding="ascii").strip()
        number = int(text)
    except FileNotFoundError:
        return 0
    except ValueError:
        raise damaged(folder, f"{CURRENT} names no generation") from None
    except OSError as error:
        raise unreadable(folder, error) from None
    if number < 1:
        raise damaged(folder, f"{CURRENT} names generation {number}")
    return number


def generation(folder: str | Path, number: int) -> Generation:
    """A generation; 0 is that of an index without any image.

    Raises:
      FileNotFoundError: it is not there (any more).
      UserError: it is damaged.
    """
    if not number:
        return Generation()
    found = _sealed(Path(folder) / GENERATIONS / f"{number}.json")
    files.check_version(found, VERSION, f"generation {number} of the index in {folder}")
    found.pop("version", None)
    try:
        found["segments"] = {int(name): entry for name, entry in found["segments"].items()}
        found["fields"] = tuple(found["fields"])
        size, checksum = found["catalogue_sum"]
        return Generation(**{**found, "catalogue_sum": (size, checksum)})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(folder, f"generation {number} is of another structure: {error}") from None


def write_generation(folder: str | Path, made: Generation) -> None:
    """Writes a generation that is whole on disk, and makes it the current one.

    Raises:
      UserError: the disk is full.
    """
    content = {"version": VERSION, **asdict(made)}
    content["segments"] = {str(number): entry for number, entry in made.segments.items()}
    files.put(Path(folder) / GENERATIONS / f"{made.number}.json", checksums.sealed(content))
    files.put(Path(folder) / CURRENT, f"{made.number}\n".encode())


def damaged(folder: str | Path, what: str) -> UserError:
    """What to say of an index whose records are not what was written."""
    return UserError(
        f"the index in {folder} is damaged: {what}; delete the folder and make it anew with "
        "`cir-jax index`"
    )


def unreadable(folder: str | Path, error: OSError) -> UserError:
    """What to say of an index that cannot be read at the moment."""
    return UserError(
        f"the index in {folder} cannot be read ({error.strerror or error}); correct its "
        "permissions, or, if the storage was away for a moment, give the same command again"
    )


def _sealed(path: Path) -> dict[str, Any]:
    folder = path.parent.parent if path.parent.name == GENERATIONS else path.parent
    try:
        return checksums.opened(path.read_bytes(), path.name)
    except checksums.Damaged as error:
        raise damaged(folder, str(error)) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(folder, error) from None


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines of ours; [] if it is not there.

    Raises:
      UserError: it is damaged, or cannot be read.
    """
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines() if line]
    except FileNotFoundError:
        return []
    except ValueError:
        raise UserError(
            f"{path} is damaged (a line is no JSON); delete it, and give the `cir-jax index` "
            "command again"
        ) from None
    except OSError as error:
        raise unreadable(path.parent, error) from None
