# SPDX-License-Identifier: Apache-2.0
"""The built wheel works on its own, outside a checkout, with what it declares and nothing else."""

import email
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import runs

HERE = Path(__file__).parents[1]
ENVIRONMENT = {k: v for k, v in runs.one_device().items() if k != "PYTHONPATH"}


def call(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The file, built as a release is."""
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools keeps build/, and what was deleted since would come back from there.
    source = folder / "source"
    for name in ("cir_jax", "configs"):
        shutil.copytree(HERE / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HERE / name, source)
    call(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source))
    (file,) = folder.glob("*.whl")
    return file


def test_files_of_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    vocabulary = [f"data/vocabulary/{p.name}" for p in (HERE / "cir_jax/data/vocabulary").iterdir()]
    page = [f"serving/page/{p.name}" for p in (HERE / "cir_jax/serving/page").glob("*.*")]
    for needed in ("configs/base.py", "configs/clip_sum.py", "main.py", *vocabulary, *page):
        assert f"cir_jax/{needed}" in names
    assert {n.partition("/")[0] for n in names if ".dist-info/" not in n} == {"cir_jax"}
    assert any(n.endswith("licenses/LICENSE") for n in names)


def declared(lines, extra):
    """The installed distributions that requirements reach, each checked against its versions."""
    reached, waiting = {}, [(line, extra) for line in lines]
    while waiting:
        line, extra = waiting.pop()
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": extra}):
            continue
        found = metadata.distribution(need.name)
        assert need.specifier.contains(found.version, prereleases=True), line
        asked = reached.setdefault(found.metadata["Name"], (found, set()))[1]
        for new in {"", *need.extras} - asked:
            asked.add(new)
            waiting += [(other, new) for other in found.requires or ()]
    return [found for found, _ in reached.values()]


def linked(distributions, folder):
    """Installs distributions by links to their files: quick, and nothing else is there."""
    for distribution in distributions:
        for file in distribution.files:
            if ".." not in file.parts:  # scripts, which lie beside the interpreter
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).symlink_to(file.locate())


def requirements(wheel):
    """What the file itself says that it needs."""
    archive = zipfile.ZipFile(wheel)
    (described,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(archive.read(described)).get_all("Requires-Dist")


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An interpreter that sees the wheel, what the wheel and its demo declare, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", str(folder))
    python = str(folder / "bin" / "python")
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    linked(declared(requirements(wheel), "demo"), Path(call(python, "-c", show).strip()))
    pip = (sys.executable, "-m", "pip", "--python", python)
    call(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    call(*pip, "check")
    return python


# What the extra `serve` brings beside what is always there.
SERVE = ("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "anyio", "mcp",
         "mcp_types")  # fmt: skip


def test_every_module_imports_where_only_the_declared_is_installed(python, wheel, tmp_path):
    code = (
        "import importlib, importlib.util, pkgutil\n"
        "assert not any(map(importlib.util.find_spec, ['torch', 'pytest', 'matplotlib']))\n"
        "import cir_jax\n"
        "for module in pkgutil.walk_packages(cir_jax.__path__, 'cir_jax.'):\n"
        "    try:\n"
        "        importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as error:  # serving alone needs its extra\n"
        f"        known = error.name.partition('.')[0] in {SERVE}\n"
        "        assert module.name.startswith('cir_jax.serving.') and known, error\n"
        "    print(module.name)\n"
    )
    there = call(python, "-c", code, cwd=tmp_path, env=ENVIRONMENT).split()
    files = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".py")]
    assert len(there) == len(files) - 1 > 100  # the package itself is not listed


def test_demo_and_training_outside_a_checkout(python, tmp_path):
    options = {"cwd": tmp_path, "env": ENVIRONMENT | {"CIR_JAX_CACHE": str(tmp_path / "cache")}}
    command = str(Path(python).with_name("cir-jax"))
    said = call(command, "demo", "--quick", **options)
    assert "stage two, bank of negatives" in said
    assert "data:image/png;base64," in (tmp_path / "demo/report.html").read_text()
    flags = ["--config", "clip_sum:quicktest", "--set", "data.root=demo/openmoji"]
    said = call(command, "train", *flags, **options)
    assert "20 steps of 16" in said
    assert (tmp_path / "runs/clip_sum-quicktest/results.json").is_file()
