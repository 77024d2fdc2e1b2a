# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs at a tiny size and prints what it measured. No time is judged here."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cir_jax.runtime import mesh as meshes
from tools.benchmarks import loop

BENCH = Path(__file__).parents[2] / "tools" / "bench.py"


def bench(*arguments):
    """(the JSON of the last line, stderr) of a run, or the failed run."""
    run = subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=300
    )
    if run.returncode:
        return run, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


def test_bank():
    result, table = bench(
        "bank", "--devices=2", "--rows", "63", "130", "--width=8", "--batch=4", "--block=16",
        "--excluded=2", "--repeats=2",
    )  # fmt: skip
    assert result["benchmark"] == "bank" and result["devices"] == 2
    assert [size["rows"] for size in result["sizes"]] == [63, 130]
    for size in result["sizes"]:
        assert size["plain_s"] > 0 and size["blockwise_s"] > 0 and size["time_ratio"] > 0
        assert float(size["largest_gradient_difference"]) < 1e-5
    assert result["worst_time_ratio"] == max(size["time_ratio"] for size in result["sizes"])
    assert "blockwise_mib" in table and len(table.splitlines()) >= 3


def test_evaluate():
    result, table = bench(
        "evaluate", "--queries=20", "--candidates=33", "--width=8", "--repeats=2", "--devices=1"
    )
    assert result["benchmark"] == "evaluate" and result["queries"] == 20
    assert result["time_ratio"] > 0 and result["product_s"] > 0 and result["ranking_s"] > 0
    assert "time_ratio" in table


def test_search():
    result, table = bench(
        "search", "--sizes", "300x1x16", "40x3x8", "--batches", "1", "3", "--repeats=1"
    )
    found = result["results"]
    engines = ["float32", "float16", "int8"]
    want = [(300, name) for name in (*engines, "FAISS", "Milvus Lite")]
    want += [(40, name) for name in engines]
    assert [(one["images"], one["engine"]) for one in found[::2]] == want
    assert [one["batch"] for one in found] == [1, 3] * len(want)
    for one in found:
        assert one["time_ratio"] > 0 and one["product_ms"] > 0 and one["search_ms"] > 0
        small = one["engine"] in ("float16", "int8")
        assert one["recall"] > 0.8 if small else one["recall"] == 1
        assert float(one["difference"]) < (0.02 if small else 1e-6)
    assert "grown_mib" in table


@pytest.mark.parametrize(
    ("arguments", "message"), [(("bnak",), "invalid choice: 'bnak'"), ((), "required: benchmark")]
)
def test_wrong_command_line(arguments, message):
    run, text = bench(*arguments)
    assert run.returncode == 2 and message in text


def test_positives():
    result, table = bench(
        "positives", "--images=40", "--side=32", "--features", "300", "300", "--width=8",
        "--window", "100", "200", "--rows=64", "--block=16", "--repeats=1",
    )  # fmt: skip
    compared, (paired, many) = result["dedupe"], result["pair"]
    assert compared["images"] == 40 and compared["time_ratio"] > 0 and compared["peak_mib"] > 10
    assert compared["share_in_decoder"] > 0
    assert paired["features"] == 300 and paired["time_ratio"] > 0 and paired["mined_ratio"] > 0
    assert many["features"] == 300
    few, more = result["near"]
    assert few["hashes"] == 300 and few["time_ratio"] > 0 and more["bands_s"] > 0
    assert "share_in_decoder" in table and "products_s" in table


def test_convert():
    result, table = bench(
        "convert", "--tower=vit-32-16-w64-l2-h1_text-w64-l2-h1_d32", "--formats", "spn:float32",
        "--repeats=1",
    )  # fmt: skip
    tasks = {row["task"]: row for row in result["tasks"]}
    assert result["parameters_mib"] == pytest.approx(result["parameters"] * 4 / 2**20)
    [row] = result["formats"]
    assert row["format"] == "spn:float32" and row["file_mib"] > result["parameters_mib"]
    assert row["import_mib"] > 0 and row["import_ratio"] == result["worst_import_ratio"]
    assert list(tasks) == ["tensor by tensor", "whole file first", "import, export", "retriever",
                           "run folder", "hash alone", "new memory alone"]  # fmt: skip
    assert tasks["whole file first"]["time_ratio"] > 0 and tasks["run folder"]["mib"] > 0
    assert "memory_ratio" in table


def test_index():
    result, table = bench(
        "index", "--images=3", "--side=40", "--threads=2", "--files=1200", "--repeats=1"
    )
    assert result["images"] == 3 and result["speed_ratio"] > 0
    assert result["files"] == 1200 and result["again_s"] > 0 and result["peak_gb"] > 0
    assert "index_per_s" in table


def test_loop(monkeypatch, capsys):
    """On one device, and but for the processes that it starts: each would compile for seconds."""
    started = []

    def python(*arguments, environment=None):
        started.append((arguments, environment))
        return real("-c", "sum(range(10**7))")

    real = loop._python
    monkeypatch.setattr(loop, "_python", python)
    one = meshes.make(1, 1, jax.devices()[:1])
    monkeypatch.setattr(meshes, "make", lambda *_, **__: one)
    tower = "vit-32-16-w32-l1-h1_text-w32-l1-h1_d16"
    result = loop.run(argparse.Namespace(tower=tower, steps=2, batch=8, repeats=1, starts=2))
    for name in ("loop_ratio", "start_ratio", "import_ratio"):
        assert result[name] > 0
    assert set(result["step_s"]) == {"loop", "update"}
    table = capsys.readouterr().err
    assert "loop / update alone" in table and "trainer / libraries" in table
    commands = [(" ".join(one), (place or {}).get("CIR_JAX_PROGRAMS")) for one, place in started]
    starts = [place for one, place in commands if "-m cir_jax.main train" in one]
    assert starts[0] == starts[2] == starts[3] != starts[1] == starts[4] == "off"
    assert [one for one, _ in commands[5:7]] == [f"-c {loop.LIBRARIES}", f"-c {loop.TRAINER}"]
    with pytest.raises(SystemExit, match="ended with 3"):
        real("-c", "raise SystemExit(3)")


def test_pixels():
    result, table = bench("pixels", "--images", "6", "--size", "16", "--threads=2", "--repeats=1")
    assert result["benchmark"] == "pixels" and result["images"] == 6
    ratios = (
        "second_epoch_of_first",
        "later_run_of_decoding",
        "row_of_decoding",
        "fast_of_decoding",
    )
    assert all(result[name] > 0 for name in ratios)
    assert "disk, epoch two, 2 threads" in table and "row, one thread" in table


def test_triplets(tmp_path):
    sizes = ("--triplets=70", "--in-memory=40", "--images=12", "--batch=8", "--repeats=1")
    result, table = bench("triplets", *sizes, f"--folder={tmp_path}")
    assert list(result["starts"]) == ["first", "later", "memory"]
    assert result["cpu_ratio"] > 0 and result["kept_bytes"] > 0
    for name, one in result["starts"].items():
        assert one["triplets"] == (40 if name == "memory" else 70) and one["us_a_triplet"] > 0
    assert "megapairs_gb" in table and not list(tmp_path.iterdir())
