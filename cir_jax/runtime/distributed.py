# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of a run. Must be called before anything asks jax for a device.

A single process needs nothing. Elsewhere the environment says where the others are:
  CIR_JAX_COORDINATOR=host:port CIR_JAX_PROCESSES=n CIR_JAX_PROCESS=i   any set of machines
  CIR_JAX_DISTRIBUTED=auto   Cloud TPU pods and Slurm, which jax recognises by itself
"""

import os

import jax

from cir_jax import progress
from cir_jax.errors import UserError

_VARIABLES = ("CIR_JAX_COORDINATOR", "CIR_JAX_PROCESSES", "CIR_JAX_PROCESS")


def initialize() -> None:
    """Connects this process with the others, if the environment says there are any.

    Raises:
      UserError: a part of the description is missing or not a number.
    """
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if os.environ.get("CIR_JAX_DISTRIBUTED") == "auto":
        jax.distributed.initialize()
    elif given:
        missing = [name for name in _VARIABLES if name not in given]
        if missing:
            raise UserError(f"{', '.join(given)} set but not {', '.join(missing)}; set all three")
        count, index = (_number(name, given[name]) for name in _VARIABLES[1:])
        if not 0 <= index < count:
            raise UserError(f"CIR_JAX_PROCESS={index} is not below CIR_JAX_PROCESSES={count}")
        if count > 1:
            jax.distributed.initialize(given["CIR_JAX_COORDINATOR"], count, index)
    else:
        return
    progress.set_process(jax.process_index())
    _compile_anew()


def _compile_anew() -> None:
    """Leaves the cache of compiled programs alone where several processes have CPU devices.

    A program that comes from it takes its collectives in another order in each process: a run of
    two processes then trains on other numbers, or aborts in Gloo (jaxlib 0.10.2).
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise UserError(f"{name}={text!r} is not a number; set it to 0, 1, 2, ...")
    return int(text)
