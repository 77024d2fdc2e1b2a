# SPDX-License-Identifier: Apache-2.0
"""launch/search_demo.sh, for real and small: from titles over clicks to a second training."""

import json
import socket
import subprocess
import sys
from pathlib import Path

from tests import runs

HERE = Path(__file__).parents[2]


def environment(folder):
    """What the script needs: an environment with this Python, in which nothing is to install."""
    venv = folder / "venv"
    (venv / "bin").mkdir(parents=True)
    for name, call in (("python", ""), ("cir-jax", "-m cir_jax.main ")):
        program = venv / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {call}"$@"\n')
        program.chmod(0o755)
    state = f'. "{HERE}/launch/environment.sh" && installed_state >"$VENV/.cir_jax-search-demo"'
    found = runs.one_device() | {"CIR_JAX_VENV": str(venv), "PYTHONPATH": str(HERE)}
    subprocess.run(["bash", "-c", state], env=found, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return found | {"PORT": str(free.getsockname()[1])}


def test_once_around(tmp_path):
    out = tmp_path / "out"
    command = ["bash", str(HERE / "launch/search_demo.sh"), "--quick", str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        cwd=tmp_path,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "shop: 96 pictures of 24 products" in said and "20 questions: " in said
    kept = {*(out / "cir/gallery.txt").read_text().split()}
    clicks = (out / "index/clicks/triplets.jsonl").read_text().splitlines()
    excluded = (out / "index/clicks/excluded.jsonl").read_text().splitlines()
    chosen = [json.loads(line) for line in clicks]
    assert len(chosen) > 5 and excluded
    for record in [*chosen, *map(json.loads, excluded)]:
        used = {record["reference"], record.get("target", record.get("excluded"))}
        assert not used & kept and record["source"] == "clicks"
    assert f"generated 304, clicks {len(chosen)}; 76 images" in said
    assert said.count("queries  gallery") == 2  # both are scored
