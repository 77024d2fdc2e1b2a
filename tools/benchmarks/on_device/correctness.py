# SPDX-License-Identifier: Apache-2.0
"""Before anything is timed: does the device compute what a CPU computes?

Encoders in float32 and in bfloat16 against the CPU device of the same process, a curve of losses
against the CPU's, a run that is stopped and resumed, and the message where memory runs out. Each
check says what it found, the most that it may be, and whether it holds.
"""

import contextlib
import math
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cir_jax import config as configs
from cir_jax import contract
from cir_jax.runtime import memory
from cir_jax.runtime import mesh as meshes
from cir_jax.training import memory as advice
from cir_jax.training import setup as setups
from cir_jax.training import state as states
from cir_jax.training import train
from tools.benchmarks.on_device import cases
from tools.benchmarks.on_device.bench import Bench
from tools.benchmarks.on_device.blocks import Clock
from tools.benchmarks.on_device.cases import Case
from tools.benchmarks.on_device.workload import Workload

# Of the largest value. A product of float32 may be one of bfloat16 on a TPU and of TF32 on a GPU,
# unless the highest precision is asked for.
ALLOWED = {"float32, highest": 2e-5, "float32": 3e-2, "bfloat16": 6e-2}
CURVE = 2e-3  # of a loss, in float32 at the highest precision, after all steps
_PARITY = Case("parity", "clip_sum:folder,stage=1", "ViT-B/32", cases.TINY_CLIP, 8)
_LEARNS = (
    Case("curve of stage one", "clip_sum:folder,stage=1", "tiny-vit", cases.TINY_CLIP, 16),
    Case("curve of stage two", "clip_sum:folder,stage=2", "tiny-vit", cases.TINY_CLIP, 16, 1000),
)
_DETERMINISTIC = "XLA_FLAGS=--xla_gpu_deterministic_ops=true"


def run(bench: Bench, clock: Clock) -> dict[str, Any]:
    """All checks; {"checks": name -> {"found", "allowed", "holds", ...}, "wrong": names}.

    Args:
      bench: where.
      clock: of this part.
    """
    checks: dict[str, dict[str, Any]] = parity(bench)
    for case in _LEARNS:
        checks[case.name] = curve(case, bench)
    checks["memory that is not there"] = exhausted(bench)
    checks["stopped and resumed"] = resumed(bench)
    return {"checks": checks, "wrong": [name for name, one in checks.items() if not one["holds"]]}


def parity(bench: Bench) -> dict[str, dict[str, Any]]:
    """Reference, target and query of random images and texts, on the device and on the CPU."""
    base = cases.load(_PARITY, bench.scale, str(bench.data), str(bench.folder / "unused"))
    plain = ("model.attention=xla", "model.dtype=float32")
    exact = contract.build(_model(base, *plain))
    rng = np.random.default_rng(0)
    params = {path: np.asarray(x) for path, x in exact.init(0).items()}
    side, batch = exact.image_size, cases.batch(_PARITY, bench.scale)
    pixels = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
    text = np.zeros((batch, 16), np.int32)
    text[:, :9] = rng.integers(1, 40_000, (batch, 9))
    text[:, 0], text[:, 9] = 49406, 49407  # CLIP's start and end
    with jax.default_matmul_precision("highest"):
        truth = _encoded(exact, params, pixels, text, bench.other)
        highest = _encoded(exact, params, pixels, text, bench.device)
    small = contract.build(_model(base, "model.dtype=bfloat16"))
    found = {
        "float32, highest": highest,
        "float32": _encoded(exact, params, pixels, text, bench.device),
        "bfloat16": _encoded(small, params, pixels, text, bench.device),
    }
    return {
        f"encoders in {name}": _check(_far(truth, rows), ALLOWED[name])
        | {"attention": (small if name == "bfloat16" else exact).config.attention}
        for name, rows in found.items()
    }


def _model(config: Any, *changes: str) -> Any:
    return configs.override(config.copy_and_resolve_references(), changes).model


def _encoded(
    functions: contract.Functions,
    params: dict[str, np.ndarray],
    pixels: np.ndarray,
    text: np.ndarray,
    device: jax.Device,
) -> list[np.ndarray]:
    def rows(params: Any, pixels: jax.Array, text: jax.Array) -> tuple[jax.Array, ...]:
        reference = functions.reference(params, pixels, text)
        query = functions.compose(params, reference, text)
        return reference, functions.target(params, pixels), query

    found = jax.jit(rows)(*jax.device_put((params, pixels, text), device))
    return [np.asarray(x, np.float32) for x in found]


