# SPDX-License-Identifier: Apache-2.0
"""The run of an importer: bad arguments and sources, full disks, memory, plug-ins."""

import json
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest

from cir_jax.datasets import importer as contract
from cir_jax.datasets.importing import run
from cir_jax.errors import UserError
from tests import runs
from tests.datasets.importer_samples import COVR, MEGAPAIRS, lines, table, take


def test_sources_of_another_format(tmp_path):
    expected = (
        r"lasco expects query-image, target-image. The records look like those of megapairs: try "
        r"that format.\nread 2 .*, refused 2\n  no ref"
    )
    with pytest.raises(UserError, match=expected):
        take("lasco", lines(tmp_path / "a.jsonl", [MEGAPAIRS] * 2))
    with pytest.raises(UserError, match=r"look like those of webvid_covr"):
        take("spn", table(tmp_path / "a.csv", [COVR]))
    runs.dump(tmp_path / "corpus.json", [{"id": 42, "path": "val/a.jpg"}])
    with pytest.raises(UserError, match=r"nothing was written. lasco expects(?!.*look like)"):
        take("lasco", tmp_path / "corpus.json")
    (tmp_path / "pretty.json").write_text(json.dumps({"1": "a.jpg", "2": "b.jpg"}, indent=1))
    with pytest.raises(
        UserError, match=r"4 records .*\n  malformed record: 4, first .*json:1: no J"
    ):
        take("lasco", tmp_path / "pretty.json")
    runs.dump(tmp_path / "none.json", [])
    with pytest.raises(UserError, match="holds no record; nothing to import as lasco"):
        take("lasco", tmp_path / "none.json")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="is no JSON, JSON lines, CSV, parquet or tar file; it beg"):
        take("lasco", tmp_path / "a.npy")
    (tmp_path / "empty.json").write_text(" \n")
    with pytest.raises(UserError, match=r"empty.json is empty; fetch it again"):
        take("lasco", tmp_path / "empty.json")


def test_arguments_that_cannot_be(tmp_path):
    source, out = lines(tmp_path / "m.jsonl", [MEGAPAIRS]), tmp_path / "out.jsonl"
    (tmp_path / "folder").mkdir()

    def fails(match, sources=(source,), importer="megapairs", out=out, **arguments):
        with pytest.raises(UserError, match=match):
            run.run(importer, sources, out, **arguments)

    fails("no 'megapair' in importers; there are: lasco, megapairs, spn.* Did you mean 'megapairs'",
          importer="megapair")  # fmt: skip
    fails("no file .*gone.jsonl; give a file, a folder or", [tmp_path / "gone.jsonl"])
    fails("no file .*x\\*.jsonl", [str(tmp_path / "x*.jsonl")])
    fails(r"holds no \*.jsonl or .*; name the files themselves", [tmp_path / "folder"])
    fails("no folder of images .*gone", images=tmp_path / "gone")
    fails("limit is 0, expected at least 1", limit=0)
    fails("megapairs has no option 'text'; it takes none", options={"text": "llm"})
    fails("no option 'txt'; it takes: text. Did you mean 'text'", importer="spn",
          options={"txt": "llm"})  # fmt: skip
    fails("m.jsonl is a source and cannot be written", out=source, overwrite=True)
    fails("folder is a folder; name a file", out=tmp_path / "folder")
    fails("is both the output and the list", refused=out)
    assert not out.exists()


