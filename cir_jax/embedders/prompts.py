# SPDX-License-Identifier: Apache-2.0
r"""What a model wants to be told around an image, a text, or an image with a text: data.

    {"image": {...}, "text": {...}, "both": {...}}

Each of the three has "text", in which {text} is the text of the query, and "system"; either may be
left out: {text} alone, and no word of a system. "image" is a candidate, "both" a reference image
with the text that says what to change in it, "text" a text alone. A file of yours is of the same
form.

Sources: the examples of vLLM for VLM2Vec; the model cards of Qwen3-VL-Embedding and GME; the
prompts of E5-V and EmbeddingGemma 2 (whose images have none, as in mteb).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir_jax.data import json_files
from cir_jax.embedders.items import Kind
from cir_jax.errors import UserError, nearest

KINDS: tuple[Kind, ...] = ("image", "text", "both")
TEXT = "{text}"
PROMPTS: dict[str, dict[str, dict[str, str]]] = {
    "none": {},
    "qwen3_vl_embedding": {
        "image": {"system": "Represent the user's input."},
        "text": {"system": "Retrieve images or text relevant to the user's query."},
        "both": {"system": "Retrieve images or text relevant to the user's query."},
    },
    "gme": {kind: {"system": "You are a helpful assistant."} for kind in KINDS},
    "vlm2vec": {
        "image": {"text": "Represent the given image."},
        "both": {"text": "Represent the given image with the following question: {text}"},
    },
    "e5_v": {
        "image": {"text": "Summary above image in one word: "},
        "text": {"text": "{text}\nSummary above sentence in one word: "},
        "both": {"text": "{text}\nSummary above image and sentence in one word: "},
    },
    "embeddinggemma2": {"text": {"text": "task: search result | query: {text}"}},
}


@dataclass(frozen=True)
class Prompt:
    """What stands around one kind of input.

    Attributes:
      text: with {text} where that of the query stands.
      system: "" for none.
    """

    text: str
    system: str = ""

    def around(self, text: str) -> str:
        """The text as it is sent."""
        return self.text.replace(TEXT, text)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a model.

    Attributes:
      name: as `find` takes it.
      of: kind of input -> prompt.
    """

    name: str
    of: dict[Kind, Prompt] = field(hash=False)

    def identity(self) -> str:
        """The prompts themselves, as JSON: a name says nothing of a file that was edited."""
        return json.dumps({kind: [p.text, p.system] for kind, p in self.of.items()})


def find(name: str) -> Prompts:
    """The prompts of a name of PROMPTS, or of a .json file.

    Raises:
      UserError: there are none, or the file is not of the form that this module describes.
    """
    if name.endswith(".json"):
        return Prompts(name, _checked(_read(Path(name)), name))
    if name not in PROMPTS:
        raise UserError(
            f"model.prompts={name!r} is unknown; there are: {', '.join(PROMPTS)}."
            f"{nearest(name, PROMPTS)} A file of your own is named by its path, prompts.json"
        )
    return Prompts(name, _checked(PROMPTS[name], name))


def _read(path: Path) -> Any:
    try:
        return json_files.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"model.prompts={path} cannot be read ({error}); give a JSON file of the form "
            '{"image": {"text": "...", "system": "..."}, "text": {...}, "both": {...}}'
        ) from None


def _checked(said: Any, name: str) -> dict[Kind, Prompt]:
    if not isinstance(said, dict) or not all(isinstance(one, dict) for one in said.values()):
        raise UserError(f"model.prompts={name} is no object of objects; see {__name__}")
    unknown = sorted(said.keys() - set(KINDS))
    unknown += sorted(f"{k}.{w}" for k, one in said.items() for w in one if w not in _WORDS)
    if unknown:
        raise UserError(
            f"model.prompts={name} has {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(KINDS)}, each with {' and '.join(_WORDS)}"
        )
    found: dict[Kind, Prompt] = {}
    for kind in KINDS:
        one = said.get(kind, {})
        prompt = Prompt(one.get("text", "" if kind == "image" else TEXT), one.get("system", ""))
        if not isinstance(prompt.text, str) or not isinstance(prompt.system, str):
            raise UserError(f"model.prompts={name}: {kind!r} holds what is no text: {one}")
        if (TEXT in prompt.text) == (kind == "image"):
            raise UserError(
                f"model.prompts={name}: the text of {kind!r} is {prompt.text!r}; "
                + ("an image alone has no {text}" if kind == "image" else "it must hold {text}")
            )
        found[kind] = prompt
    return found


_WORDS = ("text", "system")
