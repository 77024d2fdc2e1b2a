# SPDX-License-Identifier: Apache-2.0
"""A captioner is one file, in any folder; the package is not touched."""

import json
from pathlib import Path

from cir_jax.main import main
from tests import runs

HERE = Path(__file__).parent


def test_captions_of_file_names(tmp_path):
    for i, name in enumerate(("red_floral-dress_12", "Blue shirt", "123")):
        runs.write_image(tmp_path / "photos" / f"{name}.jpg", (9, 99, 60 * i), i)
    work = tmp_path / "work"
    sets = (f"data.root={tmp_path / 'photos'}", f"caption.captioner={HERE / 'my_captioner.py'}",
            f"workdir={work}")  # fmt: skip
    flags = [x for change in sets for x in ("--set", change)]
    assert main(["positives", "--config", "positives:folder", *flags]) == 0
    records = [json.loads(line) for line in (work / "captions.jsonl").read_text().splitlines()]
    assert {r["image"]: r["text"] for r in records} == {
        "red_floral-dress_12.jpg": "red floral dress", "Blue shirt.jpg": "blue shirt",
    }  # fmt: skip
    assert all(r["captioner"] == "my_captioner" and r["model"] == "file names" for r in records)
    refused = json.loads((work / "captions_refused.jsonl").read_text())
    assert refused["image"] == "123.jpg" and refused["problem"] == "no word in the file name"
    texts = (work / "triplets.jsonl").read_text()
    assert texts.count("\n") == 2 and "red floral dress instead of blue shirt" in texts.lower()
