# SPDX-License-Identifier: Apache-2.0
"""How batches and chunks fit the devices, and what is said where they do not."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from cir_jax.errors import UserError
from cir_jax.runtime import encode, programs
from cir_jax.runtime import mesh as meshes
from cir_jax.training import dry_run
from tests import runs


@pytest.fixture(autouse=True)
def heard():
    """Messages that are said once were not said yet."""
    meshes._say_once.cache_clear()


def test_devices_of_a_cpu_keep_their_order():
    for shape in ((8, 1), (4, 2), (1, 8)):
        mesh = meshes.make(*shape)
        assert mesh.devices.shape == shape and mesh.devices.ravel().tolist() == jax.devices()


def test_every_row_is_of_this_process():
    assert encode.local_rows(24, meshes.make(4, 2)).tolist() == list(range(24))
    assert encode.local_rows(24, meshes.make(4, 2), process=1).size == 0


@pytest.mark.parametrize(
    "batch, size, said",
    [
        (64, 64, ""),
        (100, 104, "eval.batch=100 is rounded up to 104: 13 rows on each of 8 devices"),
        (60, 64, "eval.batch=60 is rounded up to 64: 8 rows on each of 8 devices of axis 'data'\n"),
        (16, 16, "eval.batch=16: 2 rows on each of 8 .*; .* eval.batch=64 gives them 8"),
        (3, 8, "eval.batch=3 is rounded up to 8: 1 row on each of 8 .* eval.batch=64 gives them 8"),
    ],
)
def test_encoding_batches_are_rounded_up_and_it_is_said_once(batch, size, said, capsys):
    assert meshes.rounded(batch, meshes.make(), "eval.batch") == size
    out = capsys.readouterr().out
    assert re.match(said, out) and bool(out) == bool(said)
    assert meshes.rounded(batch, meshes.make(), "eval.batch") == size
    assert capsys.readouterr().out == ""


def test_one_device_takes_any_encoding_batch(capsys):
    mesh = meshes.make(1, 1, jax.devices()[:1])
    assert [meshes.rounded(n, mesh, "batch") for n in (1, 5, 128)] == [1, 5, 128]
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="batch=0 is below 1; the default is 128"):
        meshes.rounded(0, mesh, "batch")


def test_a_chunk_grows_with_the_devices(capsys):
    """What works on few devices works on many, as long as the batch does."""
    assert [meshes.fitting_chunk(48, n, meshes.make()) for n in (0, 8, 16, 24, 48)] == [
        *(0, 8, 16, 24, 48)
    ]
    assert capsys.readouterr().out == ""
    for chunk, fitting in ((1, 8), (2, 8), (4, 8), (6, 8), (12, 16)):
        assert meshes.fitting_chunk(48, chunk, meshes.make()) == fitting
        assert f"loss.chunk={chunk} is rounded up to {fitting}" in capsys.readouterr().out


def test_no_device_holds_more_rows_of_a_chunk_on_more_devices():
    few, many = meshes.make(2, 1, jax.devices()[:2]), meshes.make()
    for batch in range(8, 200, 8):
        for chunk in (n for n in range(2, batch + 1, 2) if batch % n == 0):
            assert meshes.fitting_chunk(batch, chunk, many) / 8 <= chunk / 2
            assert meshes.fitting_chunk(batch, chunk, few) == chunk


@pytest.mark.parametrize(
    "batch, chunk, message",
    [
        (100, 20, r"batch 100 does not divide over 8 .*; use batch=96 with loss.chunk=16 or 24, "
                  r"or batch=104 with loss.chunk=8 or 104, or mesh.model=2, with which 4 devices"),
        (96, 36, r"loss.chunk 36 does not divide over 8 .*; use batch=96 with loss.chunk=32 or 48"),
        (96, 40, r"batch 96 does not split into .*loss.chunk=40; use batch=96 .*=32 or 48$"),
        (96, 192, r"batch 96 does not split into .*loss.chunk=192; use batch=96 .*=96$"),
        (5, 5, r"batch 5 does not divide over 8 devices .*; use batch=8 with loss.chunk=8$"),
    ],
)  # fmt: skip
def test_a_batch_and_a_chunk_that_do_not_fit(batch, chunk, message):
    with pytest.raises(UserError, match=message) as raised:
        meshes.fitting_chunk(batch, chunk, meshes.make())
    pairs = re.findall(r"batch=(\d+) with loss.chunk=([\d or]+)", str(raised.value))
    for size, chunks in pairs:  # what is advised is accepted as it is
        for one in map(int, chunks.split(" or ")):
            assert meshes.fitting_chunk(int(size), one, meshes.make()) == one


def test_a_longer_model_axis_is_advised_where_it_helps():
    with pytest.raises(UserError, match=r"use 8, or mesh.model=2, with which 4 devices share the"):
        meshes.check_batch(4, meshes.make())
    meshes.check_batch(4, meshes.make(model=2))
    with pytest.raises(UserError, match=r"use 4 or 8, or mesh.model=4, with which 2 devices share"):
        meshes.check_batch(6, meshes.make(model=2))
    meshes.check_batch(6, meshes.make(model=4))


def test_devices_that_make_no_mesh():
    """Nodes of different sizes, and a model axis that would cross them."""
    devices = [described(i, node) for i, node in enumerate([0] * 4 + [1] * 4)]
    mesh = meshes.make(2, 4, devices)
    assert [d.slice_index for d in mesh.devices[:, 0]] == [0, 1]
    message = r"mesh.model=8 does not fit into a node of 4 .*; set mesh.data=-1 and .* \[1, 2, 4\]"
    with pytest.raises(UserError, match=message):
        meshes.make(model=8, devices=devices)
    with pytest.raises(UserError, match="the nodes have 4, 3 devices; use as many of each"):
        meshes.make(devices=devices[:7])


def test_devices_of_a_tpu_that_are_no_box():
    kind = {"platform": "tpu", "device_kind": "TPU v6 lite", "core_on_chip": 0}
    chips = [described(i, 0, coords=(i % 2, i // 2, 0), **kind) for i in range(4)]
    assert meshes.make(devices=chips[:2]).devices.ravel().tolist() == chips[:2]
    with pytest.raises(
        UserError, match=r"2 devices, .* that are no box of the TPU.s torus .*; give"
    ):
        meshes.make(devices=[chips[0], chips[3]])


def described(number, node, **changes):
    """What a mesh reads of a device, of a GPU if nothing is changed."""
    fields = {"id": number, "process_index": number, "slice_index": node, "platform": "gpu"}
    return type("Device", (), {**fields, "device_kind": "GPU", **changes})()


def test_a_run_says_what_a_device_gets(tmp_path, capsys):
    root = runs.write_fashioniq(tmp_path)
    changes = ("eval.batch=12", "batch=16", "loss.chunk=4")
    made, data = runs.set_up(runs.tiny(tmp_path / "run", root, *changes))
    out = capsys.readouterr().out
    assert "eval.batch=12 is rounded up to 16: 2 rows on each of 8 devices of axis 'data'" in out
    assert "loss.chunk=4 is rounded up to 8" in out and made.stage.chunk == 8
    assert "2 rows on each of 8 devices of axis 'data'" in dry_run.describe(made, data)
    with pytest.raises(UserError, match=r"batch 12 .* use batch=8 with loss.chunk=8, or batch=16"):
        runs.set_up(runs.tiny(tmp_path / "run", root, "batch=12", "loss.chunk=4"))


@pytest.mark.parametrize(
    ("platform", "processes", "ours", "harms"),
    [
        ("cpu", [0], True, False),
        ("cpu", [0, 0], False, True),
        ("cpu", [0, 1], False, True),
        ("gpu", [0, 0], True, False),
        ("gpu", [0, 1], True, True),
        ("gpu", [0, 1], False, False),
    ],
)
def test_who_reads_no_program_from_the_cache(platform, processes, ours, harms, monkeypatch):
    """`ours`: its folder is one of this host, and not one that the user has named."""
    monkeypatch.setattr(programs, "_kept", ours)
    devices = [SimpleNamespace(platform=platform, process_index=i) for i in processes]
    assert meshes._may_harm(devices) is harms


@pytest.mark.parametrize("devices", [1, 2])
def test_several_cpu_devices_take_no_program_from_the_cache(devices, tmp_path):
    """Their collectives would not be kept apart: see `mesh.compile_anew`."""
    code = (
        "import sys, jax\nfrom cir_jax.runtime import mesh\n"
        "jax.numpy.zeros(1)\n"  # the first use of the cache: jax notes that there is one
        f"made = mesh.make(devices=jax.devices()[:{devices}])\n"
        "place = mesh.batch_sharding(made)\n"
        "jax.jit(lambda x: x.sum() * 3, in_shardings=place)(jax.numpy.ones(2)).block_until_ready()"
    )
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=100)
    kept = [p.name for p in tmp_path.iterdir() if "lambda" in p.name]
    assert bool(kept) == (devices == 1)
