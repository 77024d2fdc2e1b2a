# SPDX-License-Identifier: Apache-2.0
"""Runs from which nothing can be learned: refused before the first step, or said while they train.

A loss is a comparison. With one row in a bank, or one image as the target of every triplet, it is a
constant whatever the model is, and a run of hours would end without a word where it began.
"""

import jax
import numpy as np
from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.data.pipeline import TrainingData
from cir_jax.errors import UserError
from cir_jax.training.stage import StageProtocol

IDLE = 3  # steps without any gradient, after which it is said


def check(config: ConfigDict, stage: StageProtocol, triplets: TrainingData) -> None:
    """Refuses data on which the loss is a constant, and warns of what is hardly meant.

    Args:
      config: of the run.
      stage: what it trains.
      triplets: all of them, numbered; of stage zero the captions with their images.

    Raises:
      UserError: a bank of one row, or a single target where a batch's targets are the negatives.
    """
    what = "captions" if stage.reads == "captions" else "triplets"
    if stage.needs_bank and len(triplets.images) < 2:
        raise UserError(
            f"the bank of stage {config.stage} would have {len(triplets.images)} row: with no "
            "other image to compare with, the loss is always 0 and nothing is learned; give data "
            "of at least 2 images"
        )
    rows = np.unique(triplets.target_id)
    if len(rows) == 1:
        name = triplets.triplets[0].target
        said = f"all {len(triplets.triplets):,} {what} have one and the same image, {name!r}"
        if not stage.needs_bank:
            raise UserError(
                f"{said}, so that a batch has no negative: its loss is the same whatever the model "
                "is; give data with at least 2 different targets"
            )
        progress.say(f"warning: {said}, as their target: a model learns to answer with it always")
    texts = (text for triplet in triplets.triplets for text in triplet.texts)
    first = next(texts, "")
    if len(triplets.triplets) > 1 and all(text == first for text in texts):
        progress.say(
            f"warning: all {len(triplets.triplets):,} {what} have the text {first!r}: a model "
            "cannot learn from it what a text changes"
        )
    if config.optim.learning_rate == 0:
        progress.say("warning: optim.learning_rate=0.0: the steps of this run change nothing")


class Watch:
    """Says, once, that steps of a run teach the model nothing.

    Args:
      batch: rows of a global batch.
    """

    def __init__(self, batch: int):
        self._batch = batch
        self._idle = 0
        self._said: set[str] = set()

    def batch(self, step: int, rows: dict[str, np.ndarray], needs_bank: bool) -> None:
        """Looks at the rows of a batch; a process that has only some of them cannot tell."""
        targets = rows["target_id"]
        if not needs_bank and len(targets) == self._batch > 1 and (targets == targets[0]).all():
            self._say(
                "targets",
                f"warning: all targets of the batch of step {step} are one image, so that no query "
                "has a negative and the step teaches nothing; use a larger batch, or data in which "
                "one image is the target of fewer triplets",
            )

    def step(self, step: int, values: dict[str, jax.Array]) -> None:
        """Looks at the metrics of a step."""
        self._idle = self._idle + 1 if float(values["gradient_norm"]) == 0 else 0
        if self._idle == IDLE:
            self._say(
                "gradient",
                f"warning: the gradient was exactly 0 in {IDLE} steps up to step {step}, at a loss "
                f"of {float(values['loss']):g}: nothing is learned. Either every query ranks its "
                "target first beyond all doubt, or there is nothing to compare it with, or "
                "loss.temperature is far too low",
            )

    def _say(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            progress.say(message)
