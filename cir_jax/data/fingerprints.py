# SPDX-License-Identifier: Apache-2.0
"""What tells the training data of one run from that of another, part by part. Free of jax.

Content counts and places do not: a data set may lie elsewhere on another machine. Pixels are not
read; an image is known by its name, and one of `data.unlabelled` by a few bytes of its file.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import xxhash

from cir_jax.data import token_files
from cir_jax.data.column_table import Strings, line, measured
from cir_jax.data.image_table import ImageTable
from cir_jax.data.pipeline import TrainingData
from cir_jax.data.tokens import TokenTable

_BLOCK = 1 << 20  # numbers that are widened at a time


def of(data: TrainingData) -> dict[str, str]:
    """Part of the data -> how much of it there is, and a checksum.

    Two runs with equal fingerprints draw the same triplets, texts and images in the same order.
    """
    images, tokens = data.images, data.tokens
    labelled = len(images) - images.unlabelled
    found = {
        "sources": _text(len(data.sources), data.sources),
        "triplets": _numbers(
            len(data.triplets), data.source_of, data.reference_id, data.target_id, data.text_start
        ),
        "texts": _strings(len(tokens), token_files.blocks_of(data.triplets)),
        "tokens": _numbers(
            len(tokens.flat), tokens, tokens.start, np.asarray([tokens.context, tokens.pad])
        ),
        "images": _strings(labelled, _images(images, labelled)),
    }
    if images.unlabelled:
        names = images.names[labelled:]
        found["unlabelled images"] = _text(len(names), [*names, images.unlabelled_content().hex()])
    return found


def difference(then: dict[str, str], now: dict[str, str]) -> str:
    """The parts that differ, in words: "triplets (18,000 then, 17,990 now)"; "" for none."""
    parts = []
    for part in dict.fromkeys([*then, *now]):
        counts = [found.get(part, "none").partition(" ")[0] for found in (then, now)]
        if counts[0] != counts[1]:
            parts.append(f"{part} ({counts[0]} then, {counts[1]} now)")
        elif then.get(part) != now.get(part):
            parts.append(f"{part} ({counts[0]}, with other content or in another order)")
    return ", ".join(parts)


def _images(images: ImageTable, labelled: int) -> Iterator[Strings]:
    """The names of the labelled images, and then "row<TAB>name" of all names of them."""
    left = labelled
    for names in images.name_blocks():
        yield names[:left]
        left -= min(left, len(names))
    for names, rows in images.in_order():
        here = rows < labelled
        if isinstance(names, list):
            names = [name for name, kept in zip(names, here.tolist(), strict=True) if kept]
        elif not here.all():
            names = names.filter(here)
        yield line(names, rows[here], first=True)


def _text(count: int, texts: Iterable[str]) -> str:
    return _strings(count, [list(texts)])


def _strings(count: int, blocks: Iterable[Strings]) -> str:
    digest = xxhash.xxh3_128()
    for block in blocks:
        digest.update(measured(block))
    return f"{count:,} {digest.hexdigest()}"


def _numbers(count: int, *arrays: np.ndarray | TokenTable) -> str:
    digest = xxhash.xxh3_128()
    for array in arrays:
        whole = array.flat if isinstance(array, TokenTable) else array
        digest.update(f"{len(whole)}\n".encode())
        for part in array.blocks() if isinstance(array, TokenTable) else [array]:
            for first in range(0, len(part), _BLOCK):
                some = np.ascontiguousarray(part[first : first + _BLOCK], "<i8")
                digest.update(some.view(np.uint8).data)
    return f"{count:,} {digest.hexdigest()}"
