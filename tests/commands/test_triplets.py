# SPDX-License-Identifier: Apache-2.0
"""`cir-jax triplets`: flags, what it prints, exit statuses."""

import json

import pytest

from cir_jax.main import main
from tests import runs

FIQ = {"candidate": "B1", "target": "B2", "captions": ["b"], "llm_caption": "is b"}


def test_import_with_every_flag(tmp_path, capsys):
    for name in ("B1", "B2"):
        runs.write_image(tmp_path / "images" / f"{name}.jpg", (9, 9, 9))
    records = [{**FIQ, "candidate": "old/B1"}, FIQ, {**FIQ, "target": "B3"}]
    runs.dump(tmp_path / "a.json", records[:2])
    runs.dump(tmp_path / "b.json", records[1:])
    flags = ["--images", f"{tmp_path}/images", "--suffix", ".jpg", "--strip", "old/", "--source",
             "mine", "--set", "text=llm", "--refused", f"{tmp_path}/refused.jsonl"]  # fmt: skip
    command = ["triplets", "spn", f"{tmp_path}/a.json", f"{tmp_path}/b.json", f"{tmp_path}/o.jsonl"]
    assert main(command + flags) == 0
    said = capsys.readouterr().out
    assert "read 4 records of 2 files, wrote 1 triplets, refused 3" in said
    assert "duplicate: 2, first" in said and "image missing: 1, first" in said
    assert json.loads((tmp_path / "o.jsonl").read_text()) == {
        "reference": "B1.jpg",
        "target": "B2.jpg",
        "text": "is b",
        "source": "mine",
        "id": "a.json:1",
    }
    assert len((tmp_path / "refused.jsonl").read_text().splitlines()) == 3
    assert main(command) == 2
    assert "o.jsonl exists" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--limit", "1"]) == 0
    assert "read 1 records of 2 files" in capsys.readouterr().out


def test_bad_flags_and_sources(tmp_path, capsys):
    runs.dump(tmp_path / "a.json", [FIQ])
    command = ["triplets", "spn", f"{tmp_path}/a.json", f"{tmp_path}/o.jsonl"]
    assert main([*command, "--set", "llm"]) == 2
    assert "--set llm is no option of a format; write OPTION=VALUE" in capsys.readouterr().err
    command[1] = "lasco"
    assert main(command) == 2
    assert "look like those of spn" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["triplets", "spn", "only-one"])
    assert stopped.value.code == 2 and not (tmp_path / "o.jsonl").exists()


def test_help_lists_the_formats(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["triplets", "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    for name in ("lasco", "megapairs", "spn", "synthtriplets18m", "webvid_covr", "llm_caption"):
        assert name in said
