# SPDX-License-Identifier: Apache-2.0
"""What tells the training data of one run from that of another, part by part. Free of jax.

Content counts and places do not: a data set may lie elsewhere on another machine. Pixels are not
read; an image is known by its name, and one of `data.unlabelled` by a few bytes of its file.
"""

from collections.abc import Iterable

import numpy as np
import xxhash

from cir_jax.data.pipeline import TrainingData


def of(data: TrainingData) -> dict[str, str]:
    """Part of the data -> how much of it there is, and a checksum.

    Two runs with equal fingerprints draw the same triplets, texts and images in the same order.
    """
    images, tokens = data.images, data.tokens
    labelled = len(images) - images.unlabelled
    rows = (f"{row}\t{name}" for name, row in sorted(images.row_of.items()) if row < labelled)
    found = {
        "sources": _text(len(data.sources), data.sources),
        "triplets": _numbers(
            len(data.triplets), data.source_of, data.reference_id, data.target_id, data.text_start
        ),
        "texts": _text(len(tokens), (text for t in data.triplets for text in t.texts)),
        "tokens": _numbers(
            len(tokens.flat), tokens.flat, tokens.start, np.asarray([tokens.context, tokens.pad])
        ),
        "images": _text(labelled, [*images.names[:labelled], *rows]),
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


def _text(count: int, texts: Iterable[str]) -> str:
    digest = xxhash.xxh3_128()
    for text in texts:
        content = text.encode(errors="surrogatepass")
        digest.update(f"{len(content)}\n".encode() + content)
    return f"{count:,} {digest.hexdigest()}"


def _numbers(count: int, *arrays: np.ndarray) -> str:
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(f"{len(array)}\n".encode())
        digest.update(np.ascontiguousarray(array, "<i8").view(np.uint8).data)
    return f"{count:,} {digest.hexdigest()}"
