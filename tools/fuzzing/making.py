# SPDX-License-Identifier: Apache-2.0
"""Small files of every kind, for `readers` and `own_files`."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Read = Callable[[], Any]
PICTURES = ("a.png", "b.png", "c.png")


def pictures(folder: Path, names: tuple[str, ...] = PICTURES) -> None:
    """Pictures of one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(folder / name)


def dump(path: Path, content: Any) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
    return path


def dump_lines(path: Path, records: list[Any]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


def table(path: Path, records: list[dict[str, Any]], delimiter: str = ",") -> Path:
    """A CSV or TSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)
    return path


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tolerant(work: Callable[[], Any]) -> None:
    """Goes on behind a UserError: one spoiled file must not hide what another does."""
    from cir_jax.errors import UserError

    try:
        work()
    except UserError as error:
        if not str(error).strip():
            raise AssertionError("a UserError without a word") from error
