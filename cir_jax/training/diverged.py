# SPDX-License-Identifier: Apache-2.0
"""A loss or gradient that is not finite: the message, and a file that names the last batches."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cir_jax import files
from cir_jax.errors import UserError
from cir_jax.runtime import encode
from cir_jax.runtime import mesh as meshes
from cir_jax.training.setup import Data, Setup

FILE = "not_finite.jsonl"  # in the run folder
KEPT = 3  # batches
LATE = 2  # batches at most that are drawn after the one whose loss is looked at


class Diverged(UserError, FloatingPointError):
    """The loss or the gradients of a step are not finite."""


class Recent:
    """The texts, and so the triplets, of the last batches.

    Args:
      setup: of the run.
      data: its triplets.
    """

    def __init__(self, setup: Setup, data: Data):
        self._setup, self._data = setup, data
        self._batches: deque[tuple[int, np.ndarray]] = deque(maxlen=KEPT + LATE)

    def add(self, step: int, rows: dict[str, np.ndarray]) -> None:
        """Notes the rows of this process of the batch of `step`."""
        self._batches.append((step, rows["text_id"]))

    def diverged(self, step: int, values: dict[str, jax.Array]) -> Diverged:
        """Writes the batches to FILE; the exception to raise, on all processes.

        Args:
          step: the first that is not finite; later ones may have been drawn.
          values: its metrics.
        """
        loss, norm = float(values["loss"]), float(values["gradient_norm"])
        config = self._setup.config
        batches = [(number, mine) for number, mine in self._batches if number <= step][-KEPT:]
        path = Path(config.workdir) / FILE
        lines = [
            json.dumps({"step": number} | self._triplet(text), ensure_ascii=False)
            for number, mine in batches
            for text in self._global(mine).tolist()
        ]
        if jax.process_index() == 0:
            text = "".join(line + "\n" for line in lines)
            files.put(path, text.encode(errors="backslashreplace"))  # as a journal writes them
        if jax.process_count() > 1:  # who raises first ends the others: not while this is written
            multihost_utils.sync_global_devices(FILE)
        return Diverged(
            f"loss {loss} at step {step}; gradient norm {norm}: not finite. The step changed "
            f"nothing, and the checkpoints before it are kept. {path} names the triplets of this "
            f"step and of the {len(batches) - 1} before it: look at their images. Else "
            f"lower optim.learning_rate={config.optim.learning_rate}, raise loss.temperature="
            f"{config.loss.temperature}, or set optim.clip_norm"
        )

    def _global(self, mine: np.ndarray) -> np.ndarray:
        """[B] of all processes, from the rows of this one."""
        mesh, batch = self._setup.mesh, self._setup.config.batch
        rows = encode.place(mine, meshes.batch_sharding(mesh), batch)
        return np.asarray(jax.jit(lambda x: x, out_shardings=meshes.replicated(mesh))(rows))

    def _triplet(self, text: int) -> dict[str, Any]:
        triplets = self._data.triplets
        number = int(np.searchsorted(triplets.text_start, text, side="right")) - 1
        triplet = triplets.triplets[number]
        place = triplets.reference_id[number], triplets.target_id[number]
        reference, target = (str(triplets.images.paths[i]) if i >= 0 else "" for i in place)
        return {
            "triplet": triplet.query_id,
            "source": triplet.source,
            "reference": triplet.reference,
            "reference_file": reference,
            "target": triplet.target,
            "target_file": target,
            "text": triplet.texts[text - int(triplets.text_start[number])],
        }
