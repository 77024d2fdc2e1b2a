# SPDX-License-Identifier: Apache-2.0
"""Every machine that a run may get: its mesh, the rows of its hosts, what is compiled for it.

TPU slices are those that libtpu describes on a CPU, see tools/slices.py; it is loaded by processes
of their own. Nodes of GPUs are made up. What runs, runs on CPU devices in the same order.
"""

import collections
import itertools
import json
import math
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from cir_jax import contract, weights
from cir_jax.data import loader, pipeline, tokens
from cir_jax.training import train
from tests import runs
from tests.runtime.compiled import BANK, BATCH, QUERIES, SLICES
from tests.runtime.layouts import EACH, MACHINES, MODELS
from tests.runtime.test_processes import HERE, losses, train_with
from tools import slices

# Mesh axes that collectives may be over, by the devices along "model".
AXES = {1: {"data"}, 2: {"data", "model", "data+model"}}
INTERLEAVED = Path(__file__).parent / "interleaved"


@pytest.fixture(scope="module")
def machines():
    """Machine -> its layout for each of MODELS."""
    return described("tests.runtime.layouts")


def described(program, *arguments):
    """What a program prints, in a process that has libtpu."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("there is a libtpu for Linux on x86-64 only")
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        env=os.environ | slices.environment() | {"PYTHONPATH": str(HERE)},
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def table(found, name):
    """A value of each device, [data, model, ...]."""
    values = np.asarray(found[name])
    return values.reshape(*found["shape"], *values.shape[1:])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("on", MACHINES)
def test_every_host_loads_the_rows_of_its_devices(on, model, machines):
    found = machines[on][str(model)]
    process, span = table(found, "process"), table(found, "span")
    data = len(process)
    # A device at place (i, j) of the mesh holds share i of the batch, ...
    share = np.arange(data)[:, None]
    assert (span == np.stack([EACH * share, EACH * (share + 1)], axis=-1)).all()
    # ... and a host those of all its devices, adjacent or not, each row once.
    assert {int(host) for host in found["rows"]} == set(process.ravel())
    for host, rows in found["rows"].items():
        held = np.flatnonzero((process == int(host)).any(axis=1))
        assert rows == (EACH * held[:, None] + np.arange(EACH)).ravel().tolist()
    together = sorted(itertools.chain(*found["rows"].values()))
    assert sorted(set(together)) == list(range(EACH * data))
    assert model > 1 or len(together) == EACH * data  # then no two hosts share a row


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("on", MACHINES)
def test_a_model_axis_lies_on_neighbours(on, model, machines):
    """In one slice, or one node; on a TPU on chips that form a box, on its cores first."""
    found = machines[on][str(model)]
    node, place = table(found, "slice"), table(found, "place")
    own = np.concatenate([node[..., None], place], axis=-1).reshape(node.size, -1)
    assert node.shape[1] == model and len(np.unique(own, axis=0)) == node.size
    assert (node == node[:, :1]).all()
    assert (np.diff(node[:, 0]) >= 0).all()  # all of a node before the next one
    nodes = {"2xv5e:4x4": 2, "2x8xH100": 2, "4x8xH100": 4}.get(on, 1)
    assert np.bincount(node[:, 0]).tolist() == [len(node) // nodes] * nodes
    if slices.is_tpu(on):
        box = (place.max(axis=1) - place.min(axis=1) + 1).prod(axis=-1)
        assert (box == model).all()


# jax 0.10 and 0.12 go through this torus in another order.
OLDER = version("jax").startswith("0.10.")
V5P = [[0, 2, 4, 6], [1, 3, 5, 7]] if OLDER else [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    "on, shares",
    [
        ("v5e:2x4", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("v5e:4x4", [[0, 1, 6, 15], [2, 3, 4, 5]]),
        ("v6e:4x4", [[0, 1, 6, 15], [2, 3, 4, 5]]),
        ("v5e:4x8", [[0, 1, 8, 9], [16, 17, 24, 25]]),
        ("v5p:2x2x2", V5P),
        ("2x8xH100", [[0], [1]]),
    ],
)
def test_hosts_of_known_machines(on, shares, machines):
    """Measured on these slices: where the first two hosts stand along "data"."""
    rows = machines[on]["1"]["rows"]
    assert [[r // EACH for r in rows[host][::EACH]] for host in ("0", "1")] == shares


@pytest.mark.parametrize("on, model", [("v5e:4x4", 1), ("v5p:2x2x4", 1), ("v6e:4x4", 4)])
def test_hosts_draw_one_sequence_of_triplets(on, model, machines, tmp_path):
    """Put together, the rows of all hosts are the batches of one process, in order."""
    hosts = machines[on][str(model)]["rows"].values()
    batch = max(map(max, hosts)) + 1
    sets = runs.load("fashioniq", runs.write_fashioniq(tmp_path, triplets=batch // 2 + 1))
    data = pipeline.prepare(sets, tokens.load("clip"))
    options = {"batch": batch, "seed": 5, "fields": ("text",)}
    want = list(itertools.islice(pipeline.batches(data, loader.Options(**options)), 3))
    for rows in hosts:
        mine = pipeline.batches(data, loader.Options(**options, rows=rows))
        for whole, part in zip(want, mine, strict=False):
            assert part.keys() == whole.keys()
            for name, values in part.items():
                np.testing.assert_array_equal(values, whole[name][rows])


@pytest.fixture(scope="module")
def programs():
    """Machine -> what is compiled for it, see tests/runtime/compiled.py."""
    return described("tests.runtime.compiled")


@pytest.mark.parametrize("on, model", SLICES)
def test_what_crosses_devices_in_a_step(on, model, programs):
    """Gradients, and the embeddings of a batch: no part of the bank, and nothing of [B, N]."""
    found = programs[on]
    one, two = (found["programs"][name] for name in ("stage one", "stage two"))
    share = BANK // np.prod(found["shape"])  # rows of the bank on a device
    for step in (one, two):
        assert step["whole"]  # each host reads the metrics
        assert {axes for _, axes in total(step)} <= AXES[model]
        assert sum(total(step).values()) < 4 * share * min(found["width"], BATCH)
    # Gradients are summed once over "data", those of layers in bfloat16, and once more between
    # slices; of the token embedding the rows of a batch travel, not the table. Beside them [B, D]
    # and smaller pieces do; with a "model" axis also activations of [B, T, C].
    summed, slack = total(two)["all-reduce", "data"], 64 * 4 * BATCH * found["width"] * model
    assert 0.5 * found["trained"] < summed < 1.1 * found["trained"]
    assert sum(total(two).values()) - summed < slack + found["trained"] * (found["slices"] - 1)


@pytest.mark.parametrize("on, model", SLICES)
def test_what_crosses_devices_in_encoding_and_ranking(on, model, programs):
    found = programs[on]["programs"]
    assert found["bank"]["whole"] and found["ranks"]["whole"]
    rows = 4 * BATCH * (programs[on]["width"] + programs[on]["reference"])
    over = {k: size for k, size in total(found["bank"]).items() if k[1] != "model"}
    assert over == {("all-gather", "data"): rows}  # the rows of a batch, to all hosts
    # Of each query the score of its target, and how many are ahead of it.
    axes = "data" if model == 1 else "data+model"
    times = programs[on]["slices"]  # inside of a slice, then between two
    assert total(found["ranks"]) == {("all-reduce", axes): times * 2 * 4 * QUERIES}


# Programs that read a table: (program, entries, rows of an entry, width, type, queries). The tables
# are not smaller than the fast memory of a TPU's core, into which it may copy one on purpose.
TABLES = [
    *(("bank loss", 2**21 // k, k, 256, t, 64) for k in (1, 32) for t in ("float32", "bfloat16")),
    *(("sampled loss", 2**21 // k, k, 256, "float32", 64) for k in (1, 32)),
    ("lookup", 2**13, 577, 768, "float32", 64),
    ("top", 2**15, 32, 256, "float32", 8),
    *(("search", 2**20 // k, k, 256, "float32", 1) for k in (1, 32)),
]


@pytest.fixture(scope="module")
def tables():
    """What `tools/bench.py tables` says of TABLES."""
    names = ("program", "entries", "per_row", "width", "dtype", "batch")
    cases = [dict(zip(names, case, strict=True)) for case in TABLES]
    found = described("tools.bench", "tables", "--on=v5e:2x4", "--cases", json.dumps(cases))
    return dict(zip(TABLES, found["cases"], strict=True))


@pytest.mark.parametrize("case", TABLES, ids=lambda case: "-".join(map(str, case)))
def test_no_program_copies_a_table(case, tables):
    """Nothing but the argument has the size of a table, or of an eighth of it."""
    found = tables[case]
    assert found["arguments"] > found["table"] >= 2**27
    assert not found["copies"]
    assert found["temporaries"] < found["table"] / 32


def test_a_search_leaves_rows_where_they_are(tables):
    """Nothing crosses devices."""
    assert not any(tables[case]["collectives"] for case in TABLES if case[0] == "search")


def test_a_lookup_moves_a_row_once(tables):
    """Not the rows of the whole batch to all devices."""
    [case] = [case for case in TABLES if case[0] == "lookup"]
    moved = tables[case]["collectives"]
    rows = 4 * math.prod(case[i] for i in (2, 3, 5))
    assert moved.pop("all-to-all") == rows
    assert sum(moved.values()) < rows / 1000  # their numbers


def total(program):
    """(kind, axes) -> bytes that all of them move in one run."""
    found = collections.Counter()
    for kind, axes, _, size in program["collectives"]:
        found[kind, axes] += size
    return found


@pytest.mark.parametrize(
    "model, stage, devices, changes",
    [("cross_attention", 1, 2, ()), ("blip", 2, 4, ("loss.references=disk", "mesh.model=2"))],
)
def test_hosts_whose_devices_interleave_equal_one_process(model, stage, devices, changes, tmp_path):
    """As on most slices of several hosts: a host's rows of a batch are not adjacent there."""
    root = runs.write_fashioniq(tmp_path / "data")
    # With a small epsilon Adam's first steps are signs, also of gradients that are only rounding.
    changes = (*changes, "steps=3", "eval.batch=6", "optim.epsilon=1e-3")
    alone = runs.tiny(tmp_path / "one", root, *changes, stage=stage, model=model)
    results = train.train(alone)
    path = os.pathsep.join([str(INTERLEAVED), str(HERE)])
    train_with(2, devices, alone, tmp_path / "two", {"PYTHONPATH": path})
    want, got = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(want) == 3 and got == pytest.approx(want, rel=2e-5)
    other = json.loads((tmp_path / "two" / "results.json").read_text())
    assert other["environment"]["processes"] == 2
    for one, two in zip(results["history"], other["history"], strict=True):
        del one["seconds"], two["seconds"]
        assert two == pytest.approx(one, abs=1e-3)
    functions = contract.build(alone.model)
    kept = [weights.of_run(tmp_path / run, functions, "last") for run in ("one", "two")]
    for part in (0, 1):  # index and query
        for path, values in kept[0][part].items():
            np.testing.assert_allclose(kept[1][part][path], values, atol=2e-5, err_msg=path)
