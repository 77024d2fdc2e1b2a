# SPDX-License-Identifier: Apache-2.0
"""The package: every module imports, the layout holds, and the built wheel works on its own."""

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cir_jax

HERE = Path(__file__).parents[1]
TOP = {
    "pyproject.toml", "README.md", "LICENSE", ".gitignore", ".ci", "cir_jax", "configs", "launch",
    "tests", "tools",
}  # fmt: skip
MODULES = [m.name for m in pkgutil.walk_packages(cir_jax.__path__, "cir_jax.")]


def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=HERE, capture_output=True, text=True)
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", MODULES)
def test_imports(name):
    assert importlib.import_module(name).__doc__


def test_every_folder_is_packaged():
    listed = (HERE / "pyproject.toml").read_text()
    packages = {n for n in MODULES if (HERE / n.replace(".", "/") / "__init__.py").is_file()}
    assert packages and all(f'"{n}"' in listed for n in packages)


def test_layout():
    files = tracked()
    if files:  # a checkout, not an unpacked archive
        assert {f.parts[0] for f in files} <= TOP
    sources = [p for d in ("cir_jax", "configs", "tools") for p in (HERE / d).rglob("*.py")]
    for path in sources:
        text = path.read_text()
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0"), path
        assert text.count("\n") <= 300, f"{path} is over 300 lines"
        assert path.stem not in ("utils", "common", "helpers"), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and path.parent.name != "configs":
                length = node.end_lineno - node.lineno + 1
                assert length <= 75, f"{path}: {node.name} has {length} lines"


def test_data_modules_do_not_import_jax():
    """Worker processes import them; a second jax in a worker takes the accelerator away."""
    code = (
        "import sys, pkgutil, importlib\n"
        "import cir_jax.data, cir_jax.positives\n"
        "for p in (cir_jax.data, cir_jax.positives):\n"
        "    for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.'):\n"
        "        importlib.import_module(m.name)\n"
        "assert 'cir_jax.data.pixels' in sys.modules\n"
        "print([m for m in ('torch', 'tensorflow') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_wheel_in_an_empty_environment(tmp_path):
    """Built, installed with the demo's packages and nothing else, and run from another folder."""

    def call(*command, **options):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, **options)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    call(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(HERE))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("configs/base.py", "configs/clip_sum.py", "data/vocabulary/NOTICE", "main.py"):
        assert f"cir_jax/{needed}" in names
    assert not [n for n in names if n.startswith(("tests", "configs", "tools"))]
    call(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    bin_folder = tmp_path / "venv" / "bin"
    call(str(bin_folder / "python"), "-m", "pip", "install", "-q", f"{wheel}[demo]")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    options = {"cwd": elsewhere, "env": clean | {"CIR_JAX_CACHE": str(tmp_path / "cache")}}
    cir_jax_command = str(bin_folder / "cir-jax")
    said = call(cir_jax_command, "demo", "--quick", **options)
    assert "stage two, bank of negatives" in said
    assert "data:image/png;base64," in (elsewhere / "demo/report.html").read_text()
    said = call(cir_jax_command, "train", "--config", "clip_sum:quicktest", **options)
    assert "20 steps of 16" in said
    assert (elsewhere / "runs/clip_sum-quicktest/results.json").is_file()
