# SPDX-License-Identifier: Apache-2.0
"""The kills in short: an index that was killed is as one that was left alone, and differences are
seen."""

import pyarrow as pa

from cir_jax.retrieval.index.catalogue import SCHEMA, Catalogue
from tools import index_kills


def test_a_killed_index_is_as_one_that_was_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "")
    result = index_kills.main(
        ["--kills", "1", "--most", "1", "--images", "40", "--seed", "2", "--out", str(tmp_path)]
    )
    assert result["kills"] >= 1 and result["differences"] == 0 and result["images"] >= 38
    assert sum(result["after_a_kill"].values()) == result["kills"]


class Made:
    """As much of an index as is compared."""

    loss = None

    def __init__(self, folder, names, rows=b"rows"):
        self.folder, self._rows = folder, rows
        folder.mkdir()
        (folder / "unreadable.jsonl").write_text("")
        columns = {field.name: [bytes(16) if field.name == "content" else 0] * len(names)
                   for field in SCHEMA}  # fmt: skip
        columns |= {"id": range(len(names)), "name": names}
        arrays = {n: pa.array(list(c), SCHEMA.field(n).type) for n, c in columns.items()}
        self.catalogue = Catalogue(pa.table(arrays))

    def rows(self, ids):
        return memoryview(self._rows)


def test_difference(tmp_path):
    want = Made(tmp_path / "a", ["x", "y"])
    difference = index_kills.difference
    assert difference(want, Made(tmp_path / "b", ["x", "y"])) == ""
    assert "x is there more than once" in difference(want, Made(tmp_path / "c", ["x", "x"]))
    assert "column name differs" in difference(want, Made(tmp_path / "d", ["x", "z"]))
    assert "rows differ" in difference(want, Made(tmp_path / "e", ["x", "y"], b"others"))
    other = Made(tmp_path / "f", ["x", "y"])
    (other.folder / "unreadable.jsonl").write_text("{}")
    assert "unreadable.jsonl differs" in difference(want, other)
    other.loss = {"largest": 1}
    assert "the loss is" in difference(want, other)
