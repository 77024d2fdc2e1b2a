# SPDX-License-Identifier: Apache-2.0
"""Every benchmark in turn, and what each says of the machine it ran on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import bench
from tools.benchmarks import all as every
from tools.benchmarks import surroundings

HERE = Path(__file__).parents[2]


def test_all_runs_processes_in_turn():
    """Really two of them; the others are run one by one in test_bench.py."""
    command = [sys.executable, "tools/bench.py", "all", "--quick", "--only", "bank", "evaluate"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [one["run"] for one in result["runs"]] == ["bank", "evaluate"]
    assert result["failed"] == [] and result["quick"]
    for one in result["runs"]:
        inner = one["result"]
        assert all(isinstance(value, float) for value in one["figures"].values())
        assert inner["platform"] == "cpu" and inner["machine"]["versions"]["jax"]
        assert set(inner["surroundings"]) == {
            "load_before", "load_after", "cores", "others", "beside_other_work",
        }  # fmt: skip
        marked = "beside other work" if inner["surroundings"]["beside_other_work"] else "on a quiet"
        assert marked in done.stderr
    assert (
        "time of ranking / product" in done.stderr and "growth of blockwise memory" in done.stderr
    )
    assert "cores, " in done.stderr and " before and " in done.stderr


def test_every_benchmark_is_in_it():
    modules = bench.load()
    assert {run.options[0] for run in every.RUNS} == set(modules) - {"all", "accelerator"}
    assert len({run.name for run in every.RUNS}) == len(every.RUNS)
    parser = bench.parser_of(modules)
    for run in every.RUNS:
        for options in (run.options, run.quick):
            assert parser.parse_args(options).benchmark == run.options[0]


def test_what_fails_is_named_and_the_others_run(monkeypatch, capsys):
    def ended(command, seconds):
        name = command[2]
        if name == "search":
            return None, ""
        if name == "bank":
            return 3, ""
        return 0, "{}" if name == "index" else "no JSON"

    monkeypatch.setattr(every, "_ended", ended)
    args = bench.parser_of({"all": every}).parse_args(
        ["all", "--only", "bank", "search", "index", "loop", "--most", "2"]
    )
    found = {one["run"]: one for one in every.run(args)["runs"]}
    assert found["bank"]["failed"].startswith("status 3")
    assert found["search"]["failed"] == "no end after 2 minutes (--most)"
    assert "KeyError('processor_ratio')" in found["index"]["failed"]
    assert "no result that can be read" in found["loop"]["failed"]
    assert capsys.readouterr().err.count("FAILED: ") == 4
    assert list(found) == ["bank", "loop", "index", "search"]


def test_one_that_does_not_end_is_ended(tmp_path):
    """With what it has started."""
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    assert every._ended([sys.executable, "-c", program], 5.0) == (None, "")
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):  # until whoever inherits it has taken note of its end
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process that a benchmark had started goes on")


def test_a_failed_part_is_a_status(monkeypatch, capsys):
    monkeypatch.setattr(every, "_ended", lambda command, seconds: (1, ""))
    result = bench.main(["all", "--only", "bank"])
    assert result["failed"] == ["bank"] and result["platform"] == ""
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == ["bank"]


def _stat(path, idle=0, **busy):
    """The counters of Linux, of which user, steal and the like are given for each processor."""
    fields = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")
    ticks = [0] * len(fields)
    for name, number in (busy | {"idle": idle}).items():
        ticks[fields.index(name)] = number
    cores = sorted(os.sched_getaffinity(0))
    lines = [f"cpu{core} {' '.join(map(str, ticks))}" for core in cores]
    path.write_text("\n".join(["cpu 9 9 9 9 9 9 9 9 9", *lines, "cpu9999 7 7 7 7", "ctxt 5"]))


def test_other_work_is_seen(tmp_path, monkeypatch):
    stat, tick, cores = tmp_path / "stat", os.sysconf("SC_CLK_TCK"), surroundings.cores()
    clock = iter((100.0, 110.0) * 3)
    monkeypatch.setattr(surroundings.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(surroundings, "load", lambda: [9.0, 9.0, 9.0])
    own = iter((0.0, 4.0) * 3)
    monkeypatch.setattr(surroundings, "_own", lambda: next(own))

    def ended(**after):
        _stat(stat, idle=50, user=1000 * tick, guest=77)
        watch = surroundings.Watch(stat)
        _stat(stat, idle=5000, guest=777, **after)
        return watch.end()

    each = 4.0 / cores  # what this process has used of each processor
    quiet = ended(user=round((1000 + each) * tick))
    assert not quiet["beside_other_work"] and quiet["others"] < 0.01 * cores
    stolen = ended(user=1000 * tick, steal=round((each + 5) * tick))
    assert stolen["beside_other_work"] and stolen["others"] == pytest.approx(0.5 * cores, abs=0.02)
    assert surroundings.sentence(stolen).endswith(": TAKEN BESIDE OTHER WORK")
    few = ended(user=round((1000 + each + 0.2) * tick))  # 2 % of the time
    assert not few["beside_other_work"] and "OTHER WORK" not in surroundings.sentence(few)


def test_processes_that_were_started_are_no_others():
    """Nor what they have started, while they live and when they have ended."""
    work = "t = time.process_time()\nwhile time.process_time() < t + 0.3: pass\n"
    inner = f"import time\n{work}print('done', flush=True)\ninput()\n"
    program = (
        f"import subprocess, sys, time\n{work}subprocess.run([sys.executable, '-c', {inner!r}])\n"
    )
    before = surroundings._own()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "done\n"
        living = surroundings._own()
        process.communicate("\n")
    assert living - before >= 0.55 and surroundings._own() - before >= 0.55


def test_the_load_has_to_do_where_nothing_else_is_known(tmp_path, monkeypatch):
    for before, marked in (([0.1, 5.0, 5.0], False), ([0.9, 0.0, 0.0], True), (None, True)):
        monkeypatch.setattr(surroundings, "load", lambda before=before: before)
        found = surroundings.Watch(tmp_path / "absent").end()
        assert found["beside_other_work"] == marked and found["others"] is None
        assert "what others used is not known" in surroundings.sentence(found)


def test_the_processor_has_a_name(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: First: of many\n\nmodel name\t: Second\n")
    assert surroundings.processor(info) == "First: of many"
    assert surroundings.processor(tmp_path / "absent")