def test_what_was_there_stays(tmp_path):
    source, out = lines(tmp_path / "m.jsonl", [MEGAPAIRS]), tmp_path / "out.jsonl"
    out.write_text("precious")
    with pytest.raises(UserError, match=r"out.jsonl exists; name another file, or replace it"):
        run.run("megapairs", [source], out)
    source.write_text("{}\n")
    refused = tmp_path / "refused.jsonl"
    with pytest.raises(UserError, match="not one record is a triplet"):
        run.run("megapairs", [source], out, overwrite=True, refused=refused)
    assert out.read_text() == "precious"
    assert json.loads(refused.read_text())["reason"] == "no reference"  # said even so
    with pytest.raises(UserError, match=r"refused.jsonl exists"):
        run.run("megapairs", [source], tmp_path / "new.jsonl", refused=refused)
    with pytest.raises(UserError, match=r"out.jsonl exists"):
        run.run("megapairs", [source], out, refused=tmp_path / "new.jsonl")
    names = ["m.jsonl", "out.jsonl", "refused.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@pytest.mark.parametrize("count", [1, 20_000])
def test_a_full_disk_keeps_what_was_there(tmp_path, count):
    """Once the buffer is written at the end, and once in the middle."""
    records = ({**MEGAPAIRS, "t_img": f"{i}.jpg"} for i in range(count))
    source, out = lines(tmp_path / "m.jsonl", records), tmp_path / "out.jsonl"
    out.write_text("precious")
    (tmp_path / "out.jsonl.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*partial after [\d,]+ records: No space"):
        run.run("megapairs", [source], out, overwrite=True)
    assert out.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.jsonl", "out.jsonl"]


def test_an_unwritable_folder(tmp_path):
    source = lines(tmp_path / "m.jsonl", [MEGAPAIRS])
    with pytest.raises(UserError, match=r"cannot write .*Not a directory|File exists"):
        run.run("megapairs", [source], source / "below" / "out.jsonl")


def test_limit_stops_reading(tmp_path):
    lengths = []

    def records(path):
        for i in range(1000):
            lengths.append(i)
            yield f"{path}:{i}", {**MEGAPAIRS, "t_img": f"{i}.jpg"}

    convert = contract.load("megapairs").convert
    module = SimpleNamespace(__file__="endless.py", convert=convert, records=records)
    source = lines(tmp_path / "m.jsonl", [MEGAPAIRS])
    written, summary = take(module, source, limit=5)
    assert len(written) == 5 == summary.written == len(lengths)
    assert written[0]["source"] == "endless"


class _Token:
    """Lives as long as the record it is in."""


def test_memory_does_not_grow_with_the_triplets(tmp_path):
    alive, most = weakref.WeakSet(), 0

    def records(path):
        nonlocal most
        for i in range(3000):
            token = _Token()
            alive.add(token)
            most = max(most, len(alive))
            # Every second is a duplicate.
            yield f"{path}:{i}", MEGAPAIRS | {"t_img": f"{i // 2}.jpg", "token": token}

    convert = contract.load("megapairs").convert
    module = SimpleNamespace(__file__="tracked.py", convert=convert, records=records)
    _, summary = take(module, lines(tmp_path / "m.jsonl", [MEGAPAIRS]))
    assert (summary.written, summary.refused) == (1500, {"duplicate": 1500})
    assert most < 20  # the one being read, the example, and few that wait to be collected


def test_an_importer_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from cir_jax.datasets import importer\n"
        "OPTIONS = {'text': 'the column of the text'}\n"
        "def convert(record, text='t'):\n"
        "    return importer.neutral(record['a'], record['b'], [record[text]], {})\n"
    )
    rows = [{"a": "1.jpg", "b": "2.jpg", "t": "x", "u": "y"}]
    source = table(tmp_path / "a.csv", rows)
    (written,), _ = take(str(tmp_path / "mine.py"), source, options={"text": "u"})
    assert (written["text"], written["source"], written["id"]) == ("y", "mine", "a.csv:2")
    (tmp_path / "odd.py").write_text("def convert(record): return {'ref': 'a'}\n")
    with pytest.raises(UserError, match="the importer gave a record with 'ref'"):
        take(str(tmp_path / "odd.py"), source)
    (tmp_path / "none.py").write_text("HELP = ''\n")
    with pytest.raises(UserError, match="defines no 'convert'"):
        take(str(tmp_path / "none.py"), source)


def test_importers_are_free_of_jax():
    code = (
        "import sys; from cir_jax.datasets import importer\n"
        "from cir_jax.datasets.importing import run\n"
        "modules = [importer.load(name) for name in importer.names()]\n"
        "assert len(modules) == 5, modules\n"
        "assert not {'jax', 'flax', 'pyarrow'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
