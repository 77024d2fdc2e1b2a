# SPDX-License-Identifier: Apache-2.0
"""Triplets -> batches, with Grain.

A batch is made of indices first: shuffled, given a text variant, cut into global batches. Only then
does each process open the images of its own rows. So every process knows the whole global batch
without talking to the others (all pad their texts to the same length, or pack them alike), and the
position in the stream is one number that does not depend on the number of processes: a run may
resume on another.
This module must not import jax: worker processes import it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grain
import numpy as np

from cir_jax import progress
from cir_jax.data import token_files
from cir_jax.data.image_table import ImageTable
from cir_jax.data.loader import Loader, Options, Sources
from cir_jax.data.screening import Screen, drop_missing
from cir_jax.data.stacked import stacked, starts
from cir_jax.data.tokens import Tokenizer, TokenTable
from cir_jax.data.triplet_columns import Columns
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.errors import UserError


@dataclass(frozen=True)
class TrainingData:
    """All triplets of a run, numbered.

    Attributes:
      triplets: annotated first, then generated; a tuple, or a sequence that makes each when it is
        asked for.
      images: the image table.
      tokens: one row per (triplet, text).
      text_start: [triplets + 1] first row of each triplet's texts in `tokens`.
      sources: names of the sources.
      source_of: [triplets] int32 index into `sources`.
      reference_id, target_id: [triplets] int32 rows of the image table; -1 for no reference.
      dropped: source -> triplets left out for an image that cannot be used.
    """

    triplets: Sequence[Triplet]
    images: ImageTable
    tokens: TokenTable
    text_start: np.ndarray
    sources: tuple[str, ...]
    source_of: np.ndarray
    reference_id: np.ndarray
    target_id: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)

    def triplet_of_text(self) -> np.ndarray:
        """[M] the triplet of each row of `tokens`."""
        return np.repeat(np.arange(len(self.triplets)), np.diff(self.text_start))


def prepare(
    sets: Sequence[TripletSet],
    tokenizer: Tokenizer,
    *,
    on_missing: str | Screen = "error",
    on_long: str = "error",
    optimized: str = "",
    unlabelled: Callable[[ImageTable], ImageTable] | None = None,
) -> TrainingData:
    """Numbers the images and tokenises every text of every triplet.

    `on_missing` says what becomes of images that cannot be used, see `cir_jax.data.screening`;
    `unlabelled` adds rows for more images to the table, see `cir_jax.datasets.unlabelled`.

    Raises:
      UserError: images that cannot be used, an over-long text, no triplet at all, or what
        `ImageTable` finds.
    """
    sets, dropped = drop_missing(sets, on_missing)
    for source, count in dropped.items():
        progress.say(f"warning: {count} triplets of {source} left out, their images cannot be used")
    triplets = stacked([one.triplets for one in sets])
    if not len(triplets):
        raise UserError("no triplet to train on; check data.name, data.root and the split")
    images = ImageTable.from_sets(sets, optimized)
    if unlabelled is not None:
        images = unlabelled(images)
    table = token_files.table(sets, tokenizer, on_long)
    names = tuple(dict.fromkeys(one.name for one in sets))
    pairs = [images.pairs(one.triplets) for one in sets]
    return TrainingData(
        triplets=triplets,
        images=images,
        tokens=table,
        text_start=starts(_text_counts(triplets)),
        sources=names,
        source_of=np.repeat(
            np.asarray([names.index(one.name) for one in sets], np.int32),
            [len(one.triplets) for one in sets],
        ),
        reference_id=np.concatenate([reference for reference, _ in pairs]),
        target_id=np.concatenate([target for _, target in pairs]),
        dropped=dropped,
    )


def _text_counts(triplets: Sequence[Triplet]) -> list[np.ndarray]:
    """How many texts each triplet has, in blocks."""
    found: list[np.ndarray] = []
    for part in getattr(triplets, "parts", [triplets]):
        if isinstance(part, Columns):
            found += part.text_counts()
        else:
            found.append(np.asarray([len(t.texts) for t in part], np.int64))
    return found


def steps_per_epoch(data: TrainingData, batch: int) -> int:
    """Full batches in one pass over the triplets; with mixing by weights, of as many triplets.

    Raises:
      UserError: there are fewer triplets than a batch takes, or the batch is empty.
    """
    if batch < 1:
        raise UserError(f"batch {batch} is below 1; the default is 256")
    steps = len(data.triplets) // batch
    if not steps:
        raise UserError(
            f"batch {batch} is larger than the {len(data.triplets)} triplets; use a smaller one"
        )
    return steps


def batches(
    data: TrainingData, options: Options, sources: Sources | None = None
) -> grain.DatasetIterator:
    """An endless iterator over batches, with get_state() and set_state().

    Args:
      data: see `prepare`.
      options: see `Options`.
      sources: see `Sources`.

    Returns:
      A Grain iterator of dicts of numpy arrays, the b rows of this process, `options.rows`:
      reference_id, target_id, text_id, source_id int32 [b]; text int32 [b, T], or with
      `options.shares` a `packing.Packed`, this process's shares of the batch;
      reference_pixels, target_pixels uint8 [b, S, S, 3]; exclude_id int32 [b, E], -1 for none;
      reference_row int32 [b], row of the plan of references; reference bfloat16 [b, R, C].

    Raises:
      UserError: the batch is larger than the data, pixels of references that do not exist are
        asked for, or the weights do not fit the sources.
      ValueError: `options.rows` are no rows of a batch, or no whole shares of packed texts.
    """
    _check(data, options)
    stream = _indices(data, options).map(Loader(data, options, sources or Sources()))
    # Grain runs whole batches in threads; images of one batch are opened by the loader's own pool.
    read = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(stream.to_iter_dataset(read))


def _check(data: TrainingData, options: Options) -> None:
    steps_per_epoch(data, options.batch)
    rows = range(options.batch) if options.rows is None else options.rows
    if len(rows) == 0 or min(rows) < 0 or max(rows) >= options.batch:
        raise ValueError(f"rows {rows} of a process are no rows of a batch of {options.batch}")
    if "reference_pixels" in options.fields and (data.reference_id < 0).any():
        raise UserError("image-caption pairs have no reference image; they train in stage zero")
    if options.mixing not in ("concatenate", "weights"):
        raise UserError(f"data.mixing={options.mixing!r} is unknown; use concatenate or weights")
    if options.mixing == "weights" and len(options.weights) != len(data.sources):
        raise UserError(
            f"data.weights={options.weights} for {len(data.sources)} sources "
            f"({', '.join(data.sources)}); give one weight per source"
        )
    if options.mixing == "weights" and not all(0 < w < np.inf for w in options.weights):
        raise UserError(
            f"data.weights={options.weights}: a weight is above 0 and finite; leave a source out "
            "with data.annotated=0 or a shorter data.generated"
        )


def _indices(data: TrainingData, options: Options) -> grain.MapDataset:
    """An endless dataset of global batches of [triplet, row of its text] pairs."""
    start = data.text_start

    def choose_text(triplet: int, rng: np.random.Generator) -> np.ndarray:
        return np.asarray([triplet, rng.integers(start[triplet], start[triplet + 1])], np.int64)

    if options.mixing == "concatenate":
        drawn = grain.MapDataset.range(len(data.triplets)).seed(options.seed).shuffle()
        drawn = drawn.random_map(choose_text)
        return drawn.batch(options.batch, drop_remainder=True).repeat()
    parts = [
        grain.MapDataset.source(np.flatnonzero(data.source_of == i)).seed(options.seed + i)
        for i in range(len(data.sources))
    ]
    # Without an end: a mix that is cut and repeated would enter each source at a new place, and
    # leave some of its triplets out of every pass.
    mixed = grain.MapDataset.mix([p.shuffle().repeat() for p in parts], list(options.weights))
    mixed = mixed.seed(options.seed).random_map(choose_text)
    return mixed.batch(options.batch, drop_remainder=True)
