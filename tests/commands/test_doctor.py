# SPDX-License-Identifier: Apache-2.0
"""`cir-jax doctor` on good and on damaged data sets."""

import json

import pytest

from cir_jax.main import main
from cir_jax.positives import doctor
from tests import runs


def test_good_folder(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        runs.write_image(tmp_path / "images" / name, (1, 200, 3), seed=len(name) + ord(name[0]))
    line = json.dumps({"reference": "a", "target": "b", "text": "x"})
    (tmp_path / "train.jsonl").write_text(line)
    assert main(["doctor", "folder", str(tmp_path)]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def test_cirr_with_other_counts(tmp_path, capsys):
    root = runs.write_cirr(tmp_path)
    assert main(["doctor", "cirr", str(root)]) == 1
    said = capsys.readouterr().out
    assert "val queries" in said and "4,181  <- differs" in said
    assert "val queries: 12, officially 4,181; recalls are not comparable" in said


def test_damaged_fashioniq(tmp_path, capsys):
    root = runs.write_fashioniq(tmp_path / "data", categories=("round", "square"))
    (root / "images/B0000.png").unlink()
    (root / "images/B0001.png").write_bytes(b"")
    (root / "images/B0002.png").write_bytes(b"no image")
    copy = (root / "images/B0003.png").read_bytes()
    (root / "images/B0004.png").write_bytes(copy)
    file = root / "captions/cap.round.val.json"
    records = json.loads(file.read_text())
    runs.dump(file, [records[0] | {"target": "B9999"}, *records[1:]])
    out = tmp_path / "found.json"
    assert main(["doctor", "fashioniq", str(root), "--json", str(out)]) == 1
    found = json.loads(out.read_text())["images"]
    assert found["missing"] == ["B0000"] and found["empty (0 bytes)"] == ["B0001"]
    assert found["undecodable"] == ["B0002"]
    assert found["pixel-identical groups"] == ["B0003 = B0004"]
    assert found["named by a triplet but in no split"] == ["round/0 (B9999)"]
    assert "missing: 1: B0000" in capsys.readouterr().out
    assert main(["doctor", "fashioniq", str(root), "--no-decode"]) == 1
    assert "undecodable" not in capsys.readouterr().out


def test_official_numbers_add_up():
    entries = sum(n for row in doctor.FASHIONIQ.values() for n in row[1::2])
    assert entries == doctor.FASHIONIQ_ENTRIES
    assert sum(row[0] for row in doctor.FASHIONIQ.values()) == 18_000


def test_nothing_there(tmp_path, capsys):
    for name in doctor.FASHIONIQ and ("fashioniq", "cirr", "folder"):
        assert main(["doctor", name, str(tmp_path)]) == 2
        assert str(tmp_path) in capsys.readouterr().err


def test_unknown_command_names_the_nearest(capsys):
    assert main(["docter"]) == 2
    assert "Did you mean 'doctor'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["doctor", "fashion", "x"])
