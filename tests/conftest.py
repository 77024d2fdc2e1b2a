# SPDX-License-Identifier: Apache-2.0
"""Hard defaults for every test: eight CPU devices, no silent broadcasting, no silent warnings."""

import contextlib
import ctypes
import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The programs of tests are tiny and run a few times: what costs is compiling them well. Eight
# devices on two busy cores may wait for each other longer than the 40 s after which XLA ends the
# process. The last flag takes the older, quicker way to kernels; jaxlib stops at it from 0.11 on.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
    + " --xla_cpu_use_fusion_emitters=false"
    * version("jaxlib").startswith("0.10.")
).strip()
# Workers, the processes that tests start, and later runs compile each program once.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cir_jax" / "programs"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

from cir_jax.runtime import mesh
from tests import programs

jax.config.update("jax_numpy_rank_promotion", "raise")
# A run gives the cache up as soon as it has several devices (`mesh.compile_anew`). Here they always
# are several, and most programs are for one of them.
programs.cache_those_of_one_device()
mesh.compile_anew = lambda devices: None

# What takes longest is started first, so that no worker is left alone with it at the end.
LONG = ("test_readme.py", "test_wheel.py", "test_models.py", "test_processes.py", "test_laws.py")


def pytest_sessionstart():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        programs.drop_oldest(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]), programs.LIMIT)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="module", autouse=True)
def drop_programs():
    """Compiled programs are kept as long as a process lives; no module needs those of another."""
    yield
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not everywhere is glibc
        ctypes.CDLL(None).malloc_trim(0)  # it keeps what is freed: gigabytes, after compiling
