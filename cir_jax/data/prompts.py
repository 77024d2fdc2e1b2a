# SPDX-License-Identifier: Apache-2.0
"""What stands around a text before it becomes tokens, for encoders that read image and text as one.

A template is data of a config, "<|image|>{text}" or "task: search result | query: <|image|>{text}":
{text} is the text, and IMAGE one token, in whose place the encoder puts an image.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from cir_jax.data.tokens import Tokenizer
from cir_jax.errors import UserError

IMAGE, TEXT = "<|image|>", "{text}"


def check(template: str, key: str) -> None:
    """Raises UserError unless a template has image and text once each; `key` names it."""
    for part in (IMAGE, TEXT):
        if template.count(part) != 1:
            raise UserError(
                f"{key}={template!r} has {part} {template.count(part)} times; it must stand there "
                f"once, as in '{IMAGE}{TEXT}'"
            )


def prompted(tokenizer: Tokenizer, template: str, image: int) -> Tokenizer:
    """A tokenizer that puts each text into a template first.

    Args:
      tokenizer: of the words.
      template: see the module; checked.
      image: id of the image token, which need not be a word of the tokenizer.
    """
    backend = _Backend(tokenizer.backend, tokenizer._clean, template, image)
    identity = f"{tokenizer.identity} prompt={template!r}".strip()
    return dataclasses.replace(tokenizer, backend=backend, _clean=str, identity=identity)


@dataclass(frozen=True)
class _Backend:
    """Parts before and behind the image are encoded apart, as a special token splits a text."""

    backend: Any
    clean: Callable[[str], str]
    template: str
    image: int

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[Any]:
        """As a backend of `tokenizers`; nothing is put around a whole text.

        Raises:
          UserError: a text has the image token itself.
        """
        del add_special_tokens
        before, behind = self.template.split(IMAGE)
        parts = [
            self.clean(half.replace(TEXT, text)) for text in texts for half in (before, behind)
        ]
        ids = [each.ids for each in self.backend.encode_batch(parts, add_special_tokens=False)]
        for n, found in enumerate(ids):
            if self.image in found:
                raise UserError(
                    f"{texts[n // 2][:80]!r} has the token {IMAGE}, in whose place an image goes; "
                    "the prompt (model.prompt) has it, so take it out of the text"
                )
        halves = zip(ids[::2], ids[1::2], strict=True)
        return [SimpleNamespace(ids=[*first, self.image, *last]) for first, last in halves]
