# SPDX-License-Identifier: Apache-2.0
"""Indices of a global batch -> its fields: texts, ids, decoded images, references from disk.

This module must not import jax: worker processes import it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from cir_jax.data import packing
from cir_jax.data import tokens as token_tables
from cir_jax.data.exclusions import Exclusions

PIXELS = ("reference_pixels", "target_pixels")


@dataclass(frozen=True)
class Options:
    """How batches are drawn. `fields` beyond the ids: text, reference_pixels, target_pixels,
    reference_row, reference, exclude_id. `rows` of each global batch are those of this process, in
    their order; None for all. They need not be adjacent. `shares`: texts are packed for so many
    devices along the batch, see `cir_jax.data.packing`; 0 pads them."""

    batch: int
    seed: int
    fields: tuple[str, ...]
    mixing: str = "concatenate"
    weights: tuple[float, ...] = ()
    text_lengths: tuple[int, ...] = (16, 24, 32, 48, 77)
    cut_padding: bool = True
    exclude_reference: bool = False
    exclude_positives: bool = False
    threads: int = 16
    rows: Sequence[int] | np.ndarray | None = None
    shares: int = 0


@dataclass(frozen=True)
class Sources:
    """What rows of a batch are read from, beside the triplets.

    Attributes:
      preprocess: path -> uint8 [S, S, 3]; needed for pixel fields only.
      plan: `cir_jax.bank.references.Plan`; needed for the fields of references.
      store: `cir_jax.bank.files.Store`; needed for the field reference only.
    """

    preprocess: Any = None
    plan: Any = None
    store: Any = None


class Loader:
    """Turns the indices of a global batch into the fields of this process's rows."""

    def __init__(self, data: Any, options: Options, sources: Sources):
        self.data = data
        self.options = options
        self.sources = sources
        self._rows = slice(None) if options.rows is None else np.asarray(options.rows, np.int64)
        self._excluded: Any = None
        if "exclude_id" in options.fields:
            chosen = options.exclude_reference, options.exclude_positives
            self._excluded = Exclusions(data, *chosen)
        self._packs = _Packs(data, options) if options.shares else None
        self._pool = ThreadPoolExecutor(max(options.threads, 1))  # threads start with its work

    def __call__(self, drawn: np.ndarray) -> dict[str, Any]:
        options, data = self.options, self.data
        triplet, text_id = drawn[self._rows].T
        batch: dict[str, Any] = {
            "reference_id": data.reference_id[triplet],
            "target_id": data.target_id[triplet],
            "text_id": text_id.astype(np.int32),
            "source_id": data.source_of[triplet],
        }
        if "text" in options.fields:
            batch["text"] = self._text(drawn[:, 1], text_id)
        if "exclude_id" in options.fields:
            batch["exclude_id"] = self._excluded[text_id]
        if "reference_row" in options.fields:
            batch["reference_row"] = self.sources.plan.rows(batch["reference_id"], text_id)
        if "reference" in options.fields:
            rows = self.sources.plan.rows(batch["reference_id"], text_id)
            batch["reference"] = self.sources.store.read(rows, self._pool)
        for name in PIXELS:
            if name in options.fields:
                ids = batch[name.replace("pixels", "id")]
                batch[name] = np.stack(list(self._pool.map(self._open, ids.tolist())))
        return batch

    def _text(self, everyone: np.ndarray, mine: np.ndarray) -> np.ndarray | packing.Packed:
        """The texts of `mine`, the rows of this process in a batch of the texts of `everyone`."""
        if self._packs is not None:
            return self._packs(everyone)
        return self.data.tokens.rows(mine, self._length(everyone))

    def _length(self, text_ids: np.ndarray) -> int:
        """Length of the text field, from all rows of the global batch."""
        context = self.data.tokens.context
        if not self.options.cut_padding:
            return context
        start = self.data.tokens.start
        longest = int((start[text_ids + 1] - start[text_ids]).max())
        return token_tables.fit(longest, context, self.options.text_lengths)

    def _open(self, row: int) -> np.ndarray:
        return self.sources.preprocess(self.data.images.paths[row])


class _Packs:
    """Rows of the token table of a global batch -> this process's shares of them, packed.

    Raises:
      ValueError: the rows of this process are no whole shares.
    """

    def __init__(self, data: Any, options: Options):
        each = options.batch // options.shares
        rows = np.arange(options.batch) if options.rows is None else np.asarray(options.rows)
        mine = rows.reshape(-1, each) if len(rows) % each == 0 else rows[:, None]
        if (mine != mine[:, :1] // each * each + np.arange(each)).any():
            raise ValueError(
                f"rows {rows.tolist()} of a process are no whole shares of {each} rows, as each of "
                f"{options.shares} devices has of a batch of {options.batch}"
            )
        self._mine = mine[:, 0] // each
        self._tokens = data.tokens
        self._sizes = packing.Sizes.of(
            data.tokens, options.batch, options.shares, options.text_lengths
        )

    def __call__(self, text_ids: np.ndarray) -> packing.Packed:
        table = self._tokens
        return packing.pack(table.texts(text_ids), self._sizes, table.pad).of(self._mine)