def _far(truth: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest difference of any, as a share of the largest value."""
    pairs = zip(truth, found, strict=True)
    far = float(np.max([np.abs(a - b).max() / np.abs(a).max() for a, b in pairs]))
    return far if np.isfinite(far) else math.inf  # `max` would pass over what is no number


def _check(found: float, allowed: float, **more: Any) -> dict[str, Any]:
    return {"found": _told(found), "allowed": allowed, "holds": found <= allowed, **more}


def _told(far: float) -> float | str:
    """As JSON has it."""
    return far if math.isfinite(far) else "not finite"


def curve(case: Case, bench: Bench) -> dict[str, Any]:
    """Losses of the same steps on the device and on the CPU, in float32."""
    # With a small epsilon Adam's first steps are signs, which rounding turns where all is zero.
    changes = ("model.dtype=float32", "model.attention=xla", "optim.epsilon=1e-3",
               "optim.learning_rate=1e-3")  # fmt: skip
    losses = []
    for device in (bench.other, bench.device):
        config = cases.load(
            case, bench.scale, str(bench.data), str(bench.folder / "unused"), *changes
        )
        with jax.default_matmul_precision("highest"):
            work = Workload(config, _alone(device), cases.rows(case, bench.scale))
            losses.append(work.losses(bench.scale.curve))
    theirs, ours = (np.asarray(each) for each in losses)
    far = float((np.abs(ours - theirs) / np.abs(theirs)).max())
    far = far if np.isfinite(far) else math.inf
    return _check(far, CURVE, steps=len(ours), first=float(ours[0]), last=float(ours[-1]))


def _alone(device: jax.Device) -> Mesh:
    return meshes.make(1, 1, [device])


def exhausted(bench: Bench) -> dict[str, Any]:
    """What is said where the memory runs out, and whether the device computes afterwards."""
    case = _LEARNS[0]
    config = cases.load(case, bench.scale, str(bench.data), str(bench.folder / "unused"))
    setup = setups.assemble(setups.resolve(config), bench.mesh)
    message = ""
    try:
        with advice.guard(setup), jax.default_device(bench.device):
            # More than the address space of a process: nothing can lend it.
            jax.block_until_ready(jnp.zeros((2**20, 2**28), jnp.float32))
    except memory.OutOfMemory as error:
        message = str(error)
    four = jax.device_put(jnp.asarray([1.0, 3.0]), bench.device).sum()
    said = "out of memory" in message and f"(now batch={config.batch})" in message
    return {"found": message, "allowed": "a sentence", "holds": said and float(four) == 4.0}


def resumed(bench: Bench) -> dict[str, Any]:
    """A run of four steps, and one that ends after two and goes on: the same, bit for bit.

    Where a device adds in another order each time, two runs that nobody stops differ as well; then
    this says so, and cannot say more.
    """
    whole, halves = bench.folder / "whole", bench.folder / "halves"
    for folder, steps in ((whole, 4), (halves, 2), (halves, 4)):
        _train(bench, folder, steps)
    one = _kept(bench, whole)
    far = _apart(one, _kept(bench, halves))
    found: dict[str, Any] = {"found": _told(far), "allowed": 0.0, "holds": far == 0.0}
    if far:
        _train(bench, bench.folder / "again", 4)
        again = _apart(one, _kept(bench, bench.folder / "again"))
        if 0 < again < math.inf:
            found["holds"] = far <= 10 * again
            found["note"] = f"two whole runs differ by {again:.1e}; {_DETERMINISTIC} says more"
    return found


def _train(bench: Bench, folder: Path, steps: int) -> None:
    """A run, up to so many steps in all."""
    config = cases.load(_LEARNS[0], bench.scale, str(bench.data), str(folder))
    config = configs.override(config, [f"steps={steps}", "checkpoint.every_steps=2"])
    # A run takes all devices that there are; here one is measured.
    alone = mock.patch.object(meshes, "make", lambda *_, **__: bench.mesh)
    with contextlib.redirect_stdout(sys.stderr), alone:
        result = train.train(config)
    assert result["step"] == steps, f"the run in {folder} stands at step {result['step']}"


def _kept(bench: Bench, folder: Path) -> list[np.ndarray]:
    """Parameters and moments in the newest checkpoint of a run."""
    config = cases.load(_LEARNS[0], bench.scale, str(bench.data), str(folder))
    setup = setups.assemble(setups.resolve(config), bench.mesh)
    with contextlib.redirect_stdout(sys.stderr):
        state, _ = states.start(setup, setups.read_data(setup))
    assert state.step, f"there is no checkpoint in {folder}"
    return [np.asarray(x) for x in jax.tree.leaves((state.trained, state.optimizer))]


def _apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest difference of any value; 0 if all bits are the same."""
    if all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True)):
        return 0.0
    pairs = zip(one, other, strict=True)
    far = max(float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) for a, b in pairs)
    return far if far > 0 and np.isfinite(far) else math.inf
