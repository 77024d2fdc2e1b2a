# SPDX-License-Identifier: Apache-2.0
"""Stand-ins that the tests of several scripts use."""

import os
import shutil

import pytest

from tests.launch import calls


@pytest.fixture
def fake_python(tmp_path):
    """Environment in which the scripts find a stand-in for Python; its calls are in $LOG."""
    python = calls.program(tmp_path / "bin" / "python3.11", calls.PYTHON)
    return {
        "PYTHON": str(python),
        "CIR_JAX_VENV": str(tmp_path / "venv"),
        "LOG": str(tmp_path / "log"),
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }


@pytest.fixture
def bare_path(tmp_path):
    """A PATH with the commands every system has and nothing else."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("bash", "basename", "cat", "cksum", "dirname", "head", "mktemp", "sed"):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)
