# SPDX-License-Identifier: Apache-2.0
"""The package: every module imports, the layout holds, what is imported is declared."""

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cir_jax

HERE = Path(__file__).parents[1]
TOP = {
    "pyproject.toml", "README.md", "LICENSE", "CITATION.cff", ".gitignore",
    ".pre-commit-config.yaml", ".ci", ".github", "cir_jax", "configs", "launch", "tests", "tools",
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
        assert text.count("\n") <= 450, f"{path} is over 450 lines"
        assert path.stem not in ("utils", "common", "helpers"), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and path.parent.name != "configs":
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path}: {node.name} has {length} lines"


def imported(folders):
    """{file: names of the modules it imports, wherever in the file}."""
    found = {}
    for path in (p for folder in folders for p in (HERE / folder).rglob("*.py")):
        names = found[path] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module)
    return found


SCALING = HERE / "cir_jax/generation"  # makes files of triplets, with models; no worker does


def test_data_modules_do_not_import_jax():
    """Worker processes import them; a second jax in a worker takes the accelerator away."""
    heavy = {"jax", "flax", "optax", "orbax", "torch", "tensorflow"}
    checked = 0
    for path, names in imported(["cir_jax/data", "cir_jax/datasets"]).items():
        if SCALING not in path.parents:
            assert not {n.partition(".")[0] for n in names} & heavy, path
            assert not any(n.startswith("cir_jax.generation") for n in names), path
            checked += 1
    assert checked > 20


def test_what_is_imported_is_declared():
    """A package that is only there because another brings it goes when that one changes."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    kinds = {
        *("cuda", "cuda12", "tpu", "torch", "caption", "demo", "heic", "serve", "milvus"),
        *("search-demo", "test", "fast", "sentencepiece"),
    }
    assert kinds == set(extras)
    other_names = {"pil": "pillow", "orbax": "orbax_checkpoint", "grpc": "grpcio"}
    declared = {
        re.match(r"[\w-]+", line)[0].replace("-", "_").lower()
        for line in [
            *project["dependencies"],
            *(
                line
                for kind in ("caption", "demo", "fast", "serve", "milvus", "torch", "sentencepiece")
                for line in extras[kind]
            ),
        ]
    }
    for path, names in imported(["cir_jax", "configs"]).items():
        tops = {n.partition(".")[0] for n in names} - sys.stdlib_module_names - {"cir_jax"}
        needed = {other_names.get(top.lower(), top.lower()) for top in tops}
        assert needed <= declared, f"{path} imports {needed - declared}"


def test_configs_are_found_from_anywhere(tmp_path):
    """They lie beside the package in a checkout and inside it once installed."""
    done = subprocess.run(
        [sys.executable, "-c", "from cir_jax import config; print(config.available())"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "clip_sum" in done.stdout
