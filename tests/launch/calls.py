# SPDX-License-Identifier: Apache-2.0
"""Calls launch scripts, with stand-ins for the programs that a test machine does not have."""

import json
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parents[2]
LAUNCH = HERE / "launch"

# A Python that makes environments of copies of itself and writes down how it was called.
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$LOG"
case "$*" in
  "-c "*) exit "${OLD:-0}" ;;
  -V) cat "$HOME/version" 2>/dev/null || echo "Python 3.11.0" ;;
  "-m venv "*)
    mkdir -p "${!#}/bin"
    rm -f "${!#}/bin/python"
    touch "${!#}/pyvenv.cfg"
    cp "$0" "${!#}/bin/python"
    for program in cir-jax ruff; do cp "${RUNS:-$0}" "${!#}/bin/$program"; done
    ;;
  "-m pip --version") [ ! -f "$HOME/no_pip" ] ;;
  "-m ensurepip") rm "$HOME/no_pip" ;;
  "-m pip install"*) [ ! -f "$HOME/no_network" ] ;;
esac
"""


# Arguments that a shell on the way would take apart, drop or run.
HARD = ["--init-from", "a b.pt", "it's.pt", "--set", 'data.root=/a $HOME/`pwd`/"x"/*', "--set",
        "modify.templates=('{target} && {reference}', '#;|<>\\!')", "--set", "data.root=", "",
        "--set", "model.name=für\nmich.py"]  # fmt: skip
# Notes each call, and fails if it is told to.
SHOW = """#!/usr/bin/env python3
import json, os, pathlib, sys
with pathlib.Path(__file__).with_name("calls").open("a") as file:
    file.write(json.dumps([os.environ.get("XLA_FLAGS", ""), sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("FAILS", 0)))
"""


def call(script, *arguments, root=HERE, **environment):
    """Runs launch/`script` of the checkout `root`."""
    return subprocess.run(
        ["bash", str(root / "launch" / script), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def program(path, text):
    """Writes an executable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def copy_checkout(root):
    """A checkout with nothing but what the scripts themselves read."""
    shutil.copytree(LAUNCH, root / "launch")
    shutil.copy(HERE / "pyproject.toml", root)
    return root


def shown(venv):
    """What the stand-in for cir-jax in `venv` was given, call by call: [XLA_FLAGS, arguments]."""
    return [json.loads(line) for line in (venv / "bin/calls").read_text().splitlines()]
