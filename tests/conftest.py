# SPDX-License-Identifier: Apache-2.0
"""Hard defaults for every test: eight CPU devices, no silent broadcasting, no silent warnings."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The programs of tests are tiny and run a few times: what costs is compiling them well.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
).strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
