# SPDX-License-Identifier: Apache-2.0
"""launch/tpu_worker.sh: which Python it takes, what it prints with --dry-run."""

import pytest

from tests.launch import calls

# Ubuntu 22.04: python3 is 3.10; a 3.11 is made by uv or comes with the deadsnakes archive.
UV = """#!/usr/bin/env bash
echo "uv $*" >>"$LOG"
case "$*" in
  "python install 3.11") [ ! -f "$HOME/no_uv" ] ;;
  "python find 3.11") cp "$HOME/python3.11" "$HOME/made" && echo "$HOME/made" ;;
esac
"""
SUDO = """#!/usr/bin/env bash
echo "sudo $*" >>"$LOG"
case "$*" in
  *" install "*python3.11-venv) cp "$HOME/python3.11" "$BIN/python3.11" ;;
esac
"""


@pytest.fixture
def ubuntu(tmp_path, bare_path):
    """Runs `install` where only an old Python is; returns its result and what was called."""
    root = calls.copy_checkout(tmp_path / "checkout")
    bin = tmp_path / "bare"
    for name in ("env", "mkdir", "cp", "rm", "touch", "hostname"):
        (bin / name).symlink_to(f"/usr/bin/{name}")
    old = calls.PYTHON.replace("${OLD:-0}", "1")
    calls.program(bin / "python3", old)
    calls.program(bin / "uv", UV)
    calls.program(bin / "sudo", SUDO)
    calls.program(tmp_path / "python3.11", calls.PYTHON)
    log = tmp_path / "log"
    environment = {"PATH": bare_path, "HOME": str(tmp_path), "BIN": str(bin), "LOG": str(log),
                   "PYTHON": ""}  # fmt: skip

    def run(*arguments):
        done = calls.call("tpu_worker.sh", "install", *arguments, root=root, **environment)
        return done, log.read_text() if log.exists() else ""

    return run


def test_uv_makes_a_python(ubuntu, tmp_path):
    done, said = ubuntu()
    assert done.returncode == 0, done.stderr
    assert "uv python install 3.11" in said and "sudo" not in said
    assert f"-m venv {tmp_path}/checkout/.venv" in said and "cir_jax[tpu]" not in said
    assert "checkout[tpu]" in said


def test_deadsnakes_where_uv_gives_none(ubuntu, tmp_path):
    (tmp_path / "no_uv").touch()
    done, said = ubuntu()
    assert done.returncode == 0, done.stderr
    assert "sudo add-apt-repository -y ppa:deadsnakes/ppa" in said
    assert "install -y -qq python3.11 python3.11-venv" in said and "checkout[tpu]" in said


def test_what_would_be_installed(ubuntu):
    done, said = ubuntu("--dry-run")
    assert done.returncode == 0, done.stderr
    for step in ("uv python install 3.11", "python3.11 -m venv", "pip install"):
        assert step in done.stdout
    assert "uv" not in said


def test_a_release_candidate_is_not_taken(tmp_path, bare_path):
    """The python3.11 of Ubuntu 22.04's own archive."""
    calls.program(
        tmp_path / "bare/python3.11",
        '#!/bin/sh\n[ "${2#*final}" = "$2" ] || exit 1\necho "$@" >>"$LOG"\n',
    )
    done = calls.call("demo.sh", PATH=bare_path, PYTHON="", CIR_JAX_VENV=str(tmp_path / "venv"))
    assert done.returncode == 2 and "no Python 3.11 or newer found" in done.stderr


@pytest.mark.parametrize(
    "arguments, printed",
    [
        (["install", "--dry-run"], "checkout\\[tpu\\]"),
        (["mount", "photos", "--dry-run"], "gcsfuse --implicit-dirs"),
        (["start", "--dry-run", "one", "", "--", "train"], ".venv/bin/cir-jax train"),
        (["log", "--dry-run"], "tail -n 100 -F"),
        (["stop", "--dry-run"], "kill -TERM"),
        (["kill", "--dry-run"], "kill -KILL"),
    ],
)
def test_dry_run(arguments, printed, tmp_path):
    root = calls.copy_checkout(tmp_path / "checkout")
    done = calls.call("tpu_worker.sh", *arguments, root=root)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    assert not (root / ".venv").exists() and not (root / "run").exists()
