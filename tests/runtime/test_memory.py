# SPDX-License-Identifier: Apache-2.0
"""How much memory there is, and running out of it: a sentence with advice, never a traceback."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.errors import UserError
from cir_jax.runtime import memory


def test_running_out_of_memory_is_advice():
    """Of a device and of the host, for real: no machine has 64 TB."""
    for allocate in (
        lambda: jnp.zeros(2**44, jnp.float32).block_until_ready(),
        lambda: np.ones(2**46, np.float32),
    ):
        with (
            pytest.raises(memory.OutOfMemory, match=r"out of memory while trying \(.*\). Use less"),
            memory.guard("trying", lambda: "Use less"),
        ):
            allocate()


def test_other_errors_pass_and_the_innermost_advice_counts():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.guard("a", str):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(UserError, match=r"while b .*inner"), memory.guard("a", lambda: "outer"):
        with memory.guard("b", lambda: "inner"):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm")


def test_memory_of_a_container(tmp_path):
    """The least limit of the groups around this process; without any, what the machine has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups, mount = tmp_path / "cgroup", tmp_path / "fs"
    assert memory.of_host(groups, mount) == total
    inner = mount / "a" / "b"
    inner.mkdir(parents=True)
    groups.write_text("0::/a/b\n")
    (inner / "memory.max").write_text("max\n")
    assert memory.of_host(groups, mount) == total
    (mount / "a" / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.max").write_text("5\n")  # outside of what is mounted
    assert memory.of_host(groups, mount) == 1_000_000
    older = mount / "memory" / "job"
    older.mkdir(parents=True)
    groups.write_text("5:cpu,cpuacct:/x\n4:memory:/job\n")
    (older / "memory.limit_in_bytes").write_text("2000\n")
    assert memory.of_host(groups, mount) == 2000


def test_a_program_holds_its_arguments_and_what_it_computes():
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    compiled = jax.jit(lambda x: (x @ x) @ x).lower(x).compile()
    four = 4 * 2**20
    assert 3 * four <= memory.of_program(compiled) <= 6 * four
    devices = jax.local_devices()
    assert memory.of_device(devices) == memory.of_host() // len(devices)
