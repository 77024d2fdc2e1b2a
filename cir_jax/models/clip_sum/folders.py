# SPDX-License-Identifier: Apache-2.0
"""What writers of folders share, whatever the towers: tokenizer, pixels, what else lies there."""

from pathlib import Path
from typing import Any

from cir_jax.convert import inputs, sources
from cir_jax.convert.layout import Written
from cir_jax.convert.transformers_files import json_bytes
from cir_jax.data import tokenizer_files, tokens
from cir_jax.data.pixels import Normalisation
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.towers import encoders

INDEX_TEXT = "index_text"  # folder of the text tower of the index, where it is another


def own_tokenizer(written: Written) -> dict[str, bytes]:
    """Name -> content of the files of a tokenizer that came with the weights; {} of CLIP's.

    Raises:
      UserError: it is not known.
    """
    config = written.config
    if encoders.find(config.tower).tokenizer != tokens.FILE:
        return {}
    if not (place := config.get(inputs.TOKENIZER, "")):
        raise UserError(
            f"model.tower={config.tower} reads texts by a tokenizer that comes with its weights, "
            "and none is known, so nobody could use this export; name its folder: --set "
            "model.tokenizer=FOLDER"
        )
    return tokenizer_files.read(place)


def pixels_of(written: Written) -> tuple[Normalisation, str]:
    """(normalisation, filter) of what is written."""
    encoder, said = encoders.find(written.config.tower), written.config
    pixels = Normalisation(
        tuple(said.get(inputs.MEAN, ())) or encoder.pixels.mean,
        tuple(said.get(inputs.DEVIATION, ())) or encoder.pixels.deviation,
    )
    return pixels, said.get(inputs.INTERPOLATION, "") or encoder.resize.interpolation


def check_alone(folder: Path, replaced: tuple[str, ...]) -> None:
    """Raises UserError if a folder has weights that would stay beside those that are written."""
    names = (*sources.WEIGHTS, INDEX_TEXT)
    there = [n for n in names if n not in replaced and (folder / n).exists()]
    if there:
        raise UserError(
            f"{folder} holds {', '.join(there)} of an earlier export or another project, and would "
            "be read as a mixture of both; give another folder, or delete that"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object."""
    with whole(path) as file:
        file.write(json_bytes(content))
