# SPDX-License-Identifier: Apache-2.0
"""SPRC's step of stage two, as released: a loop over the batch, each query against the whole bank.

The network is that of `tools.torch_models.sprc`; dropout is off on both sides, as their random
numbers differ and would be a part of what is timed.
"""

from collections.abc import Callable
from typing import Any

from cir_jax.towers.blip2 import sizes
from tools.benchmarks.stage2_models.contract import EAGER, Problem, Way

CONFIG = "sprc:fashioniq,stage=2"
# A quarter of the Q-Former's width, the bank's 32 rows of 256 values as they are.
TOWER = "eva-28-14-w64-l1-h1_qformer-w192-l12-h3-q32_d256"
ROWS = 25_136  # images of FashionIQ's training triplets
TEMPERATURE = 0.05
PADDED = sizes.CONTEXT
FIRST, LAST, WORDS = 101, 102, 30522
REFERENCE_SCALE = 10.0


def released(
    tower: str, problem: Problem, device: str = "cpu", way: Way = EAGER
) -> Callable[[], Any]:
    """The released step: the bank copied at every step, one product of all its rows per query."""
    import torch

    from tools.torch_models import sprc

    torch.manual_seed(0)
    with torch.device(device):
        model = sprc.Sprc(sizes.find(tower))
        model.begin_stage_two(TEMPERATURE)
    optimizer = sprc.optimizer(model)
    text = torch.from_numpy(problem.ids).long().to(device)
    bank_of = way.bank(torch.from_numpy(problem.targets), device)
    references = torch.from_numpy(problem.references).to(device)
    wanted = torch.from_numpy(problem.label).long().to(device)

    def one_by_one(bank: Any) -> Any:
        query = model.query(references, text)
        loss = 0.0
        for each, label in zip(query, wanted, strict=True):
            logits = (bank @ each).amax(dim=1) / model.temp
            loss = loss + torch.nn.functional.cross_entropy(logits[None], label[None])
        return loss / len(query)

    def at_once(bank: Any) -> Any:  # the loop would be compiled as often as there are queries
        return model.stage_two(references, text, bank, wanted)

    run = torch.compile(at_once) if way.compiled else one_by_one

    def one() -> Any:
        bank = bank_of()
        with way.casting(device):
            loss = run(bank)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return one
