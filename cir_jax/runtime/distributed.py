# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of a run. Must be called before anything asks jax for a device.

A single process needs nothing. Elsewhere the environment says where the others are:
  CIR_JAX_COORDINATOR=host:port CIR_JAX_PROCESSES=n CIR_JAX_PROCESS=i   any set of machines
  CIR_JAX_DISTRIBUTED=auto   Cloud TPU pods and Slurm, which jax recognises by itself
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import jax

from cir_jax import progress
from cir_jax.errors import UserError
from cir_jax.runtime import cluster, mesh, supervision
from cir_jax.runtime.limits import Limits
from cir_jax.runtime.relay import Relay

_VARIABLES = ("CIR_JAX_COORDINATOR", "CIR_JAX_PROCESSES", "CIR_JAX_PROCESS")
# jax's own heartbeat would abort a process without a reason; under a supervisor ours comes first.
NEVER = 7 * 24 * 3600

_joined: cluster.Cluster | None = None


def initialize(limits: Limits | None = None) -> None:
    """Connects this process with the others, if the environment says there are any.

    Within a command (`supervision.command`) faults of the others end this process, with the reason;
    in a program that uses the library jax's own time-outs stand.

    Args:
      limits: how long processes wait for each other; None for the defaults.

    Raises:
      UserError: a part of the description is missing or not a number, or process 0 is not there.
    """
    watcher = supervision.current()
    limits = limits or Limits()
    if watcher is not None:
        watcher.limits = limits
    found = _described(limits)
    if found is None:
        return
    address, count, index, devices = found
    # The service would take SIGTERM for itself and tell nobody.
    jax.config.update("jax_enable_preemption_service", False)
    options: dict[str, Any] = {"initialization_timeout": int(limits.connect)}
    broken: Callable[[], bool] = _never
    if watcher is not None:
        options |= {"heartbeat_timeout_seconds": NEVER}
        if index:
            relay = Relay(address, limits.connect)
            address, broken = relay.address, relay.is_lost
    try:
        jax.distributed.initialize(address, count, index, devices, **options)
    except RuntimeError as error:
        raise UserError(
            f"the {count} processes did not all reach process 0 at {found[0]} within "
            f"cluster.connect_seconds={limits.connect:g}: {str(error).splitlines()[0]}"
        ) from error
    progress.set_process(jax.process_index())
    mesh.compile_anew(jax.devices())
    join(limits, broken)
    if watcher is not None:
        watcher.cluster = _joined


def join(
    limits: Limits | None = None, broken: Callable[[], bool] | None = None
) -> cluster.Cluster | None:
    """The thread that talks to the other processes, started once; None if there are none."""
    global _joined
    if _joined is None and jax.process_count() > 1:
        say = _print if supervision.current() is None else _never
        which = jax.process_index(), jax.process_count()
        _joined = cluster.Cluster(client(), *which, limits or Limits(), broken or _never, say)
        _joined.start()
    return _joined


def client() -> Any:
    """The client of the coordination service of jax, whose key-value store has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _never(*_: object) -> bool:
    return False


def _print(text: str) -> None:
    progress.show(text, file=sys.stderr)


def _described(limits: Limits) -> tuple[str, int, int, Any] | None:
    """(address of process 0, processes, number of this one, its devices); None for a single one."""
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if os.environ.get("CIR_JAX_DISTRIBUTED") == "auto":
        return _detected(limits)
    if not given:
        return None
    missing = [name for name in _VARIABLES if name not in given]
    if missing:
        raise UserError(f"{', '.join(given)} set but not {', '.join(missing)}; set all three")
    count, index = (_number(name, given[name]) for name in _VARIABLES[1:])
    if not 0 <= index < count:
        raise UserError(f"CIR_JAX_PROCESS={index} is not below CIR_JAX_PROCESSES={count}")
    return (given["CIR_JAX_COORDINATOR"], count, index, None) if count > 1 else None


def _detected(limits: Limits) -> tuple[str, int, int, Any]:
    """What jax recognises by itself; asked for here because the relay needs the address."""
    from jax._src import clusters

    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(limits.connect)
    )
    address, count, index, devices = found
    if address is None or count is None or index is None:
        raise UserError(
            "CIR_JAX_DISTRIBUTED=auto, but this is no Cloud TPU, Slurm or MPI job that jax "
            f"recognises; set {', '.join(_VARIABLES)}"
        )
    return str(address), int(count), int(index), devices


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise UserError(f"{name}={text!r} is not a number; set it to 0, 1, 2, ...")
    return int(text)
