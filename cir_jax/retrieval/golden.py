# SPDX-License-Identifier: Apache-2.0
"""A served vector is the trained vector: golden inputs, and what a model made of them.

The inputs are made here and are the same for everybody: four pictures, drawn by a formula, that
another padding, orientation, depth or background would change, and four texts. What a model makes
of them is kept with a run, an exported file and an index. Whoever starts with one of these makes it
again, and is told by the first part that differs what went another way: pixels, tokens, targets or
queries.

    golden/STEP.safetensors      in a run folder
    NAME.golden.safetensors      beside an exported file, golden.safetensors in an exported folder
    "cir_jax_golden"             in the metadata of a .safetensors file of ours
"""

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, __version__

from cir_jax import files, progress, weights
from cir_jax.contract import Functions
from cir_jax.convert import native
from cir_jax.convert.containers import safe_tensors
from cir_jax.data import json_files, tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError
from cir_jax.params import Params
from cir_jax.retrieval import load
from cir_jax.retrieval.retriever import Retriever
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import run_steps

VERSION = 1
FOLDER = "golden"  # of a run
SUFFIX = ".golden.safetensors"
TEXTS = ("", "but red", "with two wheels, not four", "schöner, größer")
_KEY = "golden"  # of the metadata of a file: JSON
_GRID = 8  # squares are compared by the means of 8 x 8 fields
_PIXEL = 1.5  # of 255; other versions of Pillow round otherwise
# Largest difference of a value of a unit vector. float32 on one platform: other batches and other
# processors add up in another order. On accelerators the products of float32 are of TF32 or
# bfloat16 passes. Another padding changes a value by 1e-2 and more, another model by 1e-1.
_FLOAT32, _ACCELERATOR = 1e-4, 2e-2
_ABOUT = ("inputs", "dtype", "parameters", "platform", "jax", "pillow")
# Array -> (type, axes) in a file.
_SHAPES = {"pixels": ("F32", 4), "tokens": ("I32", 2), "targets": ("F32", 3), "queries": ("F32", 2)}
_COARSER = {"float32": _FLOAT32, "float16": 5e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Golden:
    """What a model makes of the golden inputs.

    Attributes:
      pixels: float32 [G, 8, 8, 3], means of the fields of each square.
      tokens: int32 [G, T], ids of each text, -1 behind its end.
      targets: float32 [G, K, D].
      queries: float32 [G, D], of each picture with the text of its number.
      about: {"inputs", "dtype", "parameters", "platform", "jax", "pillow"}: how squares are made,
        type of computation, type in which the parameters are stored, and what made the vectors.
    """

    pixels: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    queries: np.ndarray
    about: dict[str, str]

    def encoded(self) -> bytes:
        """As a safetensors file."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _SHAPES}
        said = {"version": VERSION, **self.about}
        return save(arrays, {_KEY: json.dumps(said)})

    def stored_as(self, dtype: str) -> "Golden":
        """The same, of parameters that are written in another type."""
        return replace(self, about=self.about | {"parameters": dtype})


def of(retriever: Retriever, preprocess: Preprocess) -> Golden:
    """What a model makes of the golden inputs, here and now.

    Args:
      retriever: the model.
      preprocess: how it makes pictures into squares, for what messages say.
    """
    pictures = inputs()
    squares = np.stack([retriever.preprocess(picture) for picture in pictures])
    targets, queries = retriever.encode_few(pictures, TEXTS)
    about = {
        "inputs": preprocess.fingerprint(),
        "dtype": str(retriever.functions.config.dtype),
        # Others compute vectors in a type and in batches of their own.
        "parameters": "float32" if retriever.functions.embedder is None else "bfloat16",
        "platform": retriever.mesh.devices.flat[0].platform,
        "jax": jax.__version__,
        "pillow": __version__,
    }
    return Golden(
        _means(squares), _ids(retriever.tokenizer), targets.astype(np.float32), queries, about
    )


def of_weights(config: ConfigDict, functions: Functions, index: Params, query: Params) -> Golden:
    """The same of parameters on the host; arguments as for `load.from_parameters`."""
    mesh = meshes.make(devices=jax.devices()[:1])
    both = load.placed(weights.Weights(index, query, {}, ()), functions, mesh)
    preprocess = load.preprocessing(config, functions)
    return of(load.from_parameters(config, functions, mesh, *both), preprocess)


def differences(then: Golden, now: Golden) -> list[str]:
    """The parts that differ by more than they may, in the order in which they are made."""
    found = []
    if then.pixels.shape != now.pixels.shape or _far(then.pixels, now.pixels) > _PIXEL:
        made = [f"{about['inputs']}, Pillow {about['pillow']}" for about in (then.about, now.about)]
        found.append(f"pixels (made by {made[0]}, then; by {made[1]}, now)")
    if not np.array_equal(then.tokens, now.tokens):
        found.append("tokens (another tokenizer or context)")
    limit = tolerance(then.about, now.about)
    for name, what in (("targets", "image side"), ("queries", "query side")):
        one, other = getattr(then, name), getattr(now, name)
        if one.shape != other.shape:
            found.append(f"{name} ({list(one.shape[1:])} values then, {list(other.shape[1:])} now)")
        elif not (far := _far(one, other)) <= limit:  # NaN is far
            found.append(f"{name} ({what}; a value by {far:.2g}, {limit:.0e} is allowed)")
    return found


def tolerance(then: dict[str, str], now: dict[str, str]) -> float:
    """The largest difference of a value that is no fault, see the top of the module."""
    types = [about[key] for about in (then, now) for key in ("dtype", "parameters")]
    limits = [_COARSER.get(name, _COARSER["bfloat16"]) for name in types]
    if {then["platform"], now["platform"]} != {"cpu"}:
        limits.append(_ACCELERATOR)
    return max(limits)


def check(kept: Golden | None, now: Golden, where: str) -> None:
    """Compares what was kept with what is made now.

    Args:
      kept: None where nothing was kept: of an older version, or of another project.
      now: of the model that is about to be used.
      where: names what the vectors were kept with.

    Raises:
      UserError: they differ; what does is named.
    """
    if kept is not None and (parts := differences(kept, now)):
        raise UserError(
            f"the model does not give the vectors that are kept with {where}: of the golden inputs "
            f"differ {'; '.join(parts)}. Use it as it was made (where a file does not say how: "
            "--set data.pad=... or data.loading=...), or make it again if the change is wanted"
        )


def check_places(
    places: Sequence[str | Path], which: str, now: Golden, overrides: Sequence[str] = ()
) -> None:
    """Compares with what is kept with the places that a model comes from; see `check`.

    A part of a model has no vectors, so several places are not compared. A run without any, of an
    older version, is used after a line; so is one whose inputs are made otherwise on purpose.

    Args:
      places: a run, or files and folders of weights.
      which: of a run: "best", "last" or a step.
      now: what the model makes here.
      overrides: "key=value" strings that the model was loaded with.

    Raises:
      UserError: see `check` and `kept_with`.
    """
    if len(places) != 1:
        return
    kept = kept_with(places[0], which)
    changed = [key for key in overrides if key.startswith(("data.", "model."))]
    if changed and kept is not None and differences(kept, now):
        progress.say(
            f"{places[0]} is used with {', '.join(changed)}, and gives other vectors than it did"
        )
        return
    if kept is None and weights.is_run(places[0]):
        progress.say(
            f"{places[0]} was made before runs had golden vectors: what it gives here is not "
            "compared with what it gave in training"
        )
    check(kept, now, str(places[0]))


def kept_with(place: str | Path, which: str = "best") -> Golden | None:
    """The vectors that are kept with a run, or with weights; None where none are.

    Args:
      place: a run folder, a file or a folder of weights.
      which: of a run: "best", "last" or a step.

    Raises:
      UserError: they are damaged, or of a newer version.
    """
    place = Path(place)
    if weights.is_run(place):
        checkpoints, step = run_steps.find(place, which)
        checkpoints.close()
        return _read(_of_step(place, step))
    if place.suffix == ".safetensors" and place.is_file():
        text = safe_tensors.read(place)[1].get(native.GOLDEN)
        if text is not None:
            try:
                return decoded(base64.b64decode(text, validate=True), str(place))
            except binascii.Error as error:
                raise _damaged(str(place), error) from None
    return _read(beside(place))


def keep_with_run(workdir: str | Path, step: int, golden: Golden, steps: set[int]) -> None:
    """Writes the vectors of a step of a run; those of steps that are gone are removed.

    Args:
      workdir: the run folder.
      step: number of the step.
      golden: its vectors.
      steps: the other steps whose vectors are kept.
    """
    files.put(_of_step(Path(workdir), step), golden.encoded())
    for file in (Path(workdir) / FOLDER).glob("*.safetensors"):
        if file.stem.isdigit() and int(file.stem) not in {step, *steps}:
            file.unlink(missing_ok=True)


def coarsest(dtypes: Iterable[str]) -> str:
    """Of types of tensors the one that keeps least of a value."""
    return max(dtypes, key=lambda name: _COARSER.get(name, 0.0), default="float32")


def has(workdir: str | Path, step: int) -> bool:
    """Whether the vectors of a step of a run are kept."""
    return _of_step(Path(workdir), step).is_file()


def beside(place: str | Path) -> Path:
    """Where the vectors of an exported file or folder lie."""
    place = Path(place)
    if place.is_dir():
        return place / SUFFIX.removeprefix(".")
    return place.with_name(place.stem + SUFFIX)


def decoded(content: bytes, where: str) -> Golden:
    """What `Golden.encoded` wrote.

    Raises:
      UserError: it is damaged, or of a newer version; `where` is named.
    """
    from safetensors import SafetensorError, deserialize

    try:
        size = int.from_bytes(content[:8], "little")
        header = json_files.loads(content[8 : 8 + size].decode())
        about = dict(json_files.loads(header["__metadata__"][_KEY]))
        files.check_version(about, VERSION, f"{where}: its golden vectors")
        del about["version"]
        if not all(isinstance(about[key], str) for key in _ABOUT):
            raise ValueError("texts are expected")
        found = dict(deserialize(content))
        arrays = {name: _array(found[name], kind, axes) for name, (kind, axes) in _SHAPES.items()}
    except UserError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(where, error) from None
    return Golden(**arrays, about=about)


def _array(found: dict[str, Any], kind: str, axes: int) -> np.ndarray:
    if found["dtype"] != kind or len(found["shape"]) != axes:
        raise ValueError(f"{found['dtype']} {found['shape']}")
    dtype = {"F32": "<f4", "I32": "<i4"}[kind]
    return np.frombuffer(bytes(found["data"]), dtype).reshape(found["shape"])


def _read(path: Path) -> Golden | None:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _damaged(str(path), error) from None
    return decoded(content, str(path))


def _damaged(where: str, error: Exception) -> UserError:
    return UserError(
        f"{where}: its golden vectors cannot be read ({error}); export or train it again, or "
        "delete them if they are a file of their own: nothing is compared then"
    )


def _of_step(workdir: Path, step: int) -> Path:
    return workdir / FOLDER / f"{step}.safetensors"


def _means(squares: np.ndarray) -> np.ndarray:
    """uint8 [G, S, S, 3] -> float32 [G, 8, 8, 3]."""
    parts = [np.array_split(rows, _GRID, axis=2) for rows in np.array_split(squares, _GRID, axis=1)]
    means = [[part.mean(axis=(1, 2), dtype=np.float64) for part in row] for row in parts]
    return np.stack([np.stack(row, axis=1) for row in means], axis=1).astype(np.float32)


def _ids(tokenizer: tokens.Tokenizer) -> np.ndarray:
    if tokenizer.backend is None:  # bits of vectors, which differ from batch to batch
        return np.full((len(TEXTS), 1), tokenizer.context, np.int32)
    table = tokens.table(TEXTS, tokenizer, "truncate")
    ids = table.rows(slice(None), tokenizer.context)
    return np.where(np.arange(ids.shape[1]) < table.lengths[:, None], ids, -1).astype(np.int32)


def _far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float64) - other).max())


@dataclass(frozen=True)
class Picture:
    """A made picture, opened as the file of an image is."""

    name: str

    def read_bytes(self) -> bytes:
        """A PNG file."""
        return _drawn()[self.name]

    def __str__(self) -> str:
        return f"the golden picture {self.name!r}"


def inputs() -> tuple[Picture, ...]:
    """The pictures: wide, tall and transparent, of 16 bits, and lying on its side."""
    return tuple(map(Picture, _drawn()))


@lru_cache(maxsize=1)
def _drawn() -> dict[str, bytes]:
    """Name -> PNG file. Integers alone: no machine rounds them otherwise."""
    wide = _colours(48, 80)
    tall = np.dstack([_colours(96, 40), _wave(96, 40, 5, 3)])
    deep = (_wave(56, 56, 2, 7).astype(np.uint16) * 257)[..., None][..., 0]
    lying = Image.Exif()
    lying[0x0112] = 6  # orientation: to be turned by 90 degrees
    pictures = {"wide": (wide, None), "transparent": (tall, None), "deep": (deep, None),
                "lying": (_colours(36, 64)[:, ::-1], lying)}  # fmt: skip
    return {name: _png(pixels, exif) for name, (pixels, exif) in pictures.items()}


def _png(pixels: np.ndarray, exif: Image.Exif | None) -> bytes:
    file = BytesIO()
    options = {} if exif is None else {"exif": exif.tobytes()}
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", **options)
    return file.getvalue()


def _colours(height: int, width: int) -> np.ndarray:
    return np.dstack([_wave(height, width, *steps) for steps in ((3, 1), (1, 4), (7, 2))])


def _wave(height: int, width: int, down: int, across: int) -> np.ndarray:
    """uint8 [H, W], rising and falling in both directions."""
    place = np.arange(height)[:, None] * down + np.arange(width)[None] * across
    return np.abs((place * 3) % 510 - 255).astype(np.uint8)
