# SPDX-License-Identifier: Apache-2.0
"""An index copied to another folder, or written for other programs."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cir_jax import files, progress
from cir_jax.errors import UserError
from cir_jax.retrieval import golden
from cir_jax.retrieval.index import records
from cir_jax.retrieval.index.fields import apart

ROWS, IMAGES = "rows.npy", "images.parquet"
_TOGETHER = 4096  # images written at a time


def save(index: Any, path: str | os.PathLike[str]) -> Path:
    """See `Index.save`."""
    folder = Path(path).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; give a new folder")
    state = index.state
    single = [
        records.RECORD, records.UNREADABLE, records.QUERIES, state.catalogue, state.sample,
        golden.beside(index.folder).name, records.GALLERY,
    ]  # fmt: skip
    try:
        for name in filter(None, single):
            if (index.folder / name).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(index.folder / name, folder / name)
        for segment in index.segments:
            place = f"{records.SEGMENTS}/{segment.number}"
            shutil.copytree(index.folder / place, folder / place)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is not there any more, because the index was updated since it was "
            "opened; open it again, or take `newer()`"
        ) from None
    except OSError as error:
        raise files.full(folder, error) from None
    except shutil.Error as error:
        raise UserError(f"{folder} cannot be written ({error}); make room") from None
    records.write_generation(folder, state)
    return folder


def export(index: Any, path: str | os.PathLike[str]) -> list[Path]:
    """See `Index.export`."""
    folder = Path(path).expanduser()
    images, width = index.catalogue, index.embedding
    shape = (width,) if index.rows_per_image == 1 else (index.rows_per_image, width)
    with (
        files.whole(folder / ROWS) as file,
        progress.counter(len(images), "exporting") as bar,
    ):
        described = {"descr": "<f4", "fortran_order": False, "shape": (len(images), *shape)}
        np.lib.format.write_array_header_1_0(file, described)
        for start in range(0, len(images), _TOGETHER):
            ids = images.ids[start : start + _TOGETHER]
            file.write(index.rows(ids).tobytes())
            bar.update(len(ids))
    table = images.table.rename_columns([apart(c, "id") for c in images.table.column_names])
    table = table.add_column(0, "id", pa.array(images.ids))
    with files.whole(folder / IMAGES) as file:
        parquet.write_table(table, file)
    return [folder / ROWS, folder / IMAGES]
