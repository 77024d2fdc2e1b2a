# SPDX-License-Identifier: Apache-2.0
"""How servers want images and texts to be written: a table of templates, and what comes back.

In a template "$url" is the image as a data URL, "$base64" its bytes alone, "$text" and "$system"
are the texts, "$kind" is "image" or "text". An entry of a dict or list whose placeholder has no
value is left out, and so is a dict or list of which nothing else than such entries was left.

    messages   one chat message for one vector (vLLM; `cir-jax serve`)
    contents   a list of what chat messages hold (`cir-jax serve`, and proxies of Cohere's form)
    fields     a list of objects with image, text or both (SGLang)
    jina       the same with bare base64; image or text, not both
    modality   data URLs or texts, and which of them it is (Infinity)
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cir_jax.embedders.items import Item
from cir_jax.errors import ServerError
from cir_jax.servers import pictures
from cir_jax.servers.client import WrongReply

ENDPOINT = "/embeddings"
_IMAGE = {"type": "image_url", "image_url": {"url": "$url"}}
_PARTS = [_IMAGE, {"type": "text", "text": "$text"}]
_SYSTEM = {"role": "system", "content": [{"type": "text", "text": "$system"}]}
_FLOAT = {"encoding_format": "float"}


@dataclass(frozen=True)
class Form:
    """How requests are written.

    Attributes:
      item: template of one input.
      request: what a request has beside the model; "$items" are its inputs, "$item" the only one.
      composes: whether an input may have an image and a text.
      tells: whether an input may have a word of a system.
      about: which servers it is of.
    """

    item: Any
    request: dict[str, Any]
    composes: bool
    tells: bool
    about: str

    @property
    def several(self) -> bool:
        """Whether a request may have several inputs."""
        return "$items" in self.request.values()

    @property
    def by_kind(self) -> bool:
        """Whether the inputs of a request are all images or all texts."""
        return "$kind" in self.request.values()

    def body(self, model: str, items: Sequence[Item], dimensions: int) -> bytes:
        """The JSON of a request; `dimensions` 0 asks for as many as there are."""
        written = [_filled(self.item, _values(item)) for item in items]
        values = {"$items": written, "$item": written[0], "$kind": _kind(items[0])}
        said = {key: values.get(value, value) for key, value in self.request.items()}
        asked = {"dimensions": dimensions} if dimensions else {}
        return json.dumps({"model": model, **said, **asked}).encode()


FORMS = {
    "messages": Form(
        [_SYSTEM, {"role": "user", "content": _PARTS}],
        {"messages": "$item", **_FLOAT},
        composes=True,
        tells=True,
        about="vLLM, cir-jax serve",
    ),
    "contents": Form(
        {"content": _PARTS},
        {"input": "$items", **_FLOAT},
        composes=True,
        tells=False,
        about="cir-jax serve",
    ),
    "fields": Form(
        {"text": "$text", "image": "$url"},
        {"input": "$items", **_FLOAT},
        composes=True,
        tells=False,
        about="SGLang",
    ),
    "jina": Form(
        {"text": "$text", "image": "$base64"},
        {"input": "$items", "embedding_type": "float"},
        composes=False,
        tells=False,
        about="Jina",
    ),
    "modality": Form(
        ["$url", "$text"],
        {"input": "$items", "modality": "$kind", **_FLOAT},
        composes=False,
        tells=False,
        about="Infinity",
    ),
}


@dataclass(frozen=True)
class Reply:
    """What came back for the inputs of a request.

    Attributes:
      vectors: one for each input, in their order: float64 as written, or float32 of base64.
      encoding: "JSON" or "base64".
      tokens: that the server says it has read; None if it does not say.
    """

    vectors: list[NDArray[np.floating[Any]]]
    encoding: str
    tokens: int | None


def read(reply: bytes, count: int) -> Reply:
    """The vectors of a reply to `count` inputs, ordered by their "index" where they have one.

    Raises:
      WrongReply: it is no list of vectors, which another try may give.
      ServerError: there are more or fewer of them, or their numbers are not those of the inputs.
    """
    try:
        said = json.loads(reply)
        entries = said["data"]
        given = [entry["embedding"] for entry in entries]
        indices = [entry.get("index") for entry in entries]
        usage = said.get("usage") or {}
        vectors = [_vector(one) for one in given]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise WrongReply("a reply without a list of vectors") from None
    if len(vectors) != count:
        raise ServerError(f"{len(vectors)} vectors came back for {count} inputs")
    if any(index is not None for index in indices):
        if sorted(map(str, indices)) != sorted(map(str, range(count))):
            raise ServerError(f"the vectors of {count} inputs have the numbers {indices[:9]}")
        vectors = [vectors[indices.index(number)] for number in range(count)]
    encoding = "base64" if given and isinstance(given[0], str) else "JSON"
    return Reply(vectors, encoding, _tokens(usage))


def _vector(one: Any) -> NDArray[np.floating[Any]]:
    if isinstance(one, str):
        try:
            return np.frombuffer(base64.b64decode(one, validate=True), "<f4")
        except binascii.Error as error:
            raise ValueError(str(error)) from None
    found = np.asarray([np.nan if value is None else value for value in one], np.float64)
    if isinstance(one, dict) or found.ndim != 1 or not found.size:
        raise ValueError("no vector")
    return found


def _tokens(usage: Any) -> int | None:
    if not isinstance(usage, dict):
        return None
    said = usage.get("total_tokens", usage.get("prompt_tokens"))
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def _kind(item: Item) -> str:
    return "image" if item.image else "text"


def _values(item: Item) -> dict[str, str | None]:
    url = pictures.as_url(item.form, item.image) if item.image else None
    bare = base64.b64encode(item.image).decode() if item.image else None
    return {
        "$url": url, "$base64": bare, "$text": item.text or None, "$system": item.system or None,
    }  # fmt: skip


class _Absent:
    """What a placeholder without a value leaves."""


def _filled(template: Any, values: dict[str, str | None]) -> Any:
    """The template with its placeholders replaced; a list of placeholders alone is its value."""
    if isinstance(template, list) and all(isinstance(one, str) for one in template):
        return next(values[one] for one in template if values[one] is not None)
    found = _fill(template, values)
    return found if not isinstance(found, _Absent) else {}


def _fill(template: Any, values: dict[str, str | None]) -> Any:
    if isinstance(template, str):
        if not template.startswith("$"):
            return template
        value = values[template]
        return _Absent() if value is None else value
    if isinstance(template, list):
        rest = [y for x in template if not isinstance(y := _fill(x, values), _Absent)]
        return rest or _Absent()
    filled = {key: _fill(value, values) for key, value in template.items()}
    there = {key: value for key, value in filled.items() if not isinstance(value, _Absent)}
    absent = len(there) < len(filled)
    variable = [key for key in there if _varies(template[key])]
    return _Absent() if absent and not variable else there


def _varies(template: Any) -> bool:
    if isinstance(template, str):
        return template.startswith("$")
    parts = template if isinstance(template, list) else template.values()
    return any(_varies(part) for part in parts)
