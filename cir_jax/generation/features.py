# SPDX-License-Identifier: Apache-2.0
"""Image features for the similarity of images: of a trained model of ours, or from a file.

The released code uses Unicom ViT-L/14; features of that or any other encoder come in as .npy.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax import files
from cir_jax.data import text_files
from cir_jax.data.annotations import read_json
from cir_jax.errors import UserError, nearest
from cir_jax.generation import journal, similarity
from cir_jax.generation.trained import OpenRun
from cir_jax.runtime import run_steps

FILE, MADE_OF = "features.npy", "features.json"


def from_run(
    run: str, names: Sequence[str], paths: Sequence[Any], workdir: Path, open_run: OpenRun
) -> np.ndarray:
    """[N, C] unit rows: the target embeddings of a trained run's index, kept in `workdir`.

    Of several rows per image (K > 1) the mean is taken.

    Args:
      run: folder of the run; its best parameters are used.
      names: of the images.
      paths: their files.
      workdir: where `features.npy` is kept, and used again for the same parameters and images.
      open_run: opens the run if it must be.

    Raises:
      UserError: no such run, an unreadable image, a row of no direction, or a full disk.
    """
    found = run_steps.sound(run)[2]
    # The record tells the seconds of training too: a run that was made anew has another one.
    record = json.dumps(found, sort_keys=True)
    made_of = {
        "checkpoint": hashlib.sha256(record.encode()).hexdigest(),
        "images": _fingerprint(names, paths),
    }
    if journal.reuse(workdir / MADE_OF, made_of, [workdir / FILE]) is not None:
        return np.load(workdir / FILE)
    rows = open_run(run).encode_gallery(list(paths)).mean(axis=1)
    features = similarity.unit_rows(rows, f"features of {run}")
    (workdir / MADE_OF).unlink(missing_ok=True)
    with files.whole(workdir / FILE) as file:
        np.save(file, features)
    journal.write_json(
        workdir / MADE_OF, {"made_of": made_of, "counts": {"images": len(features)}}, indent=2
    )
    return features


def from_file(file: str, names_file: str, names: Sequence[str]) -> np.ndarray:
    """[N, C] unit rows of a .npy file, in the order of `names`.

    Args:
      file: [N, C] floats.
      names_file: names of its rows, a JSON list or one per line; "" if they are `names`.
      names: the images that are wanted.

    Raises:
      UserError: no such file, another shape, an image without a row, or a row of no direction.
    """
    try:
        features = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"pair.features={file} cannot be read ({error}); save it with numpy.save"
        ) from None
    if not isinstance(features, np.ndarray):
        raise UserError(f"pair.features={file} holds several arrays; save one as .npy")
    if features.ndim != 2 or features.dtype.kind != "f":
        raise UserError(
            f"pair.features={file} is {features.dtype} {features.shape}; expected floats [N, C]"
        )
    if not names_file:
        if len(features) != len(names):
            raise UserError(
                f"pair.features={file} has {len(features)} rows for {len(names)} images; give the "
                "names of its rows in pair.feature_names"
            )
        return similarity.unit_rows(features, f"pair.features={file}")
    rows = _row_names(names_file)
    if len(rows) != len(features):
        raise UserError(
            f"pair.feature_names={names_file} has {len(rows)} names for the {len(features)} rows "
            f"of {file}"
        )
    row_of = {name: i for i, name in enumerate(rows)}
    if len(row_of) < len(rows):
        raise UserError(f"pair.feature_names={names_file} names an image twice")
    lost = [n for n in names if n not in row_of]
    if lost:
        raise UserError(
            f"pair.feature_names={names_file} lacks {len(lost)} of {len(names)} images, "
            f"{lost[0]!r} the first;{nearest(lost[0], rows)}"
        )
    return similarity.unit_rows(features[[row_of[n] for n in names]], f"pair.features={file}")


def _row_names(file: str) -> list[str]:
    if file.endswith(".json"):
        return [str(n) for n in read_json(file)]
    if not Path(file).is_file():
        raise UserError(f"no file pair.feature_names={file}; write one name per line into it")
    try:
        return text_files.read(file).rstrip("\n").split("\n")
    except UserError as error:
        raise UserError(f"pair.feature_names: {error}; write one name per line") from None


def _fingerprint(names: Sequence[str], paths: Sequence[Any]) -> str:
    """Names the images, and sees a file that was replaced."""
    digest = hashlib.sha256()
    for name, path in zip(names, paths, strict=True):
        stamp = ""
        if isinstance(path, str) and os.path.exists(path):
            found = os.stat(path)
            stamp = f"{found.st_size} {found.st_mtime_ns}"
        digest.update(f"{name}\t{path}\t{stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
