# SPDX-License-Identifier: Apache-2.0
"""The tensors that a PyTorch network is filled with: those of a file, read by PyTorch itself, or
those that an export of ours writes.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cir_jax.contract import Functions
from cir_jax.convert import exporting, sources, tables
from cir_jax.params import Params


def of_file(source: sources.Source, group: str) -> dict[str, Tensor]:
    """The tensors of a file, float32, by PyTorch's own reader where it reads them."""
    if source.container == "torchscript":
        tensors = {n: torch.from_numpy(_wide(t.read())) for n, t in source.groups[group].items()}
    elif source.container == "torch":
        (file,) = (f for f in source.files if f.suffix != ".json")
        saved = torch.load(file, map_location="cpu", weights_only=True)
        tensors = saved[group] if group else saved
    else:
        files = [f for f in source.files if f.suffix != ".json"]
        tensors = {n: x for file in files for n, x in load_file(Path(file)).items()}
    tensors = {n: x for n, x in tensors.items() if isinstance(x, Tensor)}
    return {n.removeprefix("module."): x.float() if x.is_floating_point() else x
            for n, x in tensors.items()}  # fmt: skip


def of_rules(rules: list[tables.Rule], params: Params) -> dict[str, Tensor]:
    """What an export of one tree has by these rules."""
    part = tables.leaves(rules, params)
    tensors = tables.tensors_of(tables.expand(rules, part), part, {})
    return {n: torch.from_numpy(t.read()) for n, t in tensors.items()}


def of_export(
    functions: Functions, index: Params, query: Params, layout: str, group: str
) -> dict[str, Tensor]:
    """What an export of both trees writes, by way of a file that is written and read again."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "exported.pt"
        exporting.write(place, functions, index, query, layout=layout)
        return of_file(sources.open_source(place), group)


def filled(model: nn.Module, state: dict[str, Tensor], unread: str) -> None:
    """Gives a network on the device "meta" these tensors, not copied.

    Args:
      model: the network; in evaluation mode after it.
      state: tensors, also such as it does not have.
      unread: regex of those that it has and nobody reads: they stay without values, so that PyTorch
        raises if somebody does.

    Raises:
      KeyError: any other tensor is missing.
    """
    need = [name for name in model.state_dict() if not re.fullmatch(unread, name)]
    model.load_state_dict({name: state[name] for name in need}, strict=False, assign=True)
    model.eval()


def _wide(values: np.ndarray) -> np.ndarray:
    """PyTorch takes no bfloat16 from numpy."""
    return values if np.issubdtype(values.dtype, np.integer) else values.astype(np.float32)
