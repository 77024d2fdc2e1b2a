# SPDX-License-Identifier: Apache-2.0
"""How pictures and texts become the inputs of a model: what its module, its towers and its config
say of that, together.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any

from cir_jax.convert.inputs import CONTENT, DEVIATION, INTERPOLATION, MEAN, TOKENIZER
from cir_jax.data import tokenizer_files, tokens
from cir_jax.data.pixels import CLIP, CROPPED, Normalisation
from cir_jax.data.tokens import Tokenizer
from cir_jax.errors import UserError
from cir_jax.towers.encoder import Encoder


@dataclass(frozen=True)
class Inputs:
    """The inputs of one model.

    Attributes:
      module: its plug-in.
      config: the `model` section of a run's config.
      encoder: its towers, None of a model that does not say.
    """

    module: ModuleType
    config: Any
    encoder: Encoder | None

    def _said(self, name: str, default: Any = None) -> Any:
        """A constant of the module, or what its function of that name says of the config."""
        value = getattr(self.module, name, default)
        return value(self.config) if callable(value) else value

    @property
    def tokenizer_name(self) -> str:
        """Name of a tokenizer of `cir_jax.data.tokens`, or `tokens.FILE`."""
        name: str = self._said("TOKENIZER")
        return name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          UserError: there is none of that name; or the file of it is not there, is damaged, or is
            not the one that the weights were trained with.
        """
        name, context = self.tokenizer_name, self.config.context
        if name != tokens.FILE:
            if place := self.config.get(TOKENIZER, ""):
                raise UserError(
                    f"model.tokenizer={place} names the file of a tokenizer, but "
                    f"model.tower={self.config.tower} reads texts by {name!r}, which is part of "
                    "this project; leave it out"
                )
            return tokens.load(name, context)
        rules = self.encoder.rules if self.encoder else tokenizer_files.ANY
        if context:
            rules = replace(rules, context=context)
        place, content = (self.config.get(key, "") for key in (TOKENIZER, CONTENT))
        return tokenizer_files.load(place, content, rules)

    @property
    def cut_padding(self) -> bool:
        """Whether a text may be cut to the longest of its batch."""
        return bool(self._said("CUT_PADDING"))

    @property
    def packs_texts(self) -> bool:
        """Whether the model takes packed texts."""
        return bool(self._said("PACKS_TEXTS", False))

    @property
    def normalisation(self) -> Normalisation:
        """What is done to pixels on the device.

        Raises:
          UserError: values that no image can have.
        """
        own = self.encoder.pixels if self.encoder else CLIP
        mean, deviation = (self.config.get(key, ()) for key in (MEAN, DEVIATION))
        return Normalisation(tuple(mean) or own.mean, tuple(deviation) or own.deviation)

    @property
    def interpolation(self) -> str:
        """The filter by which pictures are resized."""
        own = self.encoder.resize if self.encoder else CROPPED
        return self.config.get(INTERPOLATION, "") or own.interpolation

    def check(self) -> None:
        """Raises UserError where the module contradicts its towers, or the config is no input."""
        _ = self.normalisation
        if self.encoder is None:
            return
        own, tower = self.encoder, self.config.tower
        wrong: list[tuple[str, Any, Any]] = [
            ("TOKENIZER", self.tokenizer_name, own.tokenizer),
            ("CUT_PADDING", self.cut_padding, self.cut_padding and own.cut_padding),
            ("PACKS_TEXTS", self.packs_texts, self.packs_texts and own.packs_texts),
        ]
        if said := [f"{name} = {here!r}, not {there!r}" for name, here, there in wrong
                    if here != there]:  # fmt: skip
            raise UserError(
                f"model {self.config.name!r} ({self.module.__file__}) says {'; '.join(said)} of "
                f"model.tower={tower}: its texts would be read as those of another; take what "
                "follows the tower, TOKENIZER, CUT_PADDING = clip_sum.TOKENIZER, "
                "clip_sum.CUT_PADDING"
            )
