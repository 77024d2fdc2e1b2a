# SPDX-License-Identifier: Apache-2.0
"""What a module of this folder defines, and the problem that both steps are given.

CONFIG, TOWER, ROWS, TEMPERATURE   defaults of the comparison
PADDED            tokens that the released step pads every text to
FIRST, LAST, WORDS   ids of the first and last token, and one above those of words
REFERENCE_SCALE   typical size of a reference's values, relative to a unit row
released(tower, problem, device, way) -> a function that makes one step in PyTorch on a device, by
                  default a CPU and as released; it returns the loss, a tensor
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Problem:
    """Random values of the real shapes.

    Attributes:
      ids: int32 [B, PADDED] texts of 8 to 22 tokens.
      lengths: int64 [B] tokens of each.
      targets: float32 [N, K, D] unit rows.
      references: float32 [B, R, C], one for each query.
      label: int32 [B] row of the positive.
    """

    ids: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    references: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Way:
    """How a step is computed in PyTorch.

    Attributes:
      autocast: in bfloat16, where PyTorch's autocast does.
      copies: the bank comes to the device of the loss at every step, as in the released code; else
        it lies there, in the type that is computed with.
      compiled: network and loss, by torch.compile.
    """

    autocast: bool = False
    copies: bool = True
    compiled: bool = False

    def casting(self, device: str) -> Any:
        """A context for the forward pass."""
        import torch

        kind = torch.device(device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.autocast)

    def bank(self, targets: Any, device: str) -> Any:
        """What gives the bank of a step.

        Args:
          targets: the rows, in the memory of the host.
          device: of the loss.
        """
        import torch

        if not self.copies:  # autocast would round all of it for each product anew
            kept = targets.to(device, torch.bfloat16 if self.autocast else targets.dtype)
            return lambda: kept
        return targets.clone if device == "cpu" else lambda: targets.to(device)


EAGER = Way()
