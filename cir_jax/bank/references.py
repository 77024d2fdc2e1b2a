# SPDX-License-Identifier: Apache-2.0
"""The references of stage two: which ones are needed, how many bytes, and where they are kept.

A reference is what the query side reads of an image: 2.5 KB of CLIP RN50x4, 886 KB of BLIP
(577 x 768 in bfloat16), 49 KB of BLIP-2 for every text it is shown with. So there are three places:

    device      float32 rows, sharded over all devices
    disk        a bfloat16 file beside the bank; the input pipeline reads the rows of each batch
    recompute   nowhere: the batch carries the image, and the step encodes it with the index

Only images that some triplet refers from have a reference; targets are in the bank whatever is
chosen here. Source: section 3.3 of arXiv 2404.11317, where references are cached with the bank.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.contract import Functions
from cir_jax.errors import UserError
from cir_jax.files import gigabytes

# Place -> the batch field that a reference comes from.
FIELDS = {"device": "reference_row", "disk": "reference", "recompute": "reference_pixels"}
BYTES = {"device": 4, "disk": 2, "recompute": 0}  # of one number
BUDGET = 4e9  # bytes of references on a device that "auto" allows, or a quarter of its memory
_RELEASED_BATCH = 32  # triplets per batch in which the released code of BLIP-2 fills its store


@dataclass(frozen=True, eq=False)
class Plan:
    """Which references there are, numbered in the order of their images.

    Attributes:
      image: int64 [M] image of each reference, ascending.
      text: int64 [M] row of the token table that a reference reads; -1 where none reads a text.
      row_of: int32, the reference of each text, or of each image; -1 for none.
      by_text: True if `row_of` is of texts.
    """

    image: np.ndarray
    text: np.ndarray
    row_of: np.ndarray
    by_text: bool

    def __len__(self) -> int:
        return len(self.image)

    @property
    def reads_text(self) -> bool:
        """True if references depend on texts."""
        return bool((self.text >= 0).any())

    def rows(self, reference_id: np.ndarray, text_id: np.ndarray) -> np.ndarray:
        """int32 [b] the reference of each row of a batch, from its image and its text."""
        return self.row_of[text_id if self.by_text else reference_id]


def plan(data: Any, per_triplet: bool, reference_text: str = "per_triplet") -> Plan:
    """The references that the triplets of `data` need.

    Args:
      data: `cir_jax.data.pipeline.TrainingData`.
      per_triplet: references depend on the text.
      reference_text: "per_triplet", one for every text that a triplet can be shown with; or
        "last_caption", one for every image, see `last_texts`.
    """
    if per_triplet and reference_text == "per_triplet":
        owner = data.reference_id[data.triplet_of_text()].astype(np.int64)
        text = np.argsort(owner, kind="stable")  # texts of one image together: it is opened once
        row_of = np.empty(len(text), np.int32)
        row_of[text] = np.arange(len(text), dtype=np.int32)
        return Plan(owner[text], text, row_of, True)
    image = np.unique(data.reference_id).astype(np.int64)
    text = last_texts(data)[image] if per_triplet else np.full(len(image), -1, np.int64)
    row_of = np.full(len(data.images), -1, np.int32)
    row_of[image] = np.arange(len(image), dtype=np.int32)
    return Plan(image, text, row_of, False)


def last_texts(data: Any) -> np.ndarray:
    """int64 [N] the text that the released code fuses each image with, a row of the token table.

    That of the last triplet, generated ones at the end, in which the image is reference or target.
    Within 32 triplets, which the released code encodes at a time, being a target counts as later
    than being a reference. It draws one phrasing at random there; the first one is taken here.
    Images of no triplet have -1.
    """
    last = np.full(len(data.images), -1, np.int64)
    for first in range(0, len(data.triplets), _RELEASED_BATCH):
        part = slice(first, first + _RELEASED_BATCH)
        texts = data.text_start[:-1][part]
        for ids in (data.reference_id[part], data.target_id[part]):
            last[ids] = texts  # of an image that comes twice the last one stays
    return last


def check_texts(loss: ConfigDict, per_triplet: bool) -> None:
    """Raises UserError where `loss.reference_text` does not go with the model or with the place."""
    if loss.reference_text == "last_caption":
        if not per_triplet:
            raise UserError(
                "loss.reference_text=last_caption, but references of this model do not depend on "
                "texts; leave it at per_triplet"
            )
        if loss.references == "recompute":
            raise UserError(
                "loss.reference_text=last_caption with loss.references=recompute: a reference that "
                "is encoded anew reads the text of its own triplet; use disk or device"
            )


def choose_place(loss: ConfigDict, functions: Functions, rows: int, mesh: Mesh) -> str:
    """Where references lie: a key of FIELDS. Says what was chosen, and the sizes.

    Args:
      loss: section of the config.
      functions: the model.
      rows: M, number of references.
      mesh: the device mesh.
    """
    each = rows * int(np.prod(functions.reference_shape))
    on_device, allowed = each * BYTES["device"] / mesh.size, budget()
    place = loss.references
    if place == "auto":
        place = "device" if on_device <= allowed else "disk"
    shape = " x ".join(f"{n:,}" for n in (rows, *functions.reference_shape))
    progress.say(
        f"references: {shape}, "
        + {
            "device": f"{gigabytes(on_device)} on each device",
            "disk": f"{gigabytes(each * BYTES['disk'])} on disk",
            "recompute": "encoded anew in every step",
        }[place]
        + f" (loss.references={loss.references}; on devices they would take "
        f"{gigabytes(on_device)} of each, and auto allows {gigabytes(allowed)})"
    )
    if loss.reference_text == "last_caption":
        progress.say(
            "warning: loss.reference_text=last_caption fuses each reference with the text of "
            "another triplet, as the released code of BLIP-2 does; evaluation uses the right text"
        )
    return place


def budget() -> float:
    """Bytes of references that "auto" puts on a device; the same on every process."""
    limits = [(d.memory_stats() or {}).get("bytes_limit", 0) for d in jax.local_devices()]
    least = min([BUDGET, *(x / 4 for x in limits if x)])
    if jax.process_count() > 1:
        least = float(multihost_utils.process_allgather(np.float32(least)).min())
    return least
