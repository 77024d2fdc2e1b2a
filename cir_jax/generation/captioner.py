# SPDX-License-Identifier: Apache-2.0
"""What a captioner is: requests (prompt, image) in, replies out, in any order.

A captioner is one module of `cir_jax.generation.captioners` (or a file of yours) that defines a
class `Captioner`, see the protocol below, and, where it has anything to check,

    check(section)   raises UserError for settings that cannot work, before anything else is done
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from ml_collections import ConfigDict

from cir_jax import plugins
from cir_jax.data.pixels import RELEASED, Loading
from cir_jax.errors import UserError

PACKAGE = "cir_jax.generation.captioners"


@dataclass(frozen=True)
class Request:
    """One text that is wanted.

    Attributes:
      key: names it in files and messages, e.g. the image's name.
      prompt: what the model is told.
      image: path of the image, or an object with `read_bytes()`; None for text alone.
      attempt: 0 at first; a repetition samples with another seed.
      varied: one of several texts for one prompt: sampled at the first attempt already.
      loading: how the image becomes a picture, see `cir_jax.data.pixels.open_image`: the encoder
        and the captioner see the same. Of "released" a captioner turns photographs upright.
    """

    key: str
    prompt: str
    image: Any = None
    attempt: int = 0
    varied: bool = False
    loading: Loading = RELEASED


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
      key: of its request.
      text: as the model wrote it, stripped; for the list of refused ones even with a problem.
      problem: "" or why the text is not usable, e.g. "cut at 40 tokens".
      final: asking again cannot help (the image cannot be read).
    """

    key: str
    text: str
    problem: str = ""
    final: bool = False


class Captioner(Protocol):
    """What writes or looks up texts.

    Attributes:
      identity: recorded beside every text it writes: at least "captioner" and "model".

    Three more attributes are optional:
      prompted: False if it answers without reading the prompt.
      free: True if it only looks texts up. They are looked up in every run, because where they come
        from may have changed.
      has(name): whether it has a text of an image. Of duplicates, it is asked for one that it has.
    """

    identity: Mapping[str, Any]

    @classmethod
    def from_config(cls, section: ConfigDict, seed: int, names: Sequence[str]) -> "Captioner":
        """The captioner of `config.caption` or `config.rewrite`.

        Args:
          section: that part of the config.
          seed: of the run.
          names: the images that may be asked for; empty for rewriting.
        """
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply per request.

        It draws requests lazily and yields replies as they come, so that each can be written to
        disk at once and memory does not grow with the number of images. The caller judges texts,
        asks again with `attempt` + 1, and keeps the record.

        Raises:
          UserError: something is wrong with all requests (no such model, a server that stays away).
            What is wrong with one of them is a reply with a `problem`.
        """
        ...


def load(name: str) -> ModuleType:
    """The module of a captioner, e.g. "server".

    Raises:
      UserError: no such captioner; what exists is listed.
    """
    return plugins.load(PACKAGE, name, marker="Captioner")


def build(section: ConfigDict, name: str, seed: int, names: Sequence[str]) -> Captioner:
    """The captioner of a config's section, `name` being "caption" or "rewrite".

    Raises:
      UserError: what it finds wrong; a key is named with its section.
    """
    try:
        return load(section.captioner).Captioner.from_config(section, seed, names)
    except UserError as error:
        raise in_section(error, section, name) from None


def check(section: ConfigDict, name: str) -> None:
    """Lets the captioner of a section check what it can before anything is asked.

    Raises:
      UserError: no such captioner, or what it finds wrong.
    """
    module = load(section.captioner)
    if hasattr(module, "check"):
        try:
            module.check(section)
        except UserError as error:
            raise in_section(error, section, name) from None


def in_section(error: UserError, section: ConfigDict, name: str) -> UserError:
    """The error, its key named as it is set: a captioner does not know which section it reads."""
    text = str(error)
    named = re.match(r"[a-z_]+(?==)", text)
    return UserError(f"{name}.{text}") if named and named[0] in section else error


def sampling(request: Request, seed: int, temperature: float) -> tuple[int, float]:
    """(seed, temperature) of a request.

    The seed depends on the request and not on its place in the run, so a run that was stopped
    draws the same text. A repetition is sampled even where the first attempt was greedy: the same
    bad reply would come back.
    """
    digest = hashlib.sha256(f"{seed} {request.key} {request.attempt}".encode()).digest()
    hot = max(temperature, 0.7) if request.attempt or request.varied else temperature
    return int.from_bytes(digest[:4]) >> 1, hot
