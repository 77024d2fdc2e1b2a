# SPDX-License-Identifier: Apache-2.0
"""The golden vectors of an index: what its model made of them when its rows were made.

A model of the same parameters may still give other vectors, by another version of a decoder or of a
tokenizer: then its rows and its queries would not fit those that are there.
"""

from pathlib import Path
from typing import Any

from cir_jax import files
from cir_jax.retrieval import golden


def check(folder: str | Path, model: Any, keep: bool = False) -> None:
    """Compares the vectors of an index with those that its model gives here and now.

    Args:
      folder: of the index.
      model: its model.
      keep: keep those of now instead: the first ones, or of another query side.

    Raises:
      UserError: they differ, and what differs is named; or those that are kept are damaged.
    """
    kept = None if keep else golden.kept_with(folder)
    if kept is None and not keep:  # of before indexes had any
        return
    now = golden.of(model.retriever(few=True), model.preprocess)
    golden.check(kept, now, f"the index in {folder}")
    if keep:
        files.put(golden.beside(folder), now.encoded())
