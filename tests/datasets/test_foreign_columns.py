# SPDX-License-Identifier: Apache-2.0
"""Columns that a stranger laid beside a file of triplets: made again unless they can be ours."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from cir_jax import files
from cir_jax.data import beside, token_files, tokens, triplet_columns
from cir_jax.data.triplet_columns import NAMES, ROWS, key_of
from cir_jax.datasets import conversion, generated
from tests import runs

TEXT, LIST = pa.large_string(), pa.large_list
COUNT = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of triplets with what is made of it, images, and one image elsewhere."""
    root = tmp_path_factory.mktemp("made")
    runs.write_image(root / "secret.png", (1, 2, 3))
    names = [f"{number}.png" for number in range(COUNT)]
    for name in names:
        runs.write_image(root / "set/images" / name, (9, 9, 9))
    records = [
        {"reference": one, "target": names[i - 1], "texts": [f"text {i}", "in red"]}
        for i, one in enumerate(names)
    ]
    records.append({"reference": "x.png", "reference_path": "images/3.png", "target": "4.png",
                    "text": "a", "group": ["x.png", "4.png"]})  # fmt: skip
    file = root / "set/made.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    os.utime(file, (1_000, 1_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_JAX_CACHE", str(root / "cache"))
        patch.setattr(conversion, "LEAST", 1)
        read(root / "set")
    return root


def read(root):
    """(triplets, their files, the tokens of their texts), as training reads them."""
    sets = generated.read([root / "made.jsonl"], {}, root, images=root / "images")
    table = token_files.table(sets, tokens.load("clip"))
    triplets = [one for each in sets for one in each.triplets]
    files = {name: file for each in sets for name, file in each.paths.items()}
    return triplets, files, np.concatenate([*table.blocks()]).tolist()


