# SPDX-License-Identifier: Apache-2.0
"""The contract of a converter: the layouts in which the weights of one model are found.

A plug-in of `cir_jax.models`, or the file of a model of yours, may define

    LAYOUTS     a tuple of `Layout`; the first that finds itself in a file reads it

Reading and writing go by the same rules, so what one does the other can undo.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.sources import Source
from cir_jax.convert.tied import Copied
from cir_jax.params import ModelParams
from cir_jax.weight_rules import Ignored, Rule


@dataclass(frozen=True)
class Found:
    """What a file says of itself; no tensor has been read yet.

    Attributes:
      group: key of the state dict inside the file; "" where the file is one.
      config: keys of a config's `model` section -> values, from the shapes and configs.
      doubt: what the file leaves open, so that the config must say it; "" if nothing.
      agrees: (key, value a config has) -> True if the file may be of that; where there is doubt,
        more than one value is.
      tensors: what the rules are about, where the file stores it in another form; None if they are
        about the state dict as it is.
      data: keys of a config's `data` section -> values: how images become squares, where the file
        says it or all files of its layout were trained with the same; {} where neither is so.
      inputs: keys of the `model` section of `convert.inputs.KEYS` -> values: what came with the
        weights beside their size, as far as the file says it; a value that is the tower's own is
        empty.
      renamed: what names of the file were read as, where they had a prefix; "" otherwise.
    """

    group: str
    config: dict[str, Any]
    doubt: str = ""
    agrees: Callable[[str, Any], bool] = lambda key, value: False
    tensors: Mapping[str, Tensor] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    renamed: str = ""

    def fits(self, key: str, value: Any) -> bool:
        """Whether a config may have `value` for `key`."""
        return value == self.config[key] or self.agrees(key, value)


@dataclass(frozen=True)
class Written:
    """What a writer is told beside the tensors.

    Attributes:
      config: the `model` section.
      index: path -> array, the index tree.
      differ: its paths where the tensors hold something else.
      epoch: of the training run, for layouts that say it.
      temperature: that it ended with, for layouts that say it; 0 where it is not known.
      files: files of the folder that the weights came from (tokenizer, image processor).
      dtypes: tensor name -> type to write; also of the leaves in `index`, under the same names.
      data: the `data` section that the model is used with; {} where it is not known.
      golden: what the model makes of the golden inputs, for layouts that can hold it; b"" if that
        is not known.
    """

    config: Any
    index: Mapping[str, Any]
    differ: tuple[str, ...] = ()
    epoch: int = 0
    temperature: float = 0.0
    files: tuple[Path, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    golden: bytes = b""


@dataclass(frozen=True)
class Layout:
    """One way in which the weights of a model are stored.

    Attributes:
      name: e.g. "clip4cir"; the value of `export --format`.
      about: what reads it, in a few words.
      find: source -> Found, or None if this is another layout.
      rules: `model` section of a config -> the rule table; None: every leaf is a tensor of the same
        name.
      index_rules: the same of leaves that the file holds twice, under names of their own in the
        index tree: `rules` reads those of the query tree.
      fitted: (tensors of a file, `model` section, the file's name) -> tensors that the rules read,
        where weights may serve images of another size.
      ignored: tensors that may be there beside the model's.
      copied: tensors that the file holds under two names each.
      write: (place, tensors, what else is known) -> files written; None if it is only read.
      extra: (tensors that are written, scalars of the file that the weights came from) -> tensors
        that hold nothing of ours, but that the PyTorch model wants.
      index: source -> (source, rules) of leaves of the index tree that lie beside the model because
        they differ from the query tree's; None if there are none.
      two_trees: `write` keeps both trees, whatever differs: it is given the query tree, and the
        index where it is another. Other layouts hold the one model that retrieves.
      files: (source, `model` section) -> tokenizer and image processor files to take over, checked.
      part: a file of this layout holds a part of the model, and others the rest.
    """

    name: str
    about: str
    find: Callable[[Source], Found | None]
    rules: Callable[[Any], list[Rule]] | None
    index_rules: Callable[[Any], list[Rule]] = field(default=lambda config: [])
    fitted: Callable[[Mapping[str, Tensor], Any, str], Mapping[str, Tensor]] = field(
        default=lambda tensors, config, where: tensors
    )
    ignored: tuple[Ignored, ...] = ()
    copied: tuple[Copied, ...] = ()
    write: Callable[[Path, dict[str, Tensor], Written], list[Path]] | None = None
    extra: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Tensor]] = field(
        default=lambda tensors, kept: {}
    )
    index: Callable[[Source], tuple[Source, list[Rule]] | None] = field(default=lambda source: None)
    two_trees: bool = False
    files: Callable[[Source, Any], list[Path]] = field(default=lambda source, config: [])
    part: bool = False

    def rules_of(self, model: ModelParams) -> list[Rule]:
        """The rule table of a model."""
        if self.rules is None:
            return [Rule(path, path) for path in model.abstract]
        return self.rules(model.config)
