# SPDX-License-Identifier: Apache-2.0
"""The same maths in PyTorch: the released step, with autocast, and compiled.

Stage one (`stage_one`) takes a batch that lies on the device, stage two the steps of
`tools.benchmarks.stage2_models`. "released" computes in float32 and, in stage two, copies the bank
to the device at every step, as the released code does; the others have it there in bfloat16, and
compute in bfloat16 where autocast does. What is compiled is network and loss, in stage two for all
queries at once. Texts are padded as released, to 77 tokens in CLIP. Dropout, which BLIP and SPRC
train with, is a part of our steps only.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from cir_jax import contract
from tools.benchmarks import stage2
from tools.benchmarks.on_device import stage_one
from tools.benchmarks.on_device.bench import Bench
from tools.benchmarks.on_device.blocks import Program, timed
from tools.benchmarks.on_device.cases import Case
from tools.benchmarks.on_device.workload import Workload
from tools.benchmarks.stage2_models.contract import EAGER, Way

PREFIX = "PyTorch, "
WAYS = {
    "released": EAGER,
    "autocast": Way(autocast=True, copies=False),
    "compiled, autocast": Way(autocast=True, copies=False, compiled=True),
}


def device(bench: Bench) -> tuple[str, str]:
    """(PyTorch's name of the device, "") or ("", why there is nothing to compare with)."""
    dry = bench.scale.dry and bench.device.platform == "cpu"
    if bench.device.platform != "gpu" and not dry:
        return "", f"no PyTorch with CUDA beside a device of the platform {bench.device.platform!r}"
    try:
        import torch
    except (ImportError, OSError) as error:  # libraries of CUDA that do not go with jax's
        return "", f"PyTorch cannot be imported ({error})"
    if dry:
        return "cpu", ""
    if torch.cuda.is_available():
        return f"cuda:{bench.device.local_hardware_id or 0}", ""
    return "", f"PyTorch {torch.__version__} is here, and sees no CUDA"


def first(case: Case) -> dict[str, float]:
    """Program -> seconds that torch.compile takes in its first step, about."""
    return {PREFIX + name: 25.0 if case.rows else 50.0 for name, w in WAYS.items() if w.compiled}


def of(case: Case, work: Workload, bench: Bench) -> tuple[dict[str, Program], dict[str, str]]:
    """(programs, what is left out and why).

    Args:
      case: of the step.
      work: the same in jax.
      bench: where it runs.
    """
    place, missing = device(bench)
    if missing:
        return {}, {PREFIX + "all": missing}
    try:
        return _programs(case, work, place)
    except Exception as error:  # out of memory, say: ours are still measured
        first = (str(error).strip().splitlines() or [""])[0]
        return {}, {PREFIX + "all": f"it failed: {type(error).__name__}: {first[:300]}"}


def _programs(case: Case, work: Workload, place: str) -> tuple[dict[str, Program], dict[str, str]]:
    import torch

    if place == "cpu":  # a dry run, in which threads that wait for each other cost the most
        torch.set_num_threads(1)
    found, left_out = {}, {}
    make = _stage_two if case.rows else _stage_one
    step_of = make(case, work, place)
    for name, way in WAYS.items():
        if way.compiled and place == "cpu":
            left_out[PREFIX + name] = "torch.compile is measured on CUDA alone"
            continue
        found[PREFIX + name] = timed(step_of(way), lambda loss: _wait(loss, place))
    return found, left_out


def _wait(loss: Any, place: str) -> None:
    import torch

    if place != "cpu":
        torch.cuda.synchronize(place)
    assert loss is None or bool(torch.isfinite(loss)), "the loss in PyTorch is not finite"


def _stage_one(case: Case, work: Workload, place: str) -> Callable[[Way], Callable[[], Any]]:
    """The model with random parameters, on the first batch."""
    import torch

    torch.manual_seed(0)
    with torch.device(place):
        network, loss, optimizer = getattr(stage_one, case.peer)(work.setup.config.model)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
    text = work.host["text"]
    ids = np.zeros((work.batch, stage_one.PADDED[case.peer] or text.shape[1]), np.int64)
    ids[:, : text.shape[1]] = text
    tokens = torch.from_numpy(ids).to(place)
    images = []
    for name in ("reference_pixels", "target_pixels"):
        normal = np.asarray(contract.normalize(jnp.asarray(work.host[name])))
        images.append(torch.from_numpy(normal.transpose(0, 3, 1, 2).copy()).to(place))

    def step_of(way: Way) -> Callable[[], Any]:
        loss_of = torch.compile(loss) if way.compiled else loss

        def one() -> Any:
            with way.casting(place):
                loss = loss_of(images[0], tokens, images[1])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return one

    return step_of


def _stage_two(case: Case, work: Workload, place: str) -> Callable[[Way], Callable[[], Any]]:
    module = importlib.import_module(f"tools.benchmarks.stage2_models.{case.peer}")
    problem = stage2.problem_of(module, work.setup.functions, work.batch, work.rows)
    return lambda way: module.released(work.setup.config.model.tower, problem, place, way)


def bank_loss(rows: int, width: int, batch: int, dtype: str, bench: Bench) -> Program | None:
    """The loss against a bank, and its gradient for the queries; None where there is no PyTorch."""
    place, missing = device(bench)
    if missing:
        return None
    import torch

    kind = getattr(torch, dtype)
    with torch.device(place):
        bank = torch.nn.functional.normalize(torch.randn(rows, width), dim=-1).to(kind)
        query = torch.nn.functional.normalize(torch.randn(batch, width), dim=-1)
        label = torch.randint(0, rows, (batch,))

    def one() -> Any:
        leaf = query.clone().requires_grad_(True)
        logits = (leaf.to(kind) @ bank.T).float() / stage2.TEMPERATURE
        loss = torch.nn.functional.cross_entropy(logits, label)
        loss.backward()
        return loss.detach()

    return timed(one, lambda loss: _wait(loss, place))


def free() -> None:
    """Gives back what PyTorch keeps of the device's memory."""
    torch = sys.modules.get("torch")  # not imported for this
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