@pytest.fixture
def stranger(made, tmp_path, monkeypatch):
    """A copy of that, as somebody who has not made it has it; and what was made there."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "LEAST", 1)
    written = []
    for module in (conversion, token_files):
        real = module._write
        note = lambda *some, real=real, module=module: (written.append(module), real(*some))[1]
        monkeypatch.setattr(module, "_write", note)
    return tmp_path / "set", written


def forge(folder, name, change):
    """Puts other columns into a file, with a checksum that fits."""
    batches = [change(one) for one in triplet_columns.batches(folder / name)]
    with pa.OSFile(str(folder / "new"), "wb") as out:
        with pa.ipc.new_file(out, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    (folder / "new").replace(folder / name)
    record = json.loads((folder / beside.RECORD).read_text())
    record["files"] = beside.checksums(folder)
    if name == triplet_columns.ROWS:
        record["noted"]["identity"] = files.checksum(folder / name)[1]
    (folder / beside.RECORD).write_text(json.dumps(record))


def put(**columns):
    """A change: columns of other values, of those that are there."""

    def change(batch):
        found = {name: batch.column(name) for name in batch.schema.names}
        return pa.record_batch(found | {name: made(batch) for name, made in columns.items()})

    return change


def numbers(value, kind=None):
    return lambda batch: pa.array([value] * len(batch), kind or pa.int32())


def names(batch):
    return ["../../secret.png", *batch.column("name").to_pylist()[1:]]


def keys(batch):
    return np.asarray([key_of(name) for name in names(batch)], np.uint64)


def behind(batch, last):
    """Offsets of which the first and the last are right, and the others lead far behind."""
    return pa.py_buffer(np.asarray([0, *[10**12] * (len(batch) - 1), last]).tobytes())


def letters(batch):
    parts = [None, behind(batch, 3), pa.py_buffer(b"abc")]
    return pa.Array.from_buffers(TEXT, len(batch), parts)


def lists(batch):
    texts = batch.column("texts").flatten()
    parts = [None, behind(batch, len(texts))]
    return pa.Array.from_buffers(LIST(TEXT), len(batch), parts, children=[texts])


OUTSIDE = put(
    name=lambda b: pa.array(names(b), TEXT),
    key=lambda b: pa.array(keys(b)),
    by_key=lambda b: pa.array(np.argsort(keys(b)).astype(np.int32)),
)
FORGED = {
    "a name that leads out": (NAMES, OUTSIDE),
    "flags": (NAMES, put(flags=numbers(0, pa.uint8()))),
    "a control character": (NAMES, put(name=lambda b: pa.array(
        ["a\x1b.png", *b.column("name").to_pylist()[1:]], TEXT))),
    "a name twice": (NAMES, put(name=numbers("a.png", TEXT))),
    "letters from elsewhere": (NAMES, put(name=letters)),
    "prefixes": (NAMES, put(prefix=numbers(7))),
    "no paths": (NAMES, put(prefix=numbers(-2))),
    "order": (NAMES, put(by_key=numbers(99_999))),
    "other names": (NAMES, lambda b: pa.record_batch({"x": [1]})),
    "other rows": (ROWS, lambda b: pa.record_batch({"x": [1]})),
    "numbers of names": (ROWS, put(target=numbers(99_999))),
    "numbers below 0": (ROWS, put(reference=numbers(-3))),
    "members": (ROWS, put(members=numbers([99_999], LIST(pa.int32())))),
    "sources": (ROWS, put(source=numbers(5))),
    "empty cells": (ROWS, put(target=numbers(None))),
    "no text": (ROWS, put(texts=numbers([], LIST(TEXT)))),
    "texts without keys": (ROWS, put(texts=numbers(["a", "b", "c"], LIST(TEXT)))),
    "texts from elsewhere": (ROWS, put(texts=lists)),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_forged_columns_are_made_again(what, made, stranger):
    root, written = stranger
    name, change = FORGED[what]
    forge(root / ".cir_jax" / "made.jsonl.triplets", name, change)
    triplets, files, ids = read(root)
    assert conversion in written
    assert len(triplets) == COUNT + 1 and triplets[0].reference == "0.png"
    assert not any("secret" in str(file) for file in files.values())
    assert all(texts for texts in (one.texts for one in triplets)) and min(ids) >= 0
    written.clear()
    assert read(root) == (triplets, files, ids) and not written


NOTES = {
    "without numbered": lambda noted: noted.pop("numbered"),
    "numbered of no kind": lambda noted: noted.update(numbered="page"),
    "numbered a list": lambda noted: noted.update(numbered=[1]),
    "sources a word": lambda noted: noted.update(sources="made"),
    "no sources": lambda noted: noted.update(sources=[]),
    "several": lambda noted: noted.update(several=not noted["several"]),
    "count": lambda noted: noted.update(count=noted["count"] + 1),
    "identity": lambda noted: noted.update(identity="0" * 32),
    "prefixes of numbers": lambda noted: noted.update(prefixes=[1]),
    "what": lambda noted: noted.update(what=None),
}


@pytest.mark.parametrize("what", NOTES)
def test_forged_notes_are_made_again(what, made, stranger):
    root, written = stranger
    right = read(root)
    place = root / ".cir_jax" / "made.jsonl.triplets" / beside.RECORD
    record = json.loads(place.read_text())
    NOTES[what](record["noted"])
    place.write_text(json.dumps(record))
    written.clear()
    assert read(root) == right and conversion in written


def test_a_record_nested_too_deeply_is_made_again(made, stranger):
    root, written = stranger
    right = read(root)
    place = root / ".cir_jax" / "made.jsonl.triplets" / beside.RECORD
    place.write_text('{"key": ' + "[" * 100_000 + "]" * 100_000 + "}")
    written.clear()
    assert read(root) == right and conversion in written


IDS = LIST(pa.int32())
FORGED_TOKENS = {
    "ids": put(ids=numbers([10**6], IDS)),
    "ids below 0": put(ids=numbers([-1], IDS)),
    "none": put(ids=numbers([], IDS)),
    "over the context": put(ids=numbers([5] * 99, IDS)),
    "of fewer texts": lambda batch: batch.slice(0, 3),
}


@pytest.mark.parametrize("what", FORGED_TOKENS)
def test_forged_tokens_are_made_again(what, made, stranger):
    root, written = stranger
    folder = root / ".cir_jax" / "made.jsonl.triplets-clip"
    forge(folder, token_files.FILE, FORGED_TOKENS[what])
    ids = read(root)[2]
    assert written == [token_files] and 0 <= min(ids) <= max(ids) == 49407


def test_what_somebody_else_made_is_checked_once(stranger, monkeypatch):
    root, written = stranger
    checked, real = [], conversion._check
    monkeypatch.setattr(conversion, "_check", lambda *some: (checked.append(some), real(*some))[1])
    first = read(root)
    assert read(root) == first and len(checked) == 1 and not written
