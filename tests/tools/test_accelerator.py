# SPDX-License-Identifier: Apache-2.0
"""`bench.py accelerator` walks its parts at tiny sizes; no time is judged here."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cir_jax.runtime import mesh as meshes
from tools import bench
from tools.benchmarks import accelerator, surroundings
from tools.benchmarks.on_device import bench as places
from tools.benchmarks.on_device import blocks, cases, correctness, made, peers, report

HERE = Path(__file__).parents[2]
FED = {"batch on the device", "batch on the host", "real input", "real input, each step waited for"}
THEIRS = {"PyTorch, released", "PyTorch, autocast"}


# Of each kind one; all of them take minutes.
WALKED = {"stage one ViT-B/16": cases.VIT_B1, "search": None}


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(result, stderr) of a dry run of some parts."""
    out = tmp_path_factory.mktemp("accelerator") / "parts.json"
    command = [sys.executable, "tools/bench.py", "accelerator", "--dry-run", "--out", str(out)]
    command += ["--minutes", "60", "--only", *WALKED]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    kept = json.loads(out.read_text())
    assert kept == {key: result[key] for key in kept} and "parts" in kept
    return result, done.stderr


def test_a_dry_run_walks_its_parts(dry):
    result, said = dry
    assert set(result["parts"]) == set(WALKED) and result["failed"] == []
    assert result["platform"] == "cpu" and result["dry_run"] and result["machine"]["cores"]
    # Nothing but what a CPU does not have.
    assert list(result["left_out"]) == ["stage one ViT-B/16: PyTorch, compiled, autocast"]
    for name in result["left_out"]:
        assert f"left out: {name}: " in said
    for name, part in result["parts"].items():
        assert f"{name}: up to " in said
        marked = f"{surroundings.MARK}\n" in said.partition("ms a step")[2]
        assert marked or not part["surroundings"]["beside_other_work"]
    assert "ms a step" in said and "PyTorch, released" in said


def test_what_a_dry_run_finds(dry):
    parts = dry[0]["parts"]
    for case in filter(None, WALKED.values()):
        one = parts[case.name]
        assert set(one["programs"]) == FED | {"real input, pixels kept"} | THEIRS
        assert all(way["step_ms"] > 0 and way["blocks"] == 1 for way in one["programs"].values())
        assert one["tflop_of_a_step"] > 0 and one["input_wait"] >= 0 and one["step_gb"] > 0
        assert one["bank_rows"] == 0 and 8 <= one["tokens_of_a_text"] <= 22
        assert set(one["times_faster_than"]) == THEIRS
    assert parts["search"]["recall"] == {"exact": 1.0}


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A dry run's place, on one device."""
    folder, device = tmp_path_factory.mktemp("where"), jax.devices()[0]
    data = made.write(folder / "data", cases.DRY.images, cases.DRY.triplets)
    mesh = meshes.make(1, 1, [device])
    return places.Bench(device, device, mesh, cases.DRY, data, folder, peak=1e12)


def test_encoders_are_compared(where, monkeypatch):
    checks = correctness.parity(where)
    assert list(checks) == [
        f"encoders in {name}" for name in ("float32, highest", "float32", "bfloat16")
    ]
    assert all(one["holds"] for one in checks.values())
    assert checks["encoders in bfloat16"]["found"] > checks["encoders in float32"]["found"]
    monkeypatch.setitem(correctness.ALLOWED, "bfloat16", 1e-6)
    assert not correctness._check(checks["encoders in bfloat16"]["found"], 1e-6)["holds"]


def test_memory_that_is_not_there(where):
    found = correctness.exhausted(where)
    assert found["holds"] and "What takes less: a smaller batch (now batch=4)" in found["found"]


def test_the_parts_fit_into_the_command():
    seconds = 60 * accelerator.MINUTES - accelerator._BEGIN - accelerator._END
    assert sum(part.seconds for part in accelerator.PARTS.values()) <= seconds
    assert accelerator.MINUTES <= 8 and cases.REAL.steps >= 50 and cases.REAL.blocks >= 5


def test_time_that_is_left_over_goes_to_later_parts(monkeypatch):
    parts = {name: accelerator.Part(each, None) for name, each in (("a", 10), ("b", 30))}
    monkeypatch.setattr(accelerator, "PARTS", parts)
    assert accelerator._share(["a", "b"], 40.0) == 10
    assert accelerator._share(["a", "b"], 80.0) == 20
    assert accelerator._share(["b"], 20.0) == 30  # it may end before it begins, but is not cut
    assert accelerator._share(["b"], 60.0) == 60


