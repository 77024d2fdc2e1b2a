# SPDX-License-Identifier: Apache-2.0
"""A run without a model, for faults: one all-reduce a step. It is a script: `FAULT PROCESS`.

What goes wrong goes wrong in one process, before its sixth step.
"""

import contextlib
import os
import signal
import sys
import time

import jax
import numpy as np

from cir_jax.runtime import comparison, distributed, interrupts, supervision, watchdog
from cir_jax.runtime.limits import Limits

STEPS = 40


def go_wrong(fault):
    if fault == "raise":
        raise MemoryError("no memory")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "stuck":
        time.sleep(1000)
    if fault == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if fault == "term in evaluation":  # the others are in the next step, and wait
        watchdog.progress("evaluation")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1000)


@contextlib.contextmanager
def announced():
    """As a run does whose checkpoints are closed when it ends."""
    try:
        yield
    except BaseException as error:
        supervision.current().announce(error)
        raise


def run(fault, chosen):
    """Steps; the one after which it was stopped, else STEPS."""
    stuck = 4 if fault == "stuck" else 60
    distributed.initialize(Limits(connect=60, lost=6, stuck=stuck, compiling=60, grace=10))
    differs = fault == "differ" and chosen
    comparison.check("run", {"config seed": "8" if differs else "7", "version of jax": "1"})
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    whole, split = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in ((), ("data",))
    )
    total = jax.jit(lambda x: x.sum(), out_shardings=whole)
    ones = jax.make_array_from_callback(
        (jax.device_count(),), split, lambda _: np.ones(1, np.float32)
    )
    with announced(), interrupts.StopRequest() as stop:
        for step in range(1, STEPS + 1):
            watchdog.progress("read", step)
            if step == 6 and chosen:
                go_wrong(fault)
            watchdog.progress("step")
            assert float(total(ones)) == jax.device_count()
            time.sleep(0.1)
            if stop.now(step):
                return step
    return STEPS


if __name__ == "__main__":
    with supervision.command("stub"):
        step = run(sys.argv[1], sys.argv[2] == os.environ["CIR_JAX_PROCESS"])
        print("ended after step", step, flush=True)
    sys.exit(0 if step == STEPS else supervision.STOPPED)
