# SPDX-License-Identifier: Apache-2.0
"""A condition over a table in memory: which rows it is true for."""

from functools import reduce

import numpy as np
import pyarrow
import pyarrow.compute as pc
from numpy.typing import NDArray

from cir_jax.retrieval.search.conditions import (
    Among,
    And,
    Compare,
    Contains,
    IsNull,
    Operator,
    Or,
    Tree,
)

_COMPARISONS: dict[Operator, str] = {
    "=": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater",
    ">=": "greater_equal",
}  # fmt: skip
_TYPES = {
    "text": pyarrow.large_string(),
    "integer": pyarrow.int64(),
    "number": pyarrow.float64(),
    "boolean": pyarrow.bool_(),
}


def of(tree: Tree, table: pyarrow.Table) -> NDArray[np.bool_]:
    """[N]: the rows of a table for which a condition is true."""
    if isinstance(tree, And):
        return reduce(np.logical_and, (of(part, table) for part in tree.parts))
    if isinstance(tree, Or):
        return reduce(np.logical_or, (of(part, table) for part in tree.parts))
    column = table[tree.field]
    valid = _array(pc.is_valid(column))
    if pyarrow.types.is_floating(column.type):
        valid &= ~_array(pc.fill_null(pc.is_nan(column), True))
    if isinstance(tree, IsNull):
        return valid if tree.negated else ~valid
    found = _array(pc.fill_null(_leaf(tree, column), False))
    negated = not isinstance(tree, Compare) and tree.negated
    return valid & (~found if negated else found)


def _leaf(tree: Compare | Among | Contains, column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Whether it holds, the flag `negated` apart; null where the column is."""
    if isinstance(tree, Contains):
        return pc.match_substring(column.cast(_TYPES["text"]), tree.text)
    column = column.cast(_TYPES[tree.kind])
    if isinstance(tree, Among):
        return pc.is_in(column, value_set=pyarrow.array(tree.values, _TYPES[tree.kind]))
    type_ = _TYPES[tree.kind]
    if tree.kind == "integer" and isinstance(tree.value, float):
        # Compared with a fraction: integers near it are exact in float64, and no other matters.
        type_ = pyarrow.float64()
        column = column.cast(type_, safe=False)
    value = pyarrow.scalar(tree.value, type_)
    return pc.call_function(_COMPARISONS[tree.operator], [column, value])


def _array(column: pyarrow.ChunkedArray) -> NDArray[np.bool_]:
    return np.array(column.to_numpy(), np.bool_)