def _args(*flags):
    return bench.parser_of({"accelerator": accelerator}).parse_args(["accelerator", *flags])


def test_a_cpu_is_no_accelerator():
    with pytest.raises(SystemExit, match=r"no GPU and no TPU.*--dry-run walks all parts"):
        accelerator.run(_args())


def test_what_fails_is_named_and_the_others_run(monkeypatch, capsys):
    def broken(bench, clock):
        print("noise on stdout")
        raise RuntimeError("RESOURCE_EXHAUSTED: too large\nmore")

    wrong = {"checks": {"one": {"found": "x", "allowed": 0.0, "holds": False}}, "wrong": ["one"]}
    parts = {
        "broken": accelerator.Part(1, broken),
        "wrong": accelerator.Part(1, lambda bench, clock: wrong),
        "long": accelerator.Part(10_000, lambda bench, clock: {}),
        "not asked for": accelerator.Part(1, broken),
    }
    monkeypatch.setattr(accelerator, "PARTS", parts)
    result = accelerator.run(_args("--dry-run", "--only", "broken", "wrong", "long"))
    assert result["failed"] == [
        "broken: RuntimeError: RESOURCE_EXHAUSTED: too large", "wrong: one",
    ]  # fmt: skip
    assert list(result["left_out"]) == ["long"] and "it has 10000" in result["left_out"]["long"]
    printed = capsys.readouterr()
    assert "WRONG" in printed.err and "left out: long" in printed.err
    assert "Traceback" in printed.err and printed.out == ""


def test_what_takes_too_long_is_cut_off(monkeypatch, capsys, tmp_path):
    status, over = [], []
    monkeypatch.setattr(accelerator.os, "_exit", lambda number: (status.append(number), 1 / 0)[0])
    monkeypatch.setattr(accelerator, "_END", 0.1)
    monkeypatch.setattr(accelerator.threading, "excepthook", over.append)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").touch()
    found = accelerator._Run(_args("--out", str(tmp_path / "out")), {}, {"done": {}}, now="slow")
    with accelerator._CutOff(found, time.monotonic(), str(tmp_path / "data")):
        for _ in range(200):
            if over:
                break
            time.sleep(0.05)
    assert status == [0] and not (tmp_path / "data").exists()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["parts"] == {"done": {}} and "slow" in result["left_out"]
    assert json.loads((tmp_path / "out").read_text())["parts"] == {"done": {}}
    found.failed.append("x")
    with pytest.raises(ZeroDivisionError):
        accelerator._CutOff(found, time.monotonic(), str(tmp_path / "data"))._end()
    assert status == [0, 1]


class _Clock:
    """A clock that programs turn on."""

    def __init__(self, seconds):
        self.seconds = seconds

    def left(self):
        return self.seconds


def _program(clock, each, calls, name):
    def program(steps):
        calls.append((name, steps))
        clock.seconds -= each * steps
        return each * steps

    return program


def test_programs_take_turns_until_the_time_is_over():
    clock, calls = _Clock(1000.0), []
    programs = {name: _program(clock, each, calls, name) for name, each in (("a", 1.0), ("b", 2))}
    found = blocks.in_turns(programs, 50, 3, clock)
    assert calls[:4] == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
    assert calls[4:] == [(name, 50) for name in ("b", "a", "a", "b", "b", "a")]
    assert found.summary() == {
        "a": {"step_ms": 1000.0, "spread": 0.0, "blocks": 3},
        "b": {"step_ms": 2000.0, "spread": 0.0, "blocks": 3},
    }
    clock = _Clock(300.0)
    programs = {"slow": _program(clock, 100.0, [], "slow"), "fast": _program(clock, 1, [], "fast")}
    found = blocks.in_turns(programs, 50, 5, clock)
    assert found.summary()["fast"]["blocks"] == 1  # of 98 seconds 48 were left after it
    assert found.median("slow") is None and "about 5000.0 s" in found.left_out["slow"]


