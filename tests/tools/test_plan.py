# SPDX-License-Identifier: Apache-2.0
"""Plans: parts are sums, pages hold together, and bad input says what to do.

One step is compiled for a TPU slice, in a process that has libtpu; GPUs are counted by shapes.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cir_jax.errors import UserError
from cir_jax.training import dry_run
from tests import readmes, runs
from tools import plan, slices
from tools.planning import (
    analysis,
    chips,
    compiled,
    datasets,
    floors,
    hlo,
    machines,
    measured,
    memory,
    page,
    recipes,
    remedies,
    traced,
)

HERE = Path(__file__).parents[2]
TABLE = 4 * 49408 * 96  # bytes of the token embedding of the tiny tower
QUICK = ("--config", "clip_sum:quicktest", "--triplets", "4000", "--images", "3953")


def planned(spec, on="2xH100", *changes, **options):
    return analysis.make(spec, on, analysis.Options(changes=changes, **options))


@pytest.fixture(scope="module")
def quick():
    return planned("clip_sum:quicktest", triplets=4000, images=3953, queries=10, gallery=500)


# --- memory -----------------------------------------------------------------------------------


def test_memory_is_that_of_a_dry_run(quick, tmp_path):
    """The same arithmetic, and its parts are the sum."""
    assert sum(quick.memory.parts.values()) == pytest.approx(quick.memory.step)
    told = dry_run.memory(quick.program.setup, quick.program.steps)
    assert all(quick.memory.parts[name] == size for name, size in told.items())
    made, data = runs.set_up(runs.tiny(tmp_path, runs.write_fashioniq(tmp_path / "x"), stage=2))
    said = dry_run.describe(made, data)
    size = dry_run.memory(made, data.steps, len(data.triplets.images))["bank"]
    assert f"{size / 1e3:,.1f} kB on each device" in said
    assert size == len(data.triplets.images) * made.functions.target_shape[1] * 4 / made.mesh.size


def test_rows_of_hosts():
    machine = machines.find("2x4xH100")
    program = analysis.build(
        "clip_sum:quicktest", machine, analysis.Options(triplets=99, images=99)
    )
    rows = analysis.host_rows(program.setup.mesh, 16)
    assert rows == {process: [(2 * process, 2 * process + 1)] for process in range(8)}


def test_what_does_not_fit_says_what_would(monkeypatch):
    """On a device that is too small for what a step keeps."""
    options = analysis.Options(
        changes=("batch=2048",), triplets=9000, images=900, chip={"memory": 1.5e9}
    )
    found = analysis.make("clip_sum:quicktest", "2xL4", options)
    assert found.memory.fits == "no"
    every = list(remedies.candidates(found))
    assert {("model.remat=layers",), ("loss.chunk=256",), ("mesh.model=2",)} <= set(every)
    tried = [("loss.chunk=3",), ("mesh.model=2",), ("loss.chunk=256",)]  # 3 does not divide
    monkeypatch.setattr(remedies, "candidates", lambda plan: tried)
    offered = remedies.find(found, options)
    assert [(one.changes, one.fits) for one in offered] == [(tried[2], True)]
    said = page.text(found, offered)
    assert "does not fit" in said and "--set loss.chunk=256  about" in said
    changes = (*options.changes, *tried[2])
    better = analysis.make(
        "clip_sum:quicktest", "2xL4", dataclasses.replace(options, changes=changes)
    )
    assert better.memory.fits == "yes" and better.memory.step < found.memory.step


def test_a_step_that_the_compiler_refuses(quick):
    """Nothing is known but what it needs at least, and the page says whose word that is."""
    done = compiled.Compiled(refused=70e9)
    program, chip = quick.program, quick.machine.chip
    found = memory.find(program, chip, done=done)
    assert found.step >= 70e9 and found.fits == "no" and found.compiled
    said = page.text(dataclasses.replace(quick, memory=found, refused=done.refused))
    assert "which the compiler of H100 refuses" in said
    assert "does not fit; the compiler says 70.0 GB at least" in said


def test_what_the_compiler_said_is_kept():
    rate = "%0 = stablehlo.constant dense<{}> : tensor<{}>"
    same = {compiled.essence(rate.format(x, "f32")) for x in ("2.000000e-05", "-1.5e+02")}
    assert len(same) == 1
    for number, kind in (("1.000000e+00", "f32"), ("0.000000e+00", "f32"), ("3", "i32")):
        assert compiled.essence(rate.format(number, kind)) == rate.format(number, kind)
    one = hlo.Collective("all-reduce", "data", 4, 12, 3.5)
    done = compiled.Compiled(1.0, 2.0, 3.0, collectives=(one,), loops=("condition",))
    assert compiled.from_json(json.loads(json.dumps(dataclasses.asdict(done)))) == done


# --- floors -----------------------------------------------------------------------------------


def test_floors_by_hand(quick):
    chip, parts = chips.find("h100"), quick.memory.parts
    assert floors.seconds_of({traced.BFLOAT16: 989e12, traced.HIGHEST: 67e12}, quick.machine) == 2
    # Two GPUs have 24 cores; one process of 4 threads; 2 images of each triplet.
    assert quick.floors.step["decoding"] == 0  # they are kept
    assert floors.decoding(80, quick.program, quick.machine, floors.Speeds(decode=1)) == 20
    assert floors.decoding(19_000, quick.program, quick.machine, floors.Speeds(1e-9)) == 10
    trained = parts["parameters that train"]
    [sums] = [c for c in quick.collectives if c.kind == "all-reduce"]
    # Of the table of tokens the gradients of the rows that a batch reads cross.
    summed = trained - TABLE
    assert sums.bytes == summed and sums.sent == summed  # 2 (n - 1) / n of it, n = 2
    rest = sum(c.sent for c in quick.collectives) - summed
    assert 4 * 16 * 32 * 96 / 2 < rest < TABLE / 16
    assert quick.floors.step["network"] == pytest.approx((summed + rest) / chip.link)
    assert quick.floors.bound == "host" and quick.seconds > 20 * floors.LOOP
    assert quick.cost(2.0) == pytest.approx(quick.seconds / 3600 * 2 * 2.0)


def test_nodes_exchange_over_their_network():
    """1 GB among 16 GPUs: 2 x 15/16 of it over the links, 2 x 1/2 of it from each of two nodes."""
    sums = [hlo.Collective("all-reduce", "data", 16, 1, 1e9)]
    nodes = machines.find("2x8xH100", network=50e9)
    assert floors.crossing(sums, nodes) == 1e9 / 50e9
    assert floors.crossing(sums, machines.find("16xH100")) == 2 * 15 / 16 * 1e9 / 450e9


def test_the_facts_of_chips():
    """What nobody may mistype: orders of magnitude, and what follows from each other."""
    for chip in chips.CHIPS.values():
        assert 10e9 < chip.memory < 200e9 and 50e12 < chip.peak < 3e15, chip
        assert 250e9 < chip.bandwidth < 8e12 and chip.highest < chip.peak, chip
        assert 1e9 < chip.network <= 400e9 and 4 <= chip.cores <= 60 and chip.source, chip
    assert chips.find("tpu7x").per_chip == 2 and chips.find("h100").name == "H100"


def test_known_sizes_of_data():
    loaded = analysis.build("sprc:fashioniq,stage=2", machines.find("1xH200"), analysis.Options())
    assert loaded.counts.triplets == 18_000 and loaded.references == 72_000  # four texts each
    assert loaded.counts.images == 25_136 and loaded.place == "disk" and loaded.text == 32
    assert loaded.steps == 3 * (18_000 // 32)
    assert datasets.find(loaded.setup.config, queries=7).queries == 7


# --- the command ------------------------------------------------------------------------------


def test_a_page_of_gpus(capsys, tmp_path):
    table = tmp_path / "table.csv"
    flags = ["--on", "8xH100", "--price", "2.5", "--table", str(table)]
    assert plan.main([*QUICK, *flags, "--measured", "step_seconds=0.012"]) == 0
    said, told = capsys.readouterr()
    for line in ("8 x H100, 1 node of 8, 1 process", "an estimate by shapes", "by formula",
                 "<- the bound", "for 8 chips at 2.5 an hour each", "NVIDIA's data sheet",
                 "not measured yet", "all-reduce over data", "rows 0-15"):  # fmt: skip
        assert line in said, line
    assert "compiled for" not in said and "step_seconds 0.012, predicted" in told
    assert [row.measured for row in measured.read(table)] == [0.012]


def test_a_slice_is_compiled_for(tmp_path):
    """The whole command, in a process that has libtpu."""
    environment = os.environ | slices.environment() | {"CIR_JAX_CACHE": str(tmp_path)}
    command = [sys.executable, str(HERE / "tools/plan.py"), *QUICK, "--on", "v5e:2x4", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["compiled"] and found["fits"] == "yes" and found["mesh"]["data"] == 8
    gradients = found["memory"]["gradients"]
    [sums] = [c for c in found["collectives"] if c["kind"] == "all-reduce"]
    # Each gradient once, in float32, and little beside; of the table of tokens hardly any.
    reduced = gradients - TABLE
    assert reduced <= sums["bytes"] < 1.2 * reduced and sums["axes"] == "data"
    assert sum(c["bytes"] for c in found["collectives"]) - sums["bytes"] < TABLE / 4
    assert found["memory"]["activations"] > 0 and "compiling" in done.stderr
    [kept] = (tmp_path / "plans").iterdir()
    said = compiled.from_json(json.loads(kept.read_text()))
    assert {c.kind for c in said.collectives} == {c["kind"] for c in found["collectives"]}


def test_a_slice_starts_a_process_with_the_compiler(monkeypatch):
    started = []

    def run(command, env):
        started.append((command[1:], env["TPU_LIBRARY_PATH"]))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(slices, "environment", lambda: {"TPU_LIBRARY_PATH": "there"})
    monkeypatch.setattr(plan.subprocess, "run", run)
    assert plan.main([*QUICK, "--on", "v5e:2x2"]) == 1
    assert started == [([plan.__file__, *QUICK, "--on", "v5e:2x2"], "there")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "clip_sum:cirr", "--on", "8xH10"], "no accelerator 'H10' .* mean 'H100'"),
        (["--config", "clip_sum:cirr", "--on", "v5f:4x4"], "no accelerator 'v5f'.* mean 'v5"),
        (["--config", "clip_sum:cirr", "--on", "8xv5e"], "v5e is a TPU; write v5e:4x4"),
        (["--config", "clip_sum:cirr", "--on", "some"], "'some' is no set of devices"),
        (["--config", "clip_sum:cirr", "--on", "6xL4"], "batch 128 does not divide over 6 devices"),
        (["--config", "positives:folder", "--on", "8xL4"], "makes triplets and trains nothing"),
        (
            ["--config", "clip_sum:emoji", "--on", "8xL4"],
            "'emoji' has is not known.*--triplets and",
        ),
        (["--config", "clip_sum:cirr,positives", "--on", "8xL4"], "data.generated=.*--triplets"),
        (["--config", "clip_sum:cirr"], "give --config and one --on"),
        ([*QUICK, "--on", "1xL4", "--measured", "seconds=3"], "write one of step_seconds"),
        ([*QUICK, "--on", "1xL4", "--measured", "step_seconds=-3"], "a number above 0"),
        ([*QUICK, "--on", "1xL4", "--set", "batch=5000"], "batch 5000 is larger than the 4000"),
    ],
)
def test_bad_input(flags, message, capsys, tmp_path):
    assert plan.main([*flags, "--table", str(tmp_path / "table.csv")]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not list(tmp_path.iterdir())


def test_predicted_against_measured(tmp_path, quick):
    table = tmp_path / "table.csv"
    values = measured.parse(["step_seconds=0.012", "step_bytes=3e8"])
    measured.add(quick, values[:1], "jax 1", table)
    measured.add(quick, values[1:], "jax 1", table)
    first, second = measured.read(table)
    assert (first.what, first.measured, second.measured) == ("step_seconds", 0.012, 3e8)
    assert first.predicted == pytest.approx(quick.floors.slowest, rel=1e-5)
    said = page.text(
        quick, rows=measured.of(quick, [first, dataclasses.replace(second, on="8xL4")])
    )
    assert f"step_seconds  {first.predicted:.4g} predicted, 0.012 measured: " in said
    assert f"{0.012 / first.predicted:.2f} of it" in said and "step_bytes" not in said
    table.write_text("date,config\n")
    with pytest.raises(UserError, match="expected date, config, on, what"):
        measured.read(table)
    table.write_text(",".join(measured.FIELDS) + "\n2026-01-01,a,b,step_seconds,,\n")
    with pytest.raises(UserError, match="a row that is not complete"):
        measured.read(table)


# --- the tables of launch/README.md -----------------------------------------------------------

README = readmes.TEXTS["launch/README.md"]


def rows(on):
    """The rows of a machine's table, config -> cells."""
    part = README.partition(f"`{on}`:\n\n")[2].partition("\n\n")[0].splitlines()
    assert part[:2] == list(recipes.HEAD)
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in part[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


@pytest.mark.parametrize("on", recipes.MACHINES)
def test_every_recipe_is_in_the_table(on):
    found = rows(on)
    assert list(found) == list(recipes.configs())
    for config, (needs, bound, step, run, fit) in found.items():
        assert re.fullmatch(r"(over |about )?\d+\.\d of \d+\.\d GB", needs), config
        assert bound in (
            floors.COMPUTE,
            floors.MEMORY,
            floors.NETWORK,
            floors.DECODING,
            floors.HOST,
        )
        assert all(re.fullmatch(r"[\d.]+ (ms|s|min|h)", time) for time in (step, run)), config
        have, limit = map(float, re.findall(r"\d+\.\d", needs))
        assert (fit == "fits") <= (have <= limit), config


def test_a_row_is_what_the_command_prints(capsys):
    config = "clip_combiner:cirr,stage=2"

    def one(spec, on, changes):
        flags = [x for change in changes for x in ("--set", change)]
        plan.main(["--config", spec, "--on", on, "--json", *flags])
        return json.loads(capsys.readouterr().out)

    assert recipes.row(config, "8xH100", one) in README


def test_the_readme_says_that_nothing_was_measured():
    """Until a device run has filled the table of the project."""
    empty = "no plan has been held against a real device yet" in README
    assert empty == (not measured.read())


def test_changes_that_fit_are_planned_again():
    """A recipe that does not fit: the row has the numbers of the first change that does."""
    asked = []

    def one(config, on, changes):
        asked.append(tuple(changes))
        fits = "loss.chunk=32" in changes
        return {
            "step_bytes": 8e9 if fits else 20e9, "evaluation_bytes": 1e9, "limit_bytes": 16e9,
            "refused_bytes": 0.0 if fits else 20e9, "fits": "yes" if fits else "no",
            "compiled": True, "bound": "memory", "step_seconds": 0.02, "run_seconds": 7300.0,
            "remedies": [{"changes": [c], "fits": f} for c, f in
                         (("model.remat=layers", True), ("mesh.model=2", False),
                          ("loss.chunk=32", True))],
        }  # fmt: skip

    said = recipes.row("sprc:cirr,stage=1", "v5e:4x4", one)
    assert asked == [(), ("model.remat=layers",), ("loss.chunk=32",)]
    assert said == ("| `sprc:cirr,stage=1` | over 20.0 of 16.0 GB | memory | 20 ms | 2.0 h | "
                    "`loss.chunk=32`: 8.0 GB |")  # fmt: skip


def test_memory_margin_is_said(quick):
    """An estimate whose margin goes over the limit fits perhaps, and no more is promised."""
    tight = {"activations": 10e9, "gradients": 1e9}
    one = memory.Memory(tight, 11e9, 1e9, 12e9, False, 0.0)
    assert one.fits == "perhaps" and quick.memory.fits == "yes"
    assert memory.Memory(tight, 11e9, 1e9, 12e9, True, 0.0).fits == "yes"
    large = memory.Memory(tight, 11e9, 13e9, 12e9, True, 0.0)
    assert (large.step_fits, large.fits) == ("yes", "no")
    said = page.text(dataclasses.replace(quick, memory=large))
    assert "an evaluation" in said and "13.0 GB, by shapes: does not fit; lower eval.batch" in said
    assert "what to change" not in said
