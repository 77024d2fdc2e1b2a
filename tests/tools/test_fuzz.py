# SPDX-License-Identifier: Apache-2.0
"""Spoiled files of every reader; the long search is `python tools/fuzz.py`."""

import io
import json
import random
import zlib

import pytest
from PIL import Image

from cir_jax.errors import UserError
from tools import fuzz
from tools.fuzzing import mutations, readers

TRIALS = {
    **{"importers": 20, "containers": 30, "model_folders": 10, "products": 8, "checkpoints": 5},
    **{"images": 40, "adapters": 20, "evaluations": 20, "looks": 15},
    **{"columns": 15, "squares": 15},
}


@pytest.mark.parametrize("name", readers.READERS)
def test_spoiled_files_end_in_a_message(name):
    findings = fuzz.search([name], seed=0, first=0, trials=TRIALS.get(name, 60))
    assert findings.trials and not findings.found, "\n".join(findings.found.values())


def spoiled(name, content):
    return {mutations.mutated(content, name, random.Random(seed)) for seed in range(60)}


def test_spoiled_files_are_other_files():
    """Of every kind, structure and bytes; the same seed gives the same file."""
    content = json.dumps({"a": [1, {"b": "c"}]}).encode()
    assert spoiled("a.json", content) == spoiled("a.json", content)
    assert len(spoiled("a.json", content)) > 40
    assert any(b"NaN" in one for one in spoiled("a.json", content))


def test_spoiled_png_files_have_right_checksums(monkeypatch):
    """Else a decoder refuses all of them at the same place, and nothing behind it is reached."""
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    reached = set()
    for seed in range(80):
        content = mutations._png(file.getvalue(), random.Random(seed))
        at = 8
        while at < len(content):
            size = int.from_bytes(content[at : at + 4], "big")
            body = content[at + 4 : at + 8 + size]
            assert content[at + 8 + size : at + 12 + size] == zlib.crc32(body).to_bytes(4, "big")
            at += 12 + size
        try:
            image = Image.open(io.BytesIO(content), formats=("PNG",))
            reached.add("large" if max(image.size) > 999 else image.load() and "")
        except Exception as error:
            reached.add(str(error))
    assert len(reached) > 4


@pytest.mark.parametrize(
    ("error", "kinds"), [(KeyError("x"), 1), (UserError("a word"), 0), (MemoryError(), 1)]
)
def test_what_is_found(error, kinds, monkeypatch, tmp_path):
    """Anything but a UserError, once however often it comes, and with how to repeat it."""
    raised = []

    def reader(root):
        (root / "a.json").write_text("[1]")

        def read():
            if raised or (root / "a.json").read_text(errors="replace") != "[1]":
                raised.append(error)
                raise error

        return read

    monkeypatch.setitem(readers.READERS, "odd", reader)
    findings = fuzz.search(["odd"], seed=3, first=5, trials=9)
    assert raised and findings.trials == 9 and len(findings.found) == kinds
    for said in findings.found.values():
        assert "--only odd --seed 3 --first" in said and "--trials 1  (a.json)" in said


def test_a_read_without_end(monkeypatch, tmp_path):
    (tmp_path / "odd").mkdir()

    def reader(root):
        (root / "a.json").write_text("[]" * 50)

        def read():
            while (root / "a.json").read_bytes() != b"[]" * 50:
                pass

        return read

    monkeypatch.setitem(readers.READERS, "odd", reader)
    one, findings = fuzz.Trials("odd", tmp_path / "odd"), fuzz.Findings()
    for number in range(4):
        one.run(0, number, findings, late=0.05)
    assert list(findings.found) == ["odd: over 0.05 s"]


def test_an_unknown_reader(capsys):
    assert fuzz.main(["--only", "caption"]) == 2
    assert "Did you mean 'captions'?" in capsys.readouterr().err
