# SPDX-License-Identifier: Apache-2.0
"""Writes the files of any submission once, and says what they hold."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from cir_jax import progress


def deliver(
    title: str,
    best: Mapping[str, Sequence[str] | Sequence[int]],
    wanted: int,
    gallery: int,
    write: Callable[[], Sequence[Path]],
) -> list[Path]:
    """Calls `write` in process 0, and says which files hold how many queries.

    Args:
      title: of the benchmark, for messages.
      best: query -> its images, best first.
      wanted: images per query that the server wants.
      gallery: number of images there are; with too few of them a warning is printed.
      write: checks the files and writes them.

    Returns:
      The files; [] in every process but the first.

    Raises:
      UserError: whatever `write` refuses.
    """
    shortest = min(map(len, best.values()))
    if shortest < wanted:
        progress.say(
            f"warning: the gallery has {gallery} images, so a query has {shortest} names; "
            f"the {title} server wants {wanted}"
        )
    if jax.process_index() != 0:
        return []
    paths = list(write())
    for path in paths:
        progress.say(f"{path}: {len(best):,} queries")
    return paths