def test_what_is_certain_and_what_may_fail():
    clock = _Clock(1.0)
    programs = {"ours": _program(clock, 10.0, [], "ours"), "late": _program(clock, 1, [], "late")}
    found = blocks.in_turns(programs, 50, 3, clock, certain=("ours",))
    assert found.summary()["ours"]["blocks"] == 1 and set(found.left_out) == {"late"}
    assert found.left_out["late"] == "no time was left to make it ready"

    def broken(steps):
        raise MemoryError("too large\nmore")

    def later(steps):
        if steps > 1:
            raise MemoryError("in a block")
        return 1.0

    programs = {"later": later, "theirs": broken, "ours": _program(_Clock(0), 1.0, [], "ours")}
    found = blocks.in_turns(programs, 2, 2, _Clock(100.0), may_fail=("theirs", "later"))
    assert found.left_out == {
        "theirs": "it failed: MemoryError: too large", "later": "it failed: MemoryError: in a block"
    }  # fmt: skip
    assert found.median("ours") == 1.0 and set(found.summary()) == {"ours"}
    for name in ("later", "theirs"):
        with pytest.raises(MemoryError):
            blocks.in_turns({name: programs[name]}, 2, 1, _Clock(100.0))
    programs = {"slow": broken, "ours": _program(_Clock(0), 1.0, [], "ours")}
    found = blocks.in_turns(programs, 2, 1, _Clock(100.0), first={"slow": 101.0})
    assert found.left_out == {"slow": "its first step takes about 101 s; 100 s are left"}


def test_devices_are_known_by_the_names_they_give_themselves():
    names = {
        "NVIDIA H200": "H200", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA A100-SXM4-80GB": "A100-80",
        "NVIDIA A100-SXM4-40GB": "A100-40", "NVIDIA L4": "L4", "NVIDIA L40S": "L40S",
        "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x",
    }  # fmt: skip
    for kind, name in names.items():
        chip = places.chip_of(kind)
        assert chip is not None and chip.name == name
    assert places.chip_of("cpu") is None and places.chip_of("TPU v99") is None


def test_checks_see_what_is_wrong(tmp_path):
    rows = [np.ones((2, 3), np.float32), np.full((2, 3), 4.0, np.float32)]
    off = [rows[0], rows[1] + np.float32(0.04)]
    assert correctness._far(rows, rows) == 0
    assert correctness._far(rows, off) == pytest.approx(0.01)
    assert correctness._far(rows, [rows[0], rows[1] * np.float32("nan")]) == math.inf
    check = correctness._check(math.inf, 1.0)
    assert check == {"found": "not finite", "allowed": 1.0, "holds": False}
    assert correctness._apart(rows, [x.copy() for x in rows]) == 0
    assert correctness._apart(rows, off) == pytest.approx(0.04)
    assert correctness._apart([np.float32(0.0)], [np.float32("-0.0")]) > 0


def test_a_resumed_run_that_differs_is_wrong(monkeypatch, tmp_path):
    """Unless two runs that nobody stops differ as much."""
    where = places.Bench(None, None, None, cases.DRY, tmp_path, tmp_path)
    runs, made_steps = {"whole": 1.0, "halves": 1.5, "again": 1.0}, []
    monkeypatch.setattr(
        correctness, "_train", lambda bench, folder, steps: made_steps.append((folder.name, steps))
    )
    monkeypatch.setattr(correctness, "_kept", lambda bench, folder: [np.float64(runs[folder.name])])
    assert correctness.resumed(where) == {"found": 0.5, "allowed": 0.0, "holds": False}
    assert made_steps == [("whole", 4), ("halves", 2), ("halves", 4), ("again", 4)]
    runs["again"] = 1.25
    found = correctness.resumed(where)
    assert found["holds"] and "differ by 2.5e-01" in found["note"]
    runs["again"] = 1.001
    assert not correctness.resumed(where)["holds"]
    runs["halves"] = 1.0
    assert correctness.resumed(where)["holds"]


def test_without_pytorch_it_is_left_out(monkeypatch):
    def on(platform):
        device = type("Device", (), {"platform": platform})()
        return places.Bench(device, None, None, cases.REAL, Path(), Path())

    programs, left_out = peers.of(cases.VIT_L1, None, on("tpu"))
    assert programs == {} and "no PyTorch with CUDA" in left_out["PyTorch, all"]
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "cannot be imported" in peers.of(cases.VIT_L1, None, on("gpu"))[1]["PyTorch, all"]
    assert peers.bank_loss(8, 4, 2, "float32", on("gpu")) is None
    cuda = type("Cuda", (), {"is_available": lambda: False})
    blind = type("Torch", (), {"cuda": cuda, "__version__": "9"})()
    monkeypatch.setitem(sys.modules, "torch", blind)
    assert (
        "9 is here, and sees no CUDA" in peers.of(cases.VIT_L1, None, on("gpu"))[1]["PyTorch, all"]
    )
    assert report.left_out({"a": {"left_out": left_out}}) == {
        "a: PyTorch, all": left_out["PyTorch, all"]
    }
