# SPDX-License-Identifier: Apache-2.0
"""Machines that are described: what they are called, and what is refused."""

import pytest

from cir_jax.errors import UserError
from tools import slices


@pytest.mark.parametrize("on, tpu", [("v5e:4x4", True), ("2xv5e:4x4", True), ("8xH100", False)])
def test_names(on, tpu):
    assert slices.is_tpu(on) == tpu


@pytest.mark.parametrize("on", ["", "v5e", "v5e-16", "4x4", "0xH100", "8x", "v9:2x2"])
def test_other_names_are_refused(on):
    with pytest.raises(UserError, match="is no set of devices; write a TPU slice by its chips"):
        slices.is_tpu(on)


def test_gpus_of_a_node_are_a_slice():
    gpus = slices.devices("2x4xH100")
    assert [d.slice_index for d in gpus] == [0] * 4 + [1] * 4
    assert [d.process_index for d in gpus] == list(range(8))
    nodes = slices.devices("2x4xH100", processes_per_gpu=False)
    assert [d.process_index for d in nodes] == [0] * 4 + [1] * 4


def test_a_slice_needs_a_process_with_libtpu(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match="start it with the environment variables"):
        slices.devices("v5e:4x4")
