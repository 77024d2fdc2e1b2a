# SPDX-License-Identifier: Apache-2.0
"""The released files of SPRC at their full size: every tensor by name and shape, without memory."""

import torch

from cir_jax.convert import identify, sources, tables, tied
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.models.sprc import layouts
from cir_jax.towers.blip2 import sizes
from tests.convert import published_sprc as published
from tools.torch_models import sprc


def test_every_tensor_of_the_released_files_has_its_place():
    functions = published.functions("blip2-vit-g")
    with torch.device("meta"):
        model = sprc.Sprc(sizes.find("blip2-vit-g"))
        one = {n: tuple(x.shape) for n, x in model.state_dict().items()}
        model.begin_stage_two(0.05)
        two = {f"blip_model.{n}": tuple(x.shape) for n, x in model.state_dict().items()}
    integers = {"position_ids"}
    for key, shapes, kind in ((layouts.STAGE_ONE, one, "sprc"), ("state_dict", two, "spn")):
        held = {
            name: Tensor(shape, "int64" if name.split(".")[-1] in integers else "float32", None)
            for name, shape in shapes.items()
        }
        source = sources.Source(None, "torch", {key: held})
        layout, found = identify.find(source, "sprc")
        assert (layout.name, found.config) == (kind, {"tower": "blip2-vit-g"})
        table = tables.expand(layout.rules(None), functions.abstract)
        rules = layout.index_rules(None)
        table |= tables.expand(rules, tables.leaves(rules, functions.abstract))
        found = tables.shapes(table, functions.abstract)
        assert all(shapes[name] == shape for name, shape in found.items())
        tensors = {name: Tensor(shape, "float32", None) for name, shape in found.items()}
        copied = tied.names(layout.copied, tensors)
        tensors |= {copy: tensors[name] for copy, name in copied.items()}
        tensors |= layout.extra(tensors, {})
        assert {name: x.shape for name, x in tensors.items()} == shapes
