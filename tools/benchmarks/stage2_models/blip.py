# SPDX-License-Identifier: Apache-2.0
"""BLIP4CIR's step of stage two: BERT looks at the reference's tokens.

The released step copies the bank and the references of its batch, 577 x 768 values each, to the
device. The network is that of `tools.torch_models.blip4cir`, and drops nothing.
"""

from collections.abc import Callable
from typing import Any

from cir_jax.towers.blip import sizes
from tools.benchmarks.stage2_models.contract import EAGER, Problem, Way

CONFIG = "blip:fashioniq,stage=2"
# A quarter of BERT's width and half of its layers, and the tokens of an image of 384 pixels.
TOWER = "vit-384-16-w192-l1-h3_med-w192-l6-h3_d256"
ROWS = 25_136  # images of FashionIQ's training triplets
TEMPERATURE = 0.03
PADDED = 22  # the released step pads to the longest text, and `texts` has none that is longer
FIRST, LAST, WORDS = 30523, 102, 30522  # [ENC], [SEP], and one above those of BERT
REFERENCE_SCALE = 10.0


def released(
    tower: str, problem: Problem, device: str = "cpu", way: Way = EAGER
) -> Callable[[], Any]:
    """The released step: bank and references copied at every step, the released AdamW."""
    import torch

    from tools.torch_models import blip4cir

    torch.manual_seed(0)
    with torch.device(device):
        model = blip4cir.query(sizes.find(tower), TEMPERATURE)
    optimizer = blip4cir.optimizer(model)
    text = torch.from_numpy(problem.ids).long().to(device)
    bank_of = way.bank(torch.from_numpy(problem.targets[:, 0]), device)
    references_of = way.bank(torch.from_numpy(problem.references), device)
    wanted = torch.from_numpy(problem.label).long().to(device)
    run = torch.compile(model.bank_loss) if way.compiled else model.bank_loss

    def one() -> Any:
        bank, references = bank_of(), references_of()
        with way.casting(device):
            loss = run(references, text, bank, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return one
