# SPDX-License-Identifier: Apache-2.0
"""The stage-two benchmark runs at a tiny size and prints its result; nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "flags",
    [
        ("--tower", "tiny-vit"),
        ("--model", "sprc", "--tower", "eva-32-16-w32-l1-h2_qformer-w32-l2-h2-q32_d16"),
    ],
)
def test_stage2(flags):
    command = [sys.executable, "tools/bench.py", "stage2", "--repeats", "1", *flags]
    command += ["--batch", "4", "--rows", "64"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "stage2" and result["tokens"] == 24
    assert result["times_faster"] > 0
