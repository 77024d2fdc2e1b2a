# SPDX-License-Identifier: Apache-2.0
"""Running out of memory outside of the steps of a training ends in advice that fits the place."""

from functools import partial

import jax
import pytest

from cir_jax import config
from cir_jax.commands.positives import _open_run
from cir_jax.data import picture_files
from cir_jax.evals import benchmark
from cir_jax.generation import pair
from cir_jax.generation.dedupe import Groups
from cir_jax.generation.images import Pool
from cir_jax.main import main
from cir_jax.retrieval import load
from cir_jax.runtime import memory
from cir_jax.training import train
from tests import runs


def exhausted(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")


def no_host_memory(*_, **__):
    raise MemoryError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the folder of a run of one step, the data set)."""
    folder = tmp_path_factory.mktemp("trained")
    root = runs.write_fashioniq(folder / "data", images=12, triplets=8, categories=("dress",))
    train.train(runs.tiny(folder / "run", root, "steps=1", "eval.benchmark=none"))
    return folder / "run", root


@pytest.mark.parametrize(
    "place", ["cir_jax.data.screening.scan", "cir_jax.data.image_table.groups"]
)
def test_reading_the_triplets(place, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(place, no_host_memory)
    changes = ("eval.benchmark=none", "data.optimized=some.json", "data.annotated=5")
    wanted = (
        r"^out of memory while reading the data \(MemoryError\). What takes less: a smaller "
        r"data.threads \(now 2\).*; a smaller data.annotated \(now 5\)[^;]*$"
    )
    with pytest.raises(memory.OutOfMemory, match=wanted):
        train.train(runs.tiny(tmp_path, trained[1], *changes))


@pytest.mark.parametrize(
    ("place", "doing"),
    [
        ("cir_jax.retrieval.ranking.place", "ranking"),
        ("cir_jax.retrieval.ranking._blocks", "ranking"),
        ("cir_jax.retrieval.retriever._in_order", "putting the gallery together"),
    ],
)
def test_a_gallery_that_does_not_fit(place, doing, trained, monkeypatch):
    made, retriever = load.from_run(trained[0], "last", ["eval.benchmark=fashioniq"])
    built = benchmark.build(made)
    monkeypatch.setattr(place, exhausted)
    rows = r"12 x 1 x \d+ floats, [\d.]+ kB"
    wanted = (
        rf"while {doing} \(.*\). What takes less: more devices.* \(now 8; it has {rows}\); a ga"
    )
    with pytest.raises(memory.OutOfMemory, match=wanted):
        built.run(retriever)
    rows = retriever.encode_gallery if doing == "ranking" else None
    if rows is not None:
        gallery = rows(next(iter(built.tasks.values())).paths)
        with pytest.raises(memory.OutOfMemory, match=wanted):
            retriever.top(gallery[:2, 0], gallery, 3)


def test_parameters_that_do_not_fit(trained, monkeypatch):
    monkeypatch.setattr("cir_jax.runtime.sharding.place", exhausted)
    wanted = (
        r"while loading the parameters .*smaller model.tower \(this one has [\d,]+ par.*fsdp=true"
    )
    with pytest.raises(memory.OutOfMemory, match=wanted):
        load.from_run(trained[0], "last")


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ("cir_jax.evals.reports.run_report.write_evaluation", "while evaluating (Mem"),
        (
            "cir_jax.evals.metrics.fashioniq",
            "while evaluating (MemoryError). What takes less: a sm",
        ),
        (
            "cir_jax.retrieval.ranking.place",
            "while ranking (MemoryError). What takes less: more de",
        ),
    ],
)
def test_the_command_ends_with_status_2(place, wanted, trained, monkeypatch, capsys):
    flags = ["--workdir", str(trained[0]), "--step", "last", "--set", "eval.benchmark=fashioniq"]
    monkeypatch.setattr(place, no_host_memory)
    assert main(["evaluate", *flags]) == 2
    assert f"out of memory {wanted}" in capsys.readouterr().err


@pytest.fixture
def positives(tmp_path, trained):
    names = [f"B{i:04d}" for i in range(12)]
    pool = Pool({name: str(trained[1] / "images" / f"{name}.png") for name in names})

    def make(*changes):
        base = (f"data.root={trained[1]}", f"pair.run={trained[0]}", "pair.method=window",
                "pair.window=6,0", "pair.exclude_known=False")  # fmt: skip
        settings = config.load("positives:folder", [*base, *changes])
        (tmp_path / "made").mkdir(exist_ok=True)
        groups = Groups.make([[name] for name in names])
        opened = partial(_open_run, settings)
        return pair.run(settings, pool, groups, names, tmp_path / "made", opened)

    return make


def test_positives_encode_with_a_batch_of_their_own(positives, trained, monkeypatch):
    sizes, encode = [], load.Retriever._encode

    def noted(self, *arguments, **options):
        sizes.append(self._batch)
        return encode(self, *arguments, **options)

    monkeypatch.setattr(load.Retriever, "_encode", noted)
    monkeypatch.setattr("cir_jax.runtime.encode.encode", exhausted)
    for change, batch in (("pair.batch=8", 8), ("pair.batch=0", 16)):
        with pytest.raises(
            memory.OutOfMemory, match=rf"encoding .*a smaller pair.batch \(now {batch}\)"
        ):
            positives(change)
    assert sizes == [8, 16]


def test_positives_rank_in_blocks(positives, monkeypatch):
    monkeypatch.setattr("cir_jax.generation.similarity.similarities", exhausted)
    wanted = (
        r"while ranking images by their .*smaller pair.block \(now 4\): rows of 12 similarities"
    )
    with pytest.raises(memory.OutOfMemory, match=wanted):
        positives("pair.block=4")


def test_positives_without_host_memory(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.setattr("cir_jax.generation.dedupe.hash_images", no_host_memory)
    sets = (f"data.root={trained[1] / 'images'}", f"workdir={tmp_path / 'made'}", "data.threads=3")
    flags = [word for one in sets for word in ("--set", one)]
    assert main(["positives", "--config", "positives:folder", *flags]) == 2
    said = capsys.readouterr().err
    assert "out of memory while making triplets (MemoryError)" in said
    assert "a smaller data.threads (now 3)" in said and "the same command goes on" in said


def test_a_command_without_a_training_says_it_too(tmp_path, monkeypatch, capsys):
    """Also of one image alone, which is then none that cannot be used: nothing is left out."""
    runs.write_image(tmp_path / "images" / "a.png", (1, 2, 3))
    runs.write_image(tmp_path / "images" / "b.png", (3, 2, 1))
    (tmp_path / "val.jsonl").write_text('{"reference": "a", "target": "b", "text": "x"}')
    monkeypatch.setattr(picture_files.Image, "open", no_host_memory)
    monkeypatch.setattr(picture_files, "_BESIDE", 1 << 60)
    assert main(["doctor", "folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cir-jax doctor: out of memory (too little to decode ")
    assert said.count("\n") == 1 and ".png); what is written is kept" in said
