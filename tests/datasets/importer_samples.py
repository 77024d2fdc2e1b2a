# SPDX-License-Identifier: Apache-2.0
"""One record of every format that is imported, and files of them."""

import csv
import json

from cir_jax.datasets.importing import run
from tools.fuzzing.making import shard as shard  # tests import it from here

MEGAPAIRS = {
    "q_img": "train-0/02280/1.jpg",
    "q_texts": ["a smaller mirror", "", "unlit"],
    "t_img": "train-0/01574/2.jpg",
    "hns": ["train-0/02280/1.jpg", "train-0/03116/3.jpg", "train-0/01574/2.jpg"],
}
FIQ = {"target": "B2", "candidate": "B1", "captions": ["b instead of a", "b"],
       "caption1": "a", "caption2": "b", "llm_caption": "is b"}  # fmt: skip
CIRR = {"target_hard": "train-1-0-img1", "reference": "train-1-0-img0", "caption": ["like b"],
        "pairid": 0, "img_set": {"members": ["xxx"]}, "caption1": "a", "caption2": "b"}  # fmt: skip
CC = {"target": "/data/cc/2.jpg", "reference": "/data/cc/1.jpg", "reference_name": "http://u/1",
      "target_name": "http://u/2", "captions": ["not a but b"]}  # fmt: skip
LASCO = {
    "qid": 28714000,
    "query-image": [28714, "val2014/COCO_val2014_000000028714.jpg"],
    "query-text": "The person is riding the bike",
    "target-image": [277005, "val2014/COCO_val2014_000000277005.jpg"],
}
COVR = {"txt1": 'Water "stream", wide', "txt2": "Leak", "edit": "make it, a leak",
        "pth1": "011851/1", "pth2": "011852/2", "sim": "0.7", "scores": "[0.1, 0.2]"}  # fmt: skip


def lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def take(importer, file, **arguments):
    """Imports into out.jsonl beside the file; (records written, summary)."""
    out = file.parent / "out.jsonl"
    summary = run.run(importer, [file], out, overwrite=True, **arguments)
    return [json.loads(line) for line in out.read_text().splitlines()], summary
