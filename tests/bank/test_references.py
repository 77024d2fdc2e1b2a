# SPDX-License-Identifier: Apache-2.0
"""References: the loss is the same wherever they lie, and a cut-off store is never taken for whole.

Stand-ins of both kinds: one reference per image, and one per text.
"""

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax import contract
from cir_jax.bank import bank as banks
from cir_jax.bank import build, files, references
from cir_jax.data import loader, pipeline, tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import metrics, storage
from cir_jax.training import train
from cir_jax.training.stages import two_bank
from tests import runs
from tests.losses.problems import devices

MODELS = ("cross_attention", "sprc_shaped")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images, six of them references; triplets of one, two and four texts."""
    root = tmp_path_factory.mktemp("images")
    for i, name in enumerate("abcdefgh"):
        runs.write_image(root / f"{name}.png", (30 * i, 200 - 20 * i, 128), i)
    texts = (("is red",), ("is", "not"), ("a b", "b a", "a", "b"))
    pairs = ["ab", "bc", "cd", "de", "ef", "fg", "ah", "ac"]
    triplets = tuple(
        Triplet(a, b, texts[i % 3], texts[i % 3][0], "set", str(i))
        for i, (a, b) in enumerate(pairs)
    )
    paths = {n: str(root / f"{n}.png") for n in "abcdefgh"}
    return pipeline.prepare([TripletSet("set", triplets, paths)], tokens.load("clip"))


class Opening:
    """A preprocessing that counts what it opens, and fails at one image."""

    def __init__(self, fails=""):
        self._preprocess, self.opened, self.fails = Preprocess(16), Counter(), fails

    def __call__(self, path):
        self.opened[Path(path).stem] += 1
        if Path(path).stem == self.fails:
            raise UserError("cut off")
        return self._preprocess(path)

    def fingerprint(self):
        return self._preprocess.fingerprint()


@lru_cache
def built(model):
    """(functions, parameters); the same ones every time, so that programs are compiled once."""
    functions = contract.build(runs.tiny("unused", "unused", model=model).model)
    return functions, functions.init(0)


def inputs_of(model, data, place, preprocess=None, reference_text="per_triplet"):
    functions, params = built(model)
    plan = references.plan(data, functions.per_triplet, reference_text)
    return banks.Inputs(functions, params, data, plan, preprocess or Preprocess(16), place)


def ready(folder, inputs, shape=(1, 1), batch=2):
    return build.load_or_build(folder, inputs, devices(*shape), batch=batch, threads=2)


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_is_the_same_wherever_references_lie(model, data, tmp_path):
    mesh, found = devices(2), {}
    for place in ("device", "disk", "recompute"):
        inputs = inputs_of(model, data, place)
        rows = ready(tmp_path / place, inputs, (2, 1), batch=4)
        config = runs.tiny("unused", "unused", f"loss.references={place}", model=model, stage=2)
        stage = two_bank.Stage.from_config(config, inputs.functions, mesh)
        store = files.Store(rows.pop("references")) if place == "disk" else None
        fields = (*stage.fields, references.FIELDS[place])
        options = loader.Options(batch=8, seed=0, fields=fields, threads=2)
        sources = loader.Sources(inputs.preprocess, inputs.plan, store)
        batch = next(pipeline.batches(data, options, sources))
        batch = jax.device_put(batch, meshes.batch_sharding(mesh))
        loss = jax.jit(lambda b, rows, i=inputs, s=stage: s.loss(
            i.functions, i.index, i.index, b, rows, jax.random.key(0))[0])  # fmt: skip
        found[place] = loss(batch, banks.place(rows, mesh))
        if place == "device":
            rounded = rows | {"references": rows["references"].astype(jnp.bfloat16)}
            found["rounded"] = loss(batch, banks.place(rounded, mesh))
    assert "reference" in batch or "reference_pixels" in batch
    np.testing.assert_allclose(found["device"], found["recompute"], rtol=2e-5)
    np.testing.assert_allclose(found["disk"], found["rounded"], rtol=1e-6)
    np.testing.assert_allclose(found["device"], found["disk"], rtol=2e-2)
    assert not np.array_equal(found["device"], found["disk"])


def test_one_row_for_every_text_or_image(data):
    whole = references.plan(data, per_triplet=True)
    assert len(whole) == len(data.tokens) and whole.by_text and (np.diff(whole.image) >= 0).all()
    for text_id, triplet in enumerate(data.triplet_of_text()):
        row = whole.rows(data.reference_id[[triplet]], np.asarray([text_id]))[0]
        assert whole.text[row] == text_id and whole.image[row] == data.reference_id[triplet]
    image = references.plan(data, per_triplet=False)
    assert image.image.tolist() == sorted(set(data.reference_id.tolist())) and not image.reads_text
    assert image.image[image.rows(data.reference_id, None)].tolist() == data.reference_id.tolist()


def test_last_caption():
    """Within 32 triplets a target is later than a reference; later 32 are later than both."""
    reference, target = np.zeros(40, np.int32), np.full(40, 1, np.int32)
    target[3], reference[20], reference[35], target[33] = 2, 2, 3, 3
    data = SimpleNamespace(
        images=range(5), triplets=range(40), text_start=2 * np.arange(41),
        reference_id=reference, target_id=target,
    )  # fmt: skip
    # 0 is a reference to the end and 1 a target; 2 is a reference after it is a target of the same
    # 32, and 3 likewise in the second 32; 4 is in none.
    assert references.last_texts(data).tolist() == [2 * 39, 2 * 39, 2 * 3, 2 * 33, -1]
    plan = references.plan(data, per_triplet=True, reference_text="last_caption")
    assert plan.image.tolist() == [0, 2, 3] and plan.text.tolist() == [78, 6, 66]
    assert plan.rows(np.asarray([3, 0]), np.asarray([5, 9])).tolist() == [2, 0]


def test_last_caption_is_encoded(data, tmp_path):
    inputs = inputs_of("sprc_shaped", data, "device", reference_text="last_caption")
    rows = ready(tmp_path, inputs)["references"]
    plan = inputs.plan
    pixels = np.stack([inputs.preprocess(data.images.paths[i]) for i in plan.image])
    text = data.tokens.rows(plan.text, 16)
    want = inputs.functions.reference(inputs.index, pixels, text)
    np.testing.assert_allclose(rows, want, atol=1e-5)
    assert len(rows) == len(plan) == 6


def test_a_build_goes_on_where_it_was_cut_off(data, tmp_path, monkeypatch):
    model = "sprc_shaped"
    monkeypatch.setattr(files, "COMMIT", 0.0)
    broken = Opening(fails="h")
    with pytest.raises(UserError, match="cut off"):
        ready(tmp_path / "bank", inputs_of(model, data, "disk", broken))
    made_of = inputs_of(model, data, "disk").fingerprint()
    assert files.load(tmp_path / "bank", made_of) is None
    shutil.copytree(tmp_path / "bank", tmp_path / "torn")
    shutil.copytree(tmp_path / "bank", tmp_path / "other")

    whole = ready(tmp_path / "whole", inputs_of(model, data, "disk"))
    again = Opening()
    rows = ready(tmp_path / "bank", inputs_of(model, data, "disk", again))
    for name in whole:
        np.testing.assert_array_equal(rows[name], whole[name])
    assert again.opened["a"] == 0 and again.opened["h"] == 1
    assert sorted(p.name for p in (tmp_path / "bank").iterdir()) == [
        ".lock", "bank.json", "references.npy", "references.sums", "targets.npy", "targets.sums"
    ]  # fmt: skip

    # A part that is shorter than its record says, or made of something else, is begun anew.
    file = tmp_path / "torn" / "references.npy.part"
    file.write_bytes(file.read_bytes()[:200])
    record = tmp_path / "other" / files.PARTIAL
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"made_of": {"parameters": "others"}}))
    for name in ("torn", "other"):
        again = Opening()
        rows = ready(tmp_path / name, inputs_of(model, data, "disk", again))
        assert set(again.opened.values()) == {1} and len(again.opened) == 8
        np.testing.assert_array_equal(rows["references"], whole["references"])


def test_texts_of_one_image_share_its_encoder(data):
    """Four texts in one program cost less than four times what one text costs."""
    inputs = inputs_of("sprc_shaped", data, "disk")
    program = build._program(inputs.functions, "disk")

    def cost(texts):
        fields = {
            "pixels": jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((4, texts, 8), jnp.int32),
        }
        made = str(jax.make_jaxpr(program)(inputs.functions.abstract, fields))
        return made.count("f32[4,16,8] = dot_general"), made.count("f32[4,4,16,8] = dot_general")

    assert cost(1)[0] == 2 and cost(4) == (2, 0)  # of the target and of the references


def test_no_room(data, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1500))
    message = (
        r"the bank needs \d+.\d kB in .*/bank, and 1.5 kB are free there; make room, set "
        r"loss.bank_path to a folder on a larger disk, or set loss.references=recompute"
    )
    with pytest.raises(UserError, match=message):
        ready(tmp_path / "bank", inputs_of("cross_attention", data, "disk"))


def test_a_store_that_is_cut_off_later(data, tmp_path):
    rows = ready(tmp_path, inputs_of("cross_attention", data, "disk"))
    store = files.Store(rows["references"])
    with ThreadPoolExecutor(2) as pool:
        got = store.read([5, 0, 5], pool)
        assert got.dtype == jnp.bfloat16 and got.shape == (3, 16, 8)
        np.testing.assert_array_equal(got.view(np.uint16), rows["references"][[5, 0, 5]])
        with (tmp_path / "references.npy").open("r+b") as file:
            file.truncate(600)
        with pytest.raises(UserError, match=r"references.npy is damaged \(it ends too early\); de"):
            store.read([5], pool)


def test_auto(monkeypatch, capsys):
    config = runs.tiny("unused", "unused", model="sprc_shaped")
    functions, mesh = built("sprc_shaped")[0], devices(2)

    def chosen(rows):
        return references.choose_place(config.loss, functions, rows, mesh)

    assert references.budget() == 4e9
    monkeypatch.setattr(references, "BUDGET", 1e6)
    size = 32 * 8 * 4 / 2  # of a row, on each of two devices
    assert chosen(int(1e6 / size)) == "device"
    assert chosen(int(1e6 / size) + 1) == "disk"
    said = capsys.readouterr().out.splitlines()
    assert said[1] == (
        "references: 1,954 x 32 x 8, 1.0 MB on disk (loss.references=auto; on devices they would "
        "take 1.0 MB of each, and auto allows 1.0 MB)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("loss.references=dsik",),
            r"loss.references='dsik' is unknown; use .*Did you mean 'disk'",
        ),
        (("loss.reference_text=last",), r"reference_text='last' is unknown; use per_triplet or la"),
        (("loss.reference_text=last_caption",), r"references of this model do not depend on texts"),
    ],
)
def test_impossible_choices(changes, message):
    with pytest.raises(UserError, match=message):
        config = runs.tiny("unused", "unused", *changes, stage=2)
        two_bank.Stage.from_config(config, contract.build(config.model), devices(1))


def test_last_caption_is_not_recomputed():
    changes = ("loss.reference_text=last_caption", "loss.references=recompute")
    config = runs.tiny("unused", "unused", *changes, model="sprc_shaped", stage=2)
    with pytest.raises(UserError, match=r"reads the text of its own triplet; use disk or device"):
        two_bank.Stage.from_config(config, contract.build(config.model), devices(1))


def test_training_from_disk_resumes_exactly(tmp_path, capsys):
    root = runs.write_fashioniq(tmp_path / "data", images=8, triplets=4)
    changes = (
        *("loss.references=disk", "eval.benchmark=none", f"loss.bank_path={tmp_path / 'bank'}"),
        "checkpoint.every_steps=1",
    )

    def losses(name, *steps):
        for count in steps:
            config = runs.tiny(
                *(tmp_path / name, root, *changes, f"steps={count}"), stage=2, model="sprc_shaped"
            )
            train.train(config)
        lines = metrics.read(tmp_path / name / metrics.FILE)
        return [line["loss"] for line in lines if "loss" in line]

    assert losses("one", 3) == losses("two", 2, 3)
    said = capsys.readouterr().out
    assert said.count("references: 32 x 32 x 8, 16.4 kB on disk (loss.references=disk;") == 3
    assert said.count("building the bank of ") == 1
    assert sorted(p.name for p in (tmp_path / "bank" / "disk").iterdir()) == [
        ".lock", "bank.json", "references.npy", "references.sums", "targets.npy", "targets.sums"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "want"), [((None,), 4e9), ((8e9, 6e9), 1.5e9), ((80e9, 80e9), 4e9), ((0,), 4e9)]
)
def test_auto_allows_4_gb_or_a_quarter_of_the_smallest_device(limits, want, monkeypatch):
    stats = [None if x is None else {"bytes_limit": x} for x in limits]
    found = [SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(references.jax, "local_devices", lambda: found)
    assert references.budget() == want


def test_a_bank_in_a_mounted_bucket_is_used_on_the_disk_of_each_host(
    data, tmp_path, monkeypatch, capsys
):
    mounts, bucket = tmp_path / "mounts", tmp_path / "bucket"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nb {bucket} fuse.gcsfuse rw 0 0\n")
    monkeypatch.setattr(storage, "MOUNTS", str(mounts))

    def taken(host):
        """(what a host opens, its bank)."""
        monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / host))
        again = Opening()
        return again.opened, ready(
            bucket / "run" / "bank", inputs_of("sprc_shaped", data, "disk", again)
        )

    opened, first = taken("a")
    assert len(opened) == 8
    opened, again = taken("a")
    assert not opened and str(again["targets"].filename).startswith(str(tmp_path / "a"))
    kept = ["bank.json", "references.npy", "references.sums", "targets.npy", "targets.sums"]
    assert sorted(p.name for p in (bucket / "run" / "bank").iterdir()) == kept
    opened, second = taken("b")  # takes the copy
    assert not opened and str(second["targets"].filename).startswith(str(tmp_path / "b"))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert capsys.readouterr().out.count("copying the bank in") == 1
    file = bucket / "run" / "bank" / "references.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"rows in references.npy fail .*that is a copy of .*/run/ba"
    ):
        taken("c")
    assert not list((tmp_path / "c" / "banks").rglob("bank.json"))
    assert not taken("b")[0]  # it has its own


def test_a_bucket_that_takes_no_bank_is_only_said(data, tmp_path, monkeypatch, capsys):
    bucket = tmp_path / "bucket"
    monkeypatch.setattr(storage, "is_bucket", lambda path: str(path).startswith(str(bucket)))
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "host"))
    bucket.write_text("no folder")
    assert len(ready(bucket / "bank", inputs_of("cross_attention", data, "device"))["targets"]) == 8
    assert "warning: the bank could not be kept in" in capsys.readouterr().out
