# SPDX-License-Identifier: Apache-2.0
"""Pairs that somebody has looked at and called none: `pair.excluded`.

JSON lines of {"reference", "excluded"}, names of images; a text and more may be beside them. The
search page writes such a file of results that are no answer.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cir_jax import progress
from cir_jax.data.annotations import image_name, read_lines
from cir_jax.errors import UserError
from cir_jax.generation.dedupe import Groups
from cir_jax.generation.images import Pool

Pairs = set[tuple[str, str]]


def read(path: str, pool: Pool, groups: Groups) -> Pairs:
    """(reference, excluded image), each under the name that stands for its group.

    Args:
      path: the file; "" for none.
      pool: the images that are paired. Pairs of others are passed over, and counted.
      groups: which images are the same.

    Raises:
      UserError: no such file, or a record without one of the names.
    """
    if not path:
        return set()
    found: Pairs = set()
    others = 0
    for where, record in read_lines(Path(path)):
        pair = image_name(record, "reference", where), image_name(record, "excluded", where)
        if all(name in pool.paths for name in pair):
            found.add((groups.first(pair[0]), groups.first(pair[1])))
        else:
            others += 1
    if others and not found:
        raise UserError(
            f"pair.excluded={path}: none of its {others:,} pairs is about these images; names are "
            "those of the index that was searched: give the same folder, or leave the key out"
        )
    also = f", {others:,} others are not about these images" if others else ""
    progress.say(f"{len(found):,} pairs of {path} are excluded{also}")
    return found


def without(pairs: Iterable[Mapping[str, Any]], excluded: Pairs) -> list[dict[str, Any]]:
    """The pairs that are not excluded."""
    return [dict(p) for p in pairs if (p["reference"], p["target"]) not in excluded]
