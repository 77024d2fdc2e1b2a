# SPDX-License-Identifier: Apache-2.0
"""The programs that a run compiles: each is one that it needs, and none comes twice."""

from collections import Counter

import jax
import pytest

from cir_jax.training import train
from tests import runs

COMPILED = "/jax/core/compile/backend_compile_duration"
NEEDED = (
    *("stage", "_threefry_seed"),  # the key of the seed
    *("draw", "init_fn", "convert_element_type"),  # parameters, moments, the count of steps
    "update",  # the step: once for each length of text, here one
    *("image", "compose"),  # the golden vectors of the report
)
# Orbax cuts what several devices hold alike into a part for each; none on one device.
CUTS = "slice"


@pytest.fixture
def compiled():
    """Counts programs by the names of their functions."""
    found, listens = Counter(), [True]

    def note(event, seconds, fun_name="", **_):
        if listens and event == COMPILED:
            found[fun_name] += 1

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    listens.clear()


def test_programs_of_a_run(compiled, tmp_path):
    root = runs.write_fashioniq(tmp_path / "data")
    changes = ("steps=6", "eval.benchmark=none", "data.text_lengths=(16,)")
    train.train(runs.tiny(tmp_path / "run", root, *changes))
    del compiled[f"jit({CUTS})"]
    assert compiled == Counter(f"jit({name})" for name in NEEDED)
