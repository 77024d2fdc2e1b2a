# SPDX-License-Identifier: Apache-2.0
"""The static bank of stage two: every candidate's target embedding, and the references.

Each distinct image is opened and encoded exactly once (the released code does so four times per
triplet). Rows are numbered by the image table and sharded over all devices; references may lie
elsewhere, see `cir_jax.bank.references`. A bank knows the parameters, images and
preprocessing it was made of, and is refused by anything else.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cir_jax.bank.references import Plan
from cir_jax.contract import Functions
from cir_jax.data.pipeline import TrainingData
from cir_jax.errors import UserError
from cir_jax.params import Params
from cir_jax.runtime import mesh as meshes
from cir_jax.towers.attention import XLA

DTYPES = ("float32", "bfloat16")


@partial(
    jax.tree_util.register_dataclass, data_fields=["targets", "references"], meta_fields=["rows"]
)
@dataclass(frozen=True)
class Bank:
    """Rows on the devices, two-dimensional: see `cir_jax.losses.rows`.

    Attributes:
      targets: [N' K, D] unit rows, from row i K on those of image i of the table; N' fills up to
        the devices.
      references: [M', R C], row i is reference i of the plan; None where they are not on devices.
      rows: N, images; static.
    """

    targets: jax.Array
    references: jax.Array | None
    rows: int


@dataclass(frozen=True, eq=False)
class Inputs:
    """All that a bank is made of.

    Attributes:
      functions: the model.
      index: its index parameters.
      data: triplets and images.
      plan: the references.
      preprocess: file -> uint8 [S, S, 3].
      place: where references lie, "device", "disk" or "recompute".
    """

    functions: Functions
    index: Params
    data: TrainingData
    plan: Plan
    preprocess: Any
    place: str

    def fingerprint(self) -> dict[str, str]:
        """What the bank depends on, by part, and not on devices, processes or sharding.

        The parameters are those that `target` and `reference` read, whatever their role: training
        the text side anew leaves the bank of an image tower as good as it was.
        """
        digest = hashlib.sha256()
        for path in self.functions.index_paths:
            x = _whole(self.index[path])
            digest.update(f"{path} {x.dtype} {x.shape}\n".encode())
            digest.update(np.ascontiguousarray(x).tobytes())
        parts = {
            # By its name, which is that of a folder for some models and of a file for others.
            "model": Path(self.functions.config.name).stem,
            "parameters": digest.hexdigest(),
            "images": self.data.images.fingerprint(),
            "preprocessing": self.preprocess.fingerprint(),
        }
        kind = self.functions.config.attention
        if kind != XLA:  # what all banks were made with before there was another
            parts["model.attention"] = kind
        parts |= {key: str(value) for key, value in self.functions.input_keys("index").items()}
        if self.place == "recompute":
            return parts
        plan, kind = self.plan, "by text" if self.plan.by_text else "by image"
        rows = hashlib.sha256(plan.image.tobytes() + plan.text.tobytes()).hexdigest()
        parts["references"] = f"{self.arrays()['references'][1]} {len(plan)} {kind} {rows}"
        if plan.reads_text:
            tokens = self.data.tokens
            texts = hashlib.sha256()
            for array in (*tokens.blocks(), tokens.start):
                texts.update(array.tobytes())
            parts["texts"] = texts.hexdigest()
        return parts

    def arrays(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Name -> (shape, dtype) of what lies on disk."""
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "targets": ((len(self.data.images), *self.functions.target_shape), np.dtype("float32"))
        }
        if self.place != "recompute":
            kind = jnp.dtype("bfloat16" if self.place == "disk" else "float32")
            shapes["references"] = ((len(self.plan), *self.functions.reference_shape), kind)
        return shapes


def place(rows: dict[str, np.ndarray], mesh: Mesh, dtype: str = "float32") -> Bank:
    """Puts a bank on the devices, filled up with zero rows to a multiple of their number.

    Args:
      rows: {"targets" [N, K, D]} and, if they are to be there, {"references" [M, R, C]}.
      mesh: the device mesh.
      dtype: of the targets.

    Raises:
      UserError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"loss.bank_dtype={dtype!r} is unknown; use {' or '.join(DTYPES)}")
    targets, references = rows["targets"], rows.get("references")
    return Bank(
        _placed(targets, targets.shape[1], mesh, jnp.dtype(dtype)),
        # References enter the query side raw, so they keep float32.
        None if references is None else _placed(references, 1, mesh, np.float32),
        len(targets),
    )


def _placed(x: np.ndarray, per_row: int, mesh: Mesh, dtype: Any) -> jax.Array:
    """[N, ...] -> [N' per_row, values of an entry / per_row], N' a multiple of the devices."""
    width = math.prod(x.shape[1:]) // per_row
    shape = ((len(x) + -len(x) % mesh.size) * per_row, width)

    def part(span: tuple[slice, ...] | None) -> np.ndarray:
        start, stop, _ = (span[0] if span else slice(None)).indices(shape[0])
        valid = x[start // per_row : min(stop // per_row, len(x))].astype(dtype).reshape(-1, width)
        short = stop - start - len(valid)
        return np.pad(valid, ((0, short), (0, 0))) if short else valid

    return jax.make_array_from_callback(shape, meshes.row_sharding(mesh), part)


def _whole(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
