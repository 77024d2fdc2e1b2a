# SPDX-License-Identifier: Apache-2.0
"""What comes in with weights and is not of their size: normalisation, filter and tokenizer.

Files of other projects say it in their own words; here it becomes keys of a config's `model`
section, which a run records, every fingerprint contains, and an export writes again. A value that
is that of the tower anyway is said as an empty one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir_jax.convert.config_values import TOLERANCE, close
from cir_jax.data import tokenizer_files
from cir_jax.data.pixels import CLIP, CROPPED, Normalisation, Resize
from cir_jax.errors import UserError

MEAN, DEVIATION, INTERPOLATION = "pixel_mean", "pixel_deviation", "interpolation"
TOKENIZER, CONTENT = "tokenizer", "tokenizer_content"
KEYS: dict[str, Any] = {MEAN: (), DEVIATION: (), INTERPOLATION: "", TOKENIZER: "", CONTENT: ""}
_RESAMPLES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers of its filters
_SQUARES = {"shortest": "none", "squash": "squash"}  # open_clip's `resize_mode`


@dataclass(frozen=True)
class Processor:
    """What the file of an image processor says.

    Attributes:
      model: keys of a config's `model` section.
      data: keys of its `data` section: how images become squares, where it says that.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


def of_transformers(
    settings: Mapping[str, Any], where: str, own: Normalisation = CLIP, resize: Resize = CROPPED
) -> Processor:
    """What an image processor of transformers says.

    Args:
      settings: preprocessor_config.json, or `image_processor` of processor_config.json.
      where: names the file.
      own: the normalisation of the tower.
      resize: how its pictures are made squares.

    Raises:
      UserError: it makes pixels that no config can say.
    """
    wrong = [f"do_rescale={False}"] if settings.get("do_rescale") is False else []
    factor = settings.get("rescale_factor")
    if factor is not None and not close(factor, 1 / 255, 1e-6):
        wrong.append(f"rescale_factor={factor!r}")
    if settings.get("antialias") is False:
        wrong.append(f"antialias={False}")
    resample = settings.get("resample")
    if resample is not None and resample not in _RESAMPLES:
        wrong.append(f"resample={resample!r}, and {_RESAMPLES} are possible")
    if wrong:
        raise _refused(where, wrong)
    mean, deviation = settings.get("image_mean"), settings.get("image_std")
    if settings.get("do_normalize") is False:
        mean, deviation = [0.0] * 3, [1.0] * 3
    model = normalisation(mean, deviation, where, own)
    if resample is not None:
        model[INTERPOLATION] = _unless(_RESAMPLES[resample], resize.interpolation)
    size, crops = settings.get("size"), settings.get("do_center_crop")
    data: dict[str, Any] = {}
    if settings.get("do_resize") is not False:
        both = isinstance(size, Mapping) and {"height", "width"} <= size.keys()
        if both and not crops:
            data["pad"] = "squash"
        elif crops or (isinstance(size, Mapping) and "shortest_edge" in size):
            data["pad"] = "none"
    return Processor(model, data if crops is not False or "squash" in data.values() else {})


def of_open_clip(
    preprocess: Mapping[str, Any], where: str, own: Normalisation = CLIP, resize: Resize = CROPPED
) -> Processor:
    """What `preprocess_cfg` of open_clip says; arguments and errors as of `of_transformers`."""
    mode = preprocess.get("resize_mode", "shortest")
    found = preprocess.get("interpolation")
    wrong = []
    if found not in (None, *_RESAMPLES.values()):
        wrong.append(f"interpolation={found!r}, and {', '.join(_RESAMPLES.values())} are possible")
    if wrong:
        raise _refused(where, wrong)
    model = normalisation(preprocess.get("mean"), preprocess.get("std"), where, own)
    if found is not None:
        model[INTERPOLATION] = _unless(found, resize.interpolation)
    return Processor(model, {"pad": _SQUARES[mode]} if mode in _SQUARES else {})


def normalisation(
    mean: Any, deviation: Any, where: str, own: Normalisation = CLIP
) -> dict[str, Any]:
    """The keys of a mean and a deviation; None says nothing.

    Raises:
      UserError: no three numbers, or of no image.
    """
    said = {}
    parts = ((MEAN, mean, own.mean), (DEVIATION, deviation, own.deviation))
    for key, value, ours in parts:
        if value is None:
            continue
        numbers = isinstance(value, list | tuple) and all(
            isinstance(x, int | float) and not isinstance(x, bool) for x in value
        )
        if not numbers or len(value) != 3:
            raise UserError(f"{where} has a {key} of {value!r}; three numbers are needed")
        close_by = all(close(a, b, TOLERANCE) for a, b in zip(value, ours, strict=True))
        said[key] = () if close_by else tuple(map(float, value))
    try:
        Normalisation(said.get(MEAN) or own.mean, said.get(DEVIATION) or own.deviation)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return said


def tokenizer(folder: Path) -> dict[str, Any]:
    """The keys of the tokenizer that lies in a folder.

    Raises:
      UserError: there is none.
    """
    content = tokenizer_files.checksum(tokenizer_files.read(folder))
    return {TOKENIZER: str(folder), CONTENT: content}


def differing(model: Any, said: Mapping[str, Any]) -> list[str]:
    """The keys of a `model` section that are not as some weights say, in words.

    Args:
      model: the section.
      said: of the weights. What they do not say may be anything.
    """
    found = []
    for key, value in said.items():
        here = model.get(key, KEYS[key])
        if key != TOKENIZER and here != value:  # a place may change, its content may not
            found.append(f"model.{key}={_shown(value)}, not {_shown(here)}")
    return found


def agreed(said: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What several places say together.

    Args:
      said: name of a place -> keys and values.

    Raises:
      UserError: two of them say different things.
    """
    found: dict[str, Any] = {}
    of: dict[str, str] = {}
    for place, values in said.items():
        for key, value in values.items():
            if key in found and key != TOKENIZER and found[key] != value:
                raise UserError(
                    f"parts of one model say different things: model.{key} is "
                    f"{_shown(found[key])} of {of[key]} and {_shown(value)} of {place}; give parts "
                    "that belong together"
                )
            if key not in found:
                found[key], of[key] = value, place
    return found


def _refused(where: str, wrong: list[str]) -> UserError:
    return UserError(
        f"{where} has {'; '.join(wrong)}: other pixels than can be made here; correct the file if "
        "it is not what the weights were trained with, or take it out of the folder"
    )


def _unless(value: str, own: str) -> str:
    return "" if value == own else value


def _shown(value: Any) -> str:
    return repr(value) if value else "that of the tower"
