# SPDX-License-Identifier: Apache-2.0
"""Files of a folder of transformers: its config with all defaults, and what is said of pixels."""

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cir_jax.convert.sources import read_json
from cir_jax.errors import UserError

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # since transformers 5 it may hold the image processor as well


def completed(config: dict[str, Any], name: str, make: Callable[[dict[str, Any]], Any]) -> Any:
    """What `make` gives of a copy of a config: the object of transformers with every default.

    Args:
      config: as it is in the file.
      name: of the file, for messages.
      make: `from_dict` of the class.

    Raises:
      UserError: transformers refuses it.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        return make(copy.deepcopy(config))
    except (
        StrictDataclassError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise UserError(
            f"{name} is refused by transformers: {' '.join(str(error).split())}; correct that"
        ) from None


def check_floats(config: dict[str, Any], name: str) -> None:
    """Raises UserError if a config says that its weights are quantized."""
    if config.get("quantization_config"):
        raise UserError(
            f"{name} has quantization_config={config['quantization_config']!r}: its weights are "
            "not floats; give the model it was made from"
        )


def image_settings(paths: Iterable[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Those files that say something about pixels, and what they say."""
    found = [(p, read_json(p)) for p in paths if p.name in (PREPROCESSOR, PROCESSOR)]
    said = [(p, x if p.name == PREPROCESSOR else x.get("image_processor")) for p, x in found]
    return [(path, settings) for path, settings in said if isinstance(settings, dict)]


def json_bytes(content: Any) -> bytes:
    """JSON as it is written to a file."""
    return (json.dumps(content, indent=2) + "\n").encode()
