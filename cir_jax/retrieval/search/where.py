# SPDX-License-Identifier: Apache-2.0
"""`where`: which images of an index may be found, by their fields.

category = 'shoes' and (price < 50 or brand in ('A', 'B')) and not name contains 'old/'
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cir_jax.retrieval.search.conditions import Kind, Tree

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Clause:
    """A `where` that fits an index; `parse` makes it.

    Attributes:
      text: as it was written, for messages only.
      tree: what it says.
    """

    text: str
    tree: Tree

    def mask(self, table: "pyarrow.Table") -> NDArray[np.bool_]:
        """[N]: the rows of a table with the fields that it names for which it is true."""
        from cir_jax.retrieval.search import masks

        return masks.of(self.tree, table)


def kinds(schema: "pyarrow.Schema") -> dict[str, Kind]:
    """Field -> kind of the columns of a table that a `where` may ask for; others are left out."""
    import pyarrow.types as types

    tests: dict[Kind, Callable[[Any], bool]] = {
        "boolean": types.is_boolean,
        "integer": types.is_integer,
        "number": types.is_floating,
        "text": lambda t: types.is_string(t) or types.is_large_string(t),
    }
    return {c.name: kind for c in schema for kind, test in tests.items() if test(c.type)}


def parse(text: str, fields: Mapping[str, Kind]) -> Clause:
    """A `where` as it is written, read and checked.

    Args:
      text: see the module's first lines.
      fields: name -> kind of those that an index has; see `kinds`.

    Raises:
      UserError: it is no `where`: the place, and what was expected there; an unknown field; a value
        that does not fit its field; too long or too deep.
    """
    from cir_jax.retrieval.search import reading

    return Clause(text, reading.tree(text, fields))
