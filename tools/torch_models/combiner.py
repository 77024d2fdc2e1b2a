# SPDX-License-Identifier: Apache-2.0
"""The Combiner of CLIP4Cir in PyTorch, with the tensor names of the published files."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def query(state: Mapping[str, Tensor], image: Tensor, text: Tensor) -> Tensor:
    """[B, D] raw image and [B, D] raw text features -> [B, D] unit queries, without dropout.

    `state` is what lies under "Combiner". Source: Baldrati et al., CVPR 2022 Workshops.
    """

    def layer(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    # Text comes first.
    both = torch.cat(
        [layer("text_projection_layer", text), layer("image_projection_layer", image)], dim=-1
    ).relu()
    gate = layer("dynamic_scalar.3", layer("dynamic_scalar.0", both).relu()).sigmoid()
    output = layer("output_layer", layer("combiner_layer", both).relu())
    return F.normalize(output + gate * text + (1 - gate) * image, dim=-1)
