# SPDX-License-Identifier: Apache-2.0
"""Tokens of triplets in columns: those of a large file lie in a mapped file beside it.

They are made once for each tokenizer. What they depend on (the texts, the vocabulary, the rules of
its clean-up, the context, whether long texts are cut) is part of what they are known by.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cir_jax import progress
from cir_jax.data import beside, foreign_columns
from cir_jax.data import tokens as token_tables
from cir_jax.data.stacked import starts
from cir_jax.data.tokens import Joined, Tokenizer, TokenTable
from cir_jax.data.triplet_columns import Columns, Part, Share, batches
from cir_jax.data.triplets import Triplet, TripletSet

FILE = "tokens.arrow"
_VERSION = 1


def table(sets: Sequence[TripletSet], tokenizer: Tokenizer, on_long: str = "error") -> TokenTable:
    """The tokens of all texts of all triplets, in their order; see `cir_jax.data.tokens.table`.

    Raises:
      UserError: a text is over the context, `on_long` is unknown, or there is no room.
    """
    if tokenizer.backend is None:  # vectors of others, which keep them
        return _of_vectors(sets, tokenizer, on_long)
    if not any(isinstance(one.triplets, Columns) for one in sets):
        return _of_tuples([t for one in sets for t in one.triplets], tokenizer, on_long)
    arrays: list[np.ndarray] = []
    parts, lengths = [np.zeros((0, 3), np.int64)], list[np.ndarray]()
    made: dict[Part, _Tokens] = {}
    for one in sets:
        if not isinstance(one.triplets, Columns):
            found = _of_tuples(one.triplets, tokenizer, on_long)
            parts.append(np.asarray([[len(arrays), 0, len(found.flat)]], np.int64))
            arrays += found.blocks()
            lengths.append(found.lengths)
            continue
        for share in one.triplets.shares:
            if share.part not in made:
                made[share.part] = _of_part(share.part, tokenizer, on_long)
            tokens = made[share.part]
            some, counts = tokens.of(share)
            some[:, 0] += len(arrays)
            parts.append(some)
            lengths += counts
            arrays += tokens.arrays
    flat = Joined(arrays, np.concatenate(parts))
    return TokenTable(flat, starts(lengths), tokenizer.context, tokenizer.pad)


def _of_tuples(triplets: Sequence[Triplet], tokenizer: Tokenizer, on_long: str) -> TokenTable:
    owner = [t for t in triplets for _ in t.texts]
    return token_tables.table(
        [text for t in triplets for text in t.texts],
        tokenizer,
        on_long,
        where=lambda i: _name(owner[i]),
    )


def _of_vectors(sets: Sequence[TripletSet], tokenizer: Tokenizer, on_long: str) -> TokenTable:
    """Of texts whose vectors may be those of the text with its reference image."""
    owner = [(one, t) for one in sets for t in one.triplets for _ in t.texts]
    return token_tables.table(
        [text for one in sets for t in one.triplets for text in t.texts],
        tokenizer,
        on_long,
        where=lambda i: _name(owner[i][1]),
        references=[one.paths[t.reference] if t.reference else None for one, t in owner],
    )


def _name(triplet: Triplet) -> str:
    return f"{triplet.source} triplet {triplet.query_id}"


class _Tokens:
    """The tokens of all texts of a file, in one array for each block of triplets."""

    def __init__(self, folder: Path, noted: Mapping[str, Any], part: Part):
        del noted
        self.arrays: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        found = batches(folder / FILE)
        if len(found) != len(part.blocks):
            raise beside.Damaged(f"{folder}: {len(found)} blocks, not {len(part.blocks)}")
        for batch in found:
            ids = batch.column("ids")
            self.arrays.append(ids.flatten().to_numpy())
            self._lengths.append(np.diff(ids.offsets.to_numpy()).astype(np.int32))

    def of(self, share: Share) -> tuple[np.ndarray, list[np.ndarray]]:
        """(parts of the arrays as `Joined` takes them, tokens of each text) of some triplets."""
        parts, counts = [np.zeros((0, 3), np.int64)], list[np.ndarray]()
        for number, (block, rows) in enumerate(share.rows_of_blocks()):
            lengths = self._lengths[number]
            if rows is None:
                parts.append(np.asarray([[number, 0, len(self.arrays[number])]], np.int64))
                counts.append(lengths)
            elif len(rows):
                texts = block.column("texts").offsets.to_numpy()
                texts = texts - texts[0]
                ends = np.concatenate([[0], np.cumsum(lengths)])
                new = np.flatnonzero(np.diff(rows) != 1) + 1  # where a run of neighbours begins
                first, last = rows[[0, *new]], rows[[*(new - 1), len(rows) - 1]]
                run = np.stack([ends[texts[first]], ends[texts[last + 1]]], axis=1)
                parts.append(np.insert(run, 0, number, axis=1))
                each = np.diff(texts)[rows]
                place = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
                counts.append(lengths[np.repeat(texts[rows], each) + place])
        return np.concatenate(parts), counts


def _of_part(part: Part, tokenizer: Tokenizer, on_long: str) -> _Tokens:
    """The tokens of a file: kept beside it, if the triplets are."""
    cuts = tokenizer.cuts or on_long == "truncate"

    def make(folder: Path) -> dict[str, Any]:
        progress.say(f"tokenizing {part.file} once, for this start and later ones ...")
        return _write(folder, part, tokenizer, on_long)

    load: Callable[[Path, Mapping[str, Any]], _Tokens]
    load = lambda folder, noted: _Tokens(folder, noted, part)
    if not part.identity:
        with beside.passing() as folder:
            return load(folder, _write(folder, part, tokenizer, on_long))
    key = {
        "version": _VERSION, "tokenizer": _identity(tokenizer), "cuts": cuts, "texts": part.identity
    }  # fmt: skip
    what = f"{part.what}-{tokenizer.name}{'-cut' if cuts else ''}"
    check = lambda folder, noted: _check(folder, part, tokenizer)
    return beside.kept(part.file, what, key, make, load, check)


def _check(folder: Path, part: Part, tokenizer: Tokenizer) -> None:
    """Raises Damaged unless `_write` may have written the tokens of a folder."""
    found = foreign_columns.checked(folder / FILE, _schema())
    ids = tokenizer.backend.get_vocab_size(), tokenizer.start, tokenizer.end, tokenizer.pad
    if len(found) != len(part.blocks):
        raise beside.Damaged(f"{folder}: {len(found)} blocks, not {len(part.blocks)}")
    for batch, block in zip(found, part.blocks, strict=True):
        counts, values = foreign_columns.of_lists(batch.column("ids"))
        texts = foreign_columns.of_lists(block.column("texts"))[1]
        if len(counts) != len(texts):
            raise beside.Damaged(f"{folder}: tokens of {len(counts)} texts, not {len(texts)}")
        foreign_columns.check_within(counts, tokenizer.context + 1, 1)
        foreign_columns.check_within(values.to_numpy(), max(ids) + 1)


def _identity(tokenizer: Tokenizer) -> str:
    """What tells a tokenizer from every other one, and from other versions of it."""
    own = tokenizer.identity or tokenizer.backend.to_str()
    rules = [own, version("ftfy"), version("tokenizers")]
    numbers = [tokenizer.context, tokenizer.start, tokenizer.end, tokenizer.pad]
    return xxhash.xxh3_128_hexdigest(repr((tokenizer.name, *numbers, *rules)).encode())


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([("ids", pa.large_list(pa.int32()))])


def _write(folder: Path, part: Part, tokenizer: Tokenizer, on_long: str) -> dict[str, Any]:
    import pyarrow as pa

    schema = _schema()
    texts = Columns([Share(part)])
    with pa.OSFile(str(folder / FILE), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        bar = progress.bar(texts.texts(), total=len(part.blocks), title="tokenizing")
        for number, block in enumerate(bar):
            ids, counts = _encoded(block, part, number, tokenizer, on_long)
            ends = np.concatenate([[0], np.cumsum(counts)])
            lists = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(ids))
            writer.write_batch(pa.record_batch([lists], schema))
    return {}


def _encoded(
    block: Any, part: Part, number: int, tokenizer: Tokenizer, on_long: str
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, how many each text has) of the texts of one block of triplets."""
    ids, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]

    def name(text: int) -> str:
        ends = part.blocks[number].column("texts").offsets.to_numpy()
        row = int(np.searchsorted(ends - ends[0], text, side="right")) - 1
        return _name(part.row(int(part.starts[number]) + row))

    for first in range(0, len(block), token_tables.BATCH):
        some = block.slice(first, token_tables.BATCH).to_pylist()
        found, lengths = token_tables.encoded(some, tokenizer, on_long, name, first)
        ids.append(found)
        counts.append(lengths)
    return np.concatenate(ids), np.concatenate(counts)


def blocks_of(triplets: Sequence[Triplet]) -> Iterator[Any]:
    """The texts of triplets in their order: lists, or Arrow strings."""
    for part in getattr(triplets, "parts", [triplets]):
        if isinstance(part, Columns):
            yield from part.texts()
        else:
            yield [text for t in part for text in t.texts]
