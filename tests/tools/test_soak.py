# SPDX-License-Identifier: Apache-2.0
"""The soak in short: disturbed runs end as one that is left alone, and a difference is seen."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import runs
from tools import soak

HERE = Path(__file__).parents[2]


def test_disturbed_runs_end_as_one_that_was_left_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "tools/soak.py", "--kills", "2", "--processes", "1", "--stages", "1",
         "--seed", "3", "--out", str(tmp_path)],
        cwd=HERE, env=runs.one_device(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["disturbances"] >= 2 and result["differences"] == 0
    assert sum(result["kinds"].values()) == sum(result["moments"].values()) >= 2


OUTCOME = {
    "step": 2,
    "metrics": [{"step": 1, "loss": 0.5}],
    "history": [],
    "best": 3.0,
    "arrays": {"trained/a": np.zeros(3, np.float32)},
}


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, ""),
        ({"step": 1}, "step are 1"),
        ({"metrics": []}, "metrics are []"),
        ({"best": 3.0000001}, "best are"),
        ({"arrays": {"trained/a": np.asarray([0, 0, -0.0], np.float32)}}, "1 arrays differ"),
        ({"arrays": {}}, "other names"),
    ],
)
def test_difference(change, said):
    found = soak.difference(OUTCOME, OUTCOME | change)
    assert said in found and bool(said) == bool(found)
