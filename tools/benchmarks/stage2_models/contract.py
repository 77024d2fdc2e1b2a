# SPDX-License-Identifier: Apache-2.0
"""What a module of this folder defines, and the problem that both steps are given.

CONFIG, TOWER, ROWS, TEMPERATURE   defaults of the comparison
PADDED            tokens that the released step pads every text to
FIRST, LAST, WORDS   ids of the first and last token, and one above those of words
REFERENCE_SCALE   typical size of a reference's values, relative to a unit row
released(tower, problem) -> a function that makes one step in PyTorch
"""

from dataclasses import dataclass

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
