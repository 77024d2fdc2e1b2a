# SPDX-License-Identifier: Apache-2.0
"""Texts that no reader should have let through do not end a run when its report is written."""

import json

import pytest

from cir_jax import main
from cir_jax.evals.example import Example, Hit
from cir_jax.evals.reports import report
from cir_jax.evals.reports.sections import Queries
from tests import runs

TRIPLET = {"reference": "a.png", "target": "b.png", "text": "in red"}


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate("ab"):
        runs.write_image(tmp_path / "images" / f"{name}.png", (40, 90 * number, 9), number)
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(TRIPLET) + "\n")
    return tmp_path


def test_a_gallery_that_is_no_utf8_is_named_by_the_command(root, capsys):
    (root / "gallery.txt").write_bytes(b"a.png\nb.png\ncaf\xe9.png\n")
    assert main.main(["doctor", "folder", str(root)]) == 2
    said = capsys.readouterr().err
    assert f"{root}/gallery.txt is not UTF-8 text after line 2; save it as UTF-8" in said


def test_half_a_pair_is_found_when_it_is_read(root, capsys):
    (root / "val.jsonl").write_text(json.dumps(TRIPLET | {"text": "in \ud83d"}) + "\n")
    assert main.main(["doctor", "folder", str(root)]) == 2
    assert "val.jsonl:1: '\\ud83d' is no character" in capsys.readouterr().err


def test_a_report_is_written_whatever_its_texts_hold(tmp_path):
    text = "red \ud83d \u202e<b> \x1b[31m"
    example = Example("1", text, "a\udcff.png", "b.png", "b\u2066", 1, (Hit("c\r", "c", 0.5),))
    path = report.write_report(tmp_path, f"title {text}", [Queries("q", (example,))])
    page = path.read_bytes().decode()
    assert r"red \ud83d \u202e&lt;b&gt; \x1b[31m" in page and r"c\r" in page
    assert not set(page) & set("\x1b\u202e\u2066\r")
