# SPDX-License-Identifier: Apache-2.0
"""What version 0.1.0 left on disk is read by the code of today: runs, banks, an exported file."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cir_jax import config, weights
from cir_jax.retrieval import load
from cir_jax.runtime import checkpoint, metrics
from cir_jax.training import train

ARCHIVE = Path(__file__).parent / "version_0_1_0.tar.xz"
TEXTS = ("is red", "has no blue", "is green")


@pytest.fixture
def made(tmp_path):
    """The folder that version 0.1.0 wrote, see README.md beside this file."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def expected(made):
    return json.loads((made / "expected.json").read_text())


def settings(made, name):
    """The config that a run was trained with; only where things lie has changed."""
    places = (f"workdir={made / name}", f"data.root={made / 'data'}", "init_from=")
    return config.override(weights.config_of(made / name, "last"), places)


def state_of_files(folder):
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.glob("*.npy"))}


@pytest.mark.parametrize("run", ["one", "two", "two-disk"])
def test_a_stopped_run_goes_on(run, made, capsys):
    """The loss of step 3 depends on the parameters, the moments of AdamW and the data position."""
    folder = made / f"{run}-stopped"
    bank = folder / "bank" / ("disk" if run == "two-disk" else "")
    rows = state_of_files(bank)
    assert len(rows) == (0 if run == "one" else 2)
    results = train.train(settings(made, folder.name))
    assert results["finished"] and results["step"] == 3
    assert results["history"][0] == expected(made)[run][0]
    losses, want = (
        {line["step"]: line["loss"] for line in lines if "loss" in line}
        for lines in (metrics.read(folder / metrics.FILE), expected(made)["loss"][run])
    )
    assert losses.keys() == want.keys() == {1, 2, 3}
    np.testing.assert_allclose(list(losses.values()), list(want.values()), rtol=1e-5)
    said = capsys.readouterr().out
    assert f"resuming {folder} at step 2" in said
    assert said.count("made before runs had checksums and noted their data: neither is checke") == 1
    assert said.count("was made before banks had checksums: not checked") == bool(rows)
    assert "building the bank" not in said and state_of_files(bank) == rows
    # What is written now is read as well: the run has steps of both versions.
    assert checkpoint.Checkpoints(folder / checkpoint.LAST).steps() == [2, 3]
    assert train.train(settings(made, folder.name))["step"] == 3


def check_vectors(made, retriever):
    with np.load(made / "vectors.npz") as vectors:
        names = [made / "data" / "images" / name for name in vectors["names"]]
        targets, queries = vectors["targets"], vectors["queries"]
    assert targets.shape == (3, 1, 16) and queries.shape == (3, 16)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(retriever.encode_gallery(names), targets, **close)
    np.testing.assert_allclose(retriever.encode_queries(names, TEXTS), queries, **close)


def test_a_finished_run_is_loaded(made):
    _, retriever = load.from_run(made / "two", "last")
    check_vectors(made, retriever)
    _, best = load.from_run(made / "two")
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check_vectors(made, best)  # the queries of step 2


def test_the_bank_of_a_finished_run_is_used_again(made, capsys):
    rows = state_of_files(made / "two" / "bank")
    results = train.train(settings(made, "two"))
    assert results["finished"] and results["best"] == 87.5
    assert "building the bank" not in capsys.readouterr().out
    assert state_of_files(made / "two" / "bank") == rows


def test_an_exported_file_is_loaded(made):
    chosen = config.load("clip_sum:fashioniq,stage=2", ["model.tower=auto", "model.dtype=float32"])
    _, retriever = load.from_weights(chosen, made / "two.safetensors")
    check_vectors(made, retriever)
