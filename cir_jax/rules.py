# SPDX-License-Identifier: Apache-2.0
"""Path rules: ordered (regex, value) pairs over parameter paths, strict both ways.

One matcher serves sharding, freezing, learning-rate multipliers and weight decay. A parameter that
no rule covers and a rule that covers no parameter are both errors: the second is how a typo in a
rule shows itself instead of training the wrong half of a model.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from cir_jax.errors import UserError

Value = TypeVar("Value")


def match(
    rules: Sequence[tuple[str, Value]], paths: Iterable[str], purpose: str = "rules"
) -> dict[str, Value]:
    """The value of the first rule whose regex matches the whole path, for every path.

    Args:
      rules: (regex, value) pairs, tried in order.
      paths: parameter paths such as "visual/blocks/mlp/fc1/kernel".
      purpose: what the rules are for, used in messages.

    Raises:
      UserError: paths without a rule, or rules without a path (a rule that only ever comes second
        counts as idle: reorder or delete it).
    """
    compiled = [(re.compile(regex), value) for regex, value in rules]
    found: dict[str, Value] = {}
    used: set[int] = set()
    uncovered = []
    for path in paths:
        for i, (regex, value) in enumerate(compiled):
            if regex.fullmatch(path):
                found[path] = value
                used.add(i)
                break
        else:
            uncovered.append(path)
    if uncovered:
        more = f" and {len(uncovered) - 5} more" if len(uncovered) > 5 else ""
        raise UserError(
            f"{purpose}: no rule matches parameter {', '.join(uncovered[:5])}{more}; add a rule"
        )
    idle = [regex for i, (regex, _) in enumerate(rules) if i not in used]
    if idle:
        raise UserError(
            f"{purpose}: {', '.join(map(repr, idle))} match no parameter (a typo?); "
            f"paths look like {next(iter(found), 'visual/proj')!r}"
        )
    return found
