# SPDX-License-Identifier: Apache-2.0
"""Imports run down the house without circles, and folders of plug-ins hold plug-ins only."""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
PACKAGE = "cir_jax"

# The rooms, from the ground up. A module imports from its own floor and from those below, wherever
# the import stands: in a function and under TYPE_CHECKING too.
FLOORS = (
    (
        *("errors", "files", "rules", "weight_rules", "params", "plugins", "progress", "keys"),
        *("config", "moved", "trust", "html_page", "version"),
    ),
    ("data",),
    ("servers",),
    ("runtime",),
    ("embedders",),
    ("datasets",),
    ("convert",),
    ("towers",),
    ("losses",),
    ("contract",),
    ("models",),
    ("bank",),
    ("generation",),
    ("weights",),
    ("retrieval",),
    ("serving",),
    ("evals",),
    ("training",),
    ("api",),
    ("__init__",),  # the public names
    ("commands",),
    ("main",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Folder of plug-ins -> what each module of it defines: one of these names, or all of a group.
PLUG_INS = {
    "models": ("Model",),
    "datasets.readers": ("gallery", "examine"),
    "datasets.importers": ("convert",),
    "evals.benchmarks": ("build",),
    "generation.captioners": ("Captioner",),
    "retrieval.stores": ("opened",),
    "training.stages": ("Stage",),
    "commands": (("add_arguments", "run"),),
}
# Modules that look others up by name: plug-ins, commands, the sizes that a plug-in names, public
# names, and configs, which are no part of the house.
LOOK_UP = {PACKAGE, *(f"{PACKAGE}.{name}" for name in ("plugins", "keys", "main", "config"))}


def modules(root):
    """{module name: its tree} of the package at `root`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join([root.name, *path.relative_to(root).with_suffix("").parts])
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(), str(path))
    return found


def is_lookup(node):
    called = getattr(node, "func", None)
    name = getattr(called, "attr", getattr(called, "id", ""))
    return isinstance(node, ast.Call) and name in ("import_module", "__import__")


def imports(name, tree, names):
    """The modules among `names` that `name` imports, anywhere in its file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relative to itself, line {node.lineno}"
            # What is imported from a package is a module of it, or a name in its __init__.
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {x if x in names else node.module for x in inside}
        elif is_lookup(node) and isinstance(node.args[0], ast.Constant):
            found.add(node.args[0].value)
    return {x for x in found if x.partition(".")[0] == name.partition(".")[0]}


def room(name):
    """The part of the package in which a module lies; the package itself is "__init__"."""
    return [*name.split("."), "__init__"][1]


def arrows(trees):
    """{module: modules it imports}; all of them are in `trees`."""
    found = {name: imports(name, tree, trees) for name, tree in trees.items()}
    missing = {(name, x) for name, others in found.items() for x in others if x not in trees}
    assert not missing, f"imports of modules that are not there: {missing}"
    return found


def running_up(found, floor):
    return sorted(
        f"{name} -> {x}" for name, others in found.items() for x in others
        if floor[room(x)] > floor[room(name)]
    )  # fmt: skip


def circle(found):
    """The modules of a circle of imports, or an empty list."""
    try:
        graphlib.TopologicalSorter(found).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


HOUSE = modules(HERE / PACKAGE)


def test_every_room_has_its_floor():
    assert {room(name) for name in HOUSE} == set(FLOOR)


def test_imports_run_down():
    found = arrows(HOUSE)
    assert sum(map(len, found.values())) > 300
    assert not running_up(found, FLOOR)


def test_imports_run_in_no_circle():
    assert not circle(arrows(HOUSE))


def test_no_room_is_over_a_fifth_of_the_house():
    lines = Counter()
    for path in (HERE / PACKAGE).rglob("*.py"):
        lines[path.relative_to(HERE / PACKAGE).parts[0]] += path.read_text().count("\n")
    [(largest, count)] = lines.most_common(1)
    assert count <= sum(lines.values()) / 5, f"{largest} has {count} of {sum(lines.values())} lines"


def test_only_plug_ins_are_looked_up_by_name():
    for name, tree in HOUSE.items():
        for node in ast.walk(tree):
            if is_lookup(node) and not isinstance(node.args[0], ast.Constant):
                assert name in LOOK_UP, f"{name}, line {node.lineno}"


@pytest.mark.parametrize(
    "text",
    [
        "from house.attic import box",
        "from house import attic",
        "import house.attic.box",
        "def f():\n    from house.attic.box import lid",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.attic",
        "import importlib\nimportlib.import_module('house.attic')",
    ],
)
def test_an_arrow_that_runs_up_is_found(text, tmp_path):
    root = written(tmp_path / "house", {"cellar.py": text, "attic/box.py": "import house.cellar"})
    found = arrows(modules(root))
    [arrow] = running_up(found, {"cellar": 0, "attic": 1})
    assert arrow in ("house.cellar -> house.attic", "house.cellar -> house.attic.box")
    assert not running_up(found, {"cellar": 0, "attic": 0})


def test_a_circle_is_found(tmp_path):
    first = {"a.py": "from house import b", "b.py": "def f():\n    import house.c", "c.py": ""}
    assert not circle(arrows(modules(written(tmp_path / "one" / "house", first))))
    second = first | {"c.py": "from house.a import x"}
    found = circle(arrows(modules(written(tmp_path / "two" / "house", second))))
    assert set(found) == {"house.a", "house.b", "house.c"}


def written(root, files):
    for name, text in {"__init__.py": "", "attic/__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def defined(tree):
    """The names that a module defines or imports at its top level."""
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(t.id for t in targets if isinstance(t, ast.Name))
    return found


@pytest.mark.parametrize("folder", PLUG_INS)
def test_folders_of_plug_ins_hold_plug_ins_only(folder):
    package = f"{PACKAGE}.{folder}"
    plug_ins = [name for name in HOUSE if name.rpartition(".")[0] == package]
    assert plug_ins
    for name in plug_ins:
        has = defined(HOUSE[name])
        markers = [(m,) if isinstance(m, str) else m for m in PLUG_INS[folder]]
        assert any(set(m) <= has for m in markers), f"{name} defines none of {PLUG_INS[folder]}"


def loaded(code):
    """The modules that are there after `code` ran in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        cwd=HERE, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_listing_plug_ins_imports_none_of_them():
    packages = [f"{PACKAGE}.{folder}" for folder in PLUG_INS]
    code = f"from cir_jax import plugins\nfor p in {packages}: assert plugins.available(p), p"
    there = loaded(code)
    assert not there & {"jax", "flax", "numpy", "torch", "PIL", "tensorflow_datasets"}
    assert not [m for m in there if any(m.startswith(f"{p}.") for p in packages)]


def test_importing_the_package_imports_the_ground_floor_alone():
    there = loaded(f"import {PACKAGE}")
    assert {room(m) for m in there if m.partition(".")[0] == PACKAGE} <= {"__init__", *FLOORS[0]}
    assert not there & {"jax", "flax", "numpy", "torch"}
