# SPDX-License-Identifier: Apache-2.0
"""What is measured, at which size: on a device, and where only the way is walked."""

from dataclasses import dataclass

from ml_collections import ConfigDict

from cir_jax import config as configs
from tools.benchmarks import surroundings

TINY_CLIP = "vit-32-16-w32-l1-h1_text-w32-l1-h1_d16"
_TINY_RESNET = "resnet-64-1.1.1.1-w8-h4_text-w32-l1-h1_d16"
_TINY_BLIP = "vit-32-16-w32-l1-h2_med-w32-l1-h2_d16"
_TINY_SPRC = "eva-32-16-w32-l1-h2_qformer-w32-l2-h2-q32_d16"
TEXT = 32  # tokens that texts of stage one are padded to, so that they are one program


@dataclass(frozen=True)
class Case:
    """A config whose step is measured.

    Attributes:
      name: of the part.
      config: "clip_sum:folder,stage=1".
      tower: its size.
      tiny: the size of a dry run.
      batch: triplets of a step, so few that 50 steps are a few seconds.
      rows: images in the bank; 0 in stage one.
      peer: whose step it is in PyTorch: a function of `stage_one`, or a module of
        `tools.benchmarks.stage2_models`; "" of what is not timed.
    """

    name: str
    config: str
    tower: str
    tiny: str
    batch: int
    rows: int = 0
    peer: str = ""


# The rows of the banks are those of the images of FashionIQ, the batches of stage two the released.
VIT_L1 = Case("stage one ViT-L/14", "clip_sum:folder,stage=1", "ViT-L/14", TINY_CLIP, 32, 0,
              "clip_sum")  # fmt: skip
VIT_B1 = Case("stage one ViT-B/16", "clip_sum:folder,stage=1", "ViT-B/16", TINY_CLIP, 64, 0,
              "clip_sum")  # fmt: skip
RN1 = Case("stage one RN50x4", "clip_sum:folder,stage=1", "RN50x4", _TINY_RESNET, 64, 0,
           "clip_sum")  # fmt: skip
BLIP1 = Case("stage one BLIP", "blip:folder,stage=1", "blip-base", _TINY_BLIP, 32, 0, "blip")
SPRC1 = Case("stage one SPRC", "sprc:folder,stage=1", "blip2-vit-g", _TINY_SPRC, 16, 0, "sprc")
RN2 = Case("stage two RN50x4", "clip_sum:folder,stage=2", "RN50x4", _TINY_RESNET, 256, 25_136,
           "clip_sum")  # fmt: skip
VIT_L2 = Case("stage two ViT-L/14", "clip_sum:folder,stage=2", "ViT-L/14", TINY_CLIP, 256, 25_136,
              "clip_sum")  # fmt: skip
VIT_B2 = Case("stage two ViT-B/16", "clip_sum:folder,stage=2", "ViT-B/16", TINY_CLIP, 256, 25_136,
              "clip_sum")  # fmt: skip
BLIP2 = Case("stage two BLIP", "blip:folder,stage=2", "blip-base", _TINY_BLIP, 128, 25_136,
             "blip")  # fmt: skip
SPRC2 = Case("stage two SPRC", "sprc:folder,stage=2", "blip2-vit-g", _TINY_SPRC, 32, 25_136,
             "sprc")  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
      dry: tiny sizes, which say nothing of speed.
      steps: between two waits for the device.
      blocks: of so many steps, of each program.
      images: made photographs.
      triplets: made of them; twice the largest batch at least.
      curve: steps that are compared with those of the CPU.
    """

    dry: bool
    steps: int
    blocks: int
    images: int
    triplets: int
    curve: int


REAL = Scale(False, steps=50, blocks=5, images=256, triplets=1024, curve=20)
DRY = Scale(True, steps=2, blocks=1, images=8, triplets=16, curve=3)
DRY_BATCH, DRY_ROWS = 4, 64


def batch(case: Case, scale: Scale) -> int:
    """Triplets of a step."""
    return DRY_BATCH if scale.dry else case.batch


def rows(case: Case, scale: Scale) -> int:
    """Images in the bank."""
    return min(case.rows, DRY_ROWS) if scale.dry else case.rows


def tower(case: Case, scale: Scale) -> str:
    """The size of its encoders."""
    return case.tiny if scale.dry else case.tower


def load(case: Case, scale: Scale, root: str, workdir: str, *changes: str) -> ConfigDict:
    """The config of a case on the made data.

    Args:
      case: of `Case`.
      scale: how large.
      root: of the data.
      workdir: nothing is written there but by a training.
      changes: more of them.
    """
    common = (
        *(f"data.root={root}", f"workdir={workdir}", "eval.benchmark=none", "from_scratch=true"),
        *(f"model.tower={tower(case, scale)}", f"batch={batch(case, scale)}", "steps=100000"),
        *("data.pixels=decode", f"data.threads={max(surroundings.cores(), 2)}"),
    )
    # One program: a text of another length would be compiled within what is timed.
    stage = ("loss.chunk=0", "data.pack_texts=false", f"data.text_lengths=({TEXT},)")
    if case.rows:
        stage = ("loss.references=device", "loss.exclude_positives=false")
    return configs.load(case.config, [*common, *stage, *changes])
