# SPDX-License-Identifier: Apache-2.0
"""The static bank of stage two: every candidate's target embedding, and every reference.

Each distinct image is opened and encoded exactly once (the released code does so four times per
triplet). Rows are numbered by the image table and sharded over all devices. A bank knows the
parameters, images and preprocessing it was made of, and is refused by anything else.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cir_jax.data.pipeline import TrainingData
from cir_jax.errors import UserError
from cir_jax.models.contract import Functions, Params
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime.encode import encode

RECORD = "bank.json"
DTYPES = ("float32", "bfloat16")


@partial(
    jax.tree_util.register_dataclass, data_fields=["targets", "references"], meta_fields=["rows"]
)
@dataclass(frozen=True)
class Bank:
    """Rows on the devices.

    Attributes:
      targets: [N', K, D] unit rows, row i is image i of the table; N' fills up to the devices.
      references: [N', R, C] by image, or [M', R, C] by text row where references depend on texts.
      rows: N, valid rows of `targets`; static.
    """

    targets: jax.Array
    references: jax.Array
    rows: int


def build(
    functions: Functions,
    index: Params,
    data: TrainingData,
    preprocess: Callable[[Any], np.ndarray],
    mesh: Mesh,
    *,
    batch: int = 128,
    threads: int = 16,
) -> dict[str, np.ndarray]:
    """Encodes the bank; rows come back on the host, for `place` and `save`.

    Returns:
      {"targets": [N, K, D], "references": [N, R, C] or [M, R, C]}, float32. One image pass per
      image; a model whose references depend on the text needs one more pass per text.
    """
    image_pass, text_pass = _passes(functions)

    def load_image(row: int) -> dict[str, np.ndarray]:
        return {"pixels": preprocess(data.images.paths[row])}

    options = {"batch": batch, "mesh": mesh, "threads": threads}
    rows = encode(image_pass, index, range(len(data.images)), load_image, title="bank", **options)
    if functions.per_triplet:
        image = data.reference_id[data.triplet_of_text()]
        length = int(data.tokens.lengths.max())

        def load_text(row: int) -> dict[str, np.ndarray]:
            text = data.tokens.rows(slice(row, row + 1), length)[0]
            return load_image(image[row]) | {"text": text}

        texts = range(len(data.tokens))
        rows |= encode(text_pass, index, texts, load_text, title="references", **options)
    return rows


@lru_cache(maxsize=8)
def _passes(functions: Functions) -> tuple[Callable, Callable]:
    def image(params: Params, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        out = {"targets": functions.target(params, fields["pixels"])}
        if not functions.per_triplet:
            blank = fields["pixels"][:, 0, :1, 0].astype("int32")  # no text is read
            out["references"] = functions.reference(params, fields["pixels"], blank)
        return out

    def text(params: Params, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"references": functions.reference(params, fields["pixels"], fields["text"])}

    return image, text


def place(rows: dict[str, np.ndarray], mesh: Mesh, dtype: str = "float32") -> Bank:
    """Puts a bank on the devices, filled up with zero rows to a multiple of their number.

    Raises:
      UserError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"loss.bank_dtype={dtype!r} is unknown; use {' or '.join(DTYPES)}")
    sharding = meshes.row_sharding(mesh)

    def put(x: np.ndarray, kind: str) -> jax.Array:
        fill = -len(x) % mesh.size
        shape = (len(x) + fill, *x.shape[1:])

        def part(span: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = span[0].indices(shape[0])
            mine = x[start : min(stop, len(x))].astype(kind)
            short = stop - start - len(mine)
            return np.pad(mine, ((0, short), (0, 0), (0, 0))) if short else mine

        return jax.make_array_from_callback(shape, sharding, part)

    # References enter the query side raw, so they keep float32.
    return Bank(
        put(rows["targets"], jax.numpy.dtype(dtype)),
        put(rows["references"], np.float32),
        len(rows["targets"]),
    )


def fingerprint(
    functions: Functions, index: Params, data: TrainingData, preprocess: Any
) -> dict[str, str]:
    """What a bank depends on, by part. It does not depend on devices, processes or sharding.

    The parameters are those that `target` and `reference` read, whatever their role: training the
    text side anew leaves the bank of an image tower as good as it was.
    """
    digest = hashlib.sha256()
    for path in functions.index_paths:
        x = _whole(index[path])
        digest.update(f"{path} {x.dtype} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    parts = {
        "model": functions.module.__name__.rsplit(".", 1)[-1],
        "parameters": digest.hexdigest(),
        "images": data.images.fingerprint(),
        "preprocessing": preprocess.fingerprint(),
    }
    if functions.per_triplet:
        texts = hashlib.sha256(data.tokens.flat.tobytes() + data.tokens.start.tobytes())
        texts.update(data.text_start.tobytes() + data.reference_id.tobytes())
        parts["texts"] = texts.hexdigest()
    return parts


def save(folder: str | Path, rows: dict[str, np.ndarray], made_of: dict[str, str]) -> None:
    """Writes a bank to a folder; the record comes last, so a cut-off write is no bank."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    for name, x in rows.items():
        np.save(folder / f"{name}.npy", x)
    unfinished = folder / f"{RECORD}.part"
    unfinished.write_text(json.dumps(made_of, indent=2))
    unfinished.replace(folder / RECORD)


def load(folder: str | Path, made_of: dict[str, str]) -> dict[str, np.ndarray] | None:
    """The rows in `folder`, memory-mapped; None if there is no bank.

    Raises:
      UserError: the bank there was made of something else, and the message says what differs; or
        one of its files is damaged.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        return None
    try:
        then = json.loads((folder / RECORD).read_text())
        rows = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("targets", "references")
        }
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the bank in {folder} is damaged ({error}); delete it") from None
    differ = [part for part in made_of | then if made_of.get(part) != then.get(part)]
    if differ:
        details = "; ".join(
            f"{part}: {str(then.get(part))[:40]} there, {str(made_of.get(part))[:40]} now"
            for part in differ
        )
        raise UserError(
            f"the bank in {folder} was made of other {', '.join(differ)} ({details}); delete it, "
            "or set loss.bank_path to another folder"
        )
    return rows


def _whole(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
