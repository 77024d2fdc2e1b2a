# SPDX-License-Identifier: Apache-2.0
"""The store in Milvus against the one of the folder, with Milvus Lite: all of it starts once."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from cir_jax.errors import UserError
from cir_jax.retrieval.milvus import candidates, collection, connection, expressions
from cir_jax.retrieval.stores import embedded, milvus
from tests.retrieval.stores.made_index import HOSTILE, Index, quoted

CONDITIONS = [
    "price < 50", "price >= 50.5 and price != 60", "not (price < 50 or kind = 'shoes')",
    "kind is null", "not kind is null", "empty is null", "empty is not null", "empty = 'x'",
    "not empty = 'x'", "new = true", "new != true", "not new = false", "new is null or price < 9",
    '"n ""of\' x" in (3, 4, 5, 7)', '"n ""of\' x" not in (3, 4, 5, 7)', '"n ""of\' x" < 10.5',
    f"big = {2**62 + 9}", f"big > {2**62 + 100}", f"big >= {-(2**63)}", f"big < {2**63 - 1}",
    "price in (1, 2.3333333333333335)", "name contains '/1'", "not name contains '/1'",
    "kind contains 'a'", "kind contains '%'", "not kind contains '_'", "kind < 'b'", "kind >= ''",
    "kind in ('shoes', '%', '')", "not (kind in ('shoes', '%') and (new = true or price > 50))",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file of Milvus Lite, which stays open while the module runs."""
    path = str(tmp_path_factory.mktemp("milvus") / "rows.db")
    kept = connection.Connection(path)
    yield path
    kept.close()


@pytest.fixture
def index(tmp_path, place, monkeypatch):
    """No generation is there before the first is written."""
    monkeypatch.setattr(milvus, "_generation", lambda folder: None)
    return Index(tmp_path, place)


def write(index):
    """Milvus holds the images of `index`; the writer, closed."""
    one = milvus.writer(index.folder, index.store_place, index.rows_per_image, index.embedding)
    one.add(index.catalogue.ids.tolist(), index.segments[0].rows, index.catalogue.table)
    one.commit()
    one.close()
    return one


def equal(store, index, queries, k):
    """What a store finds, which is what the definition says, to the last bit."""
    found = store.top(queries, k)
    for number, terms in enumerate(queries):
        ids, scores = index.best(terms, k)
        np.testing.assert_array_equal(found[0][number], ids)
        np.testing.assert_array_equal(found[1][number], scores)
    return found


def held(index):
    """Ids that Milvus has all rows of, and those that it has some of."""
    record = json.loads((index.folder / milvus.RECORD).read_text())
    where = connection.Connection(index.store_place)
    each = index.rows_per_image
    one = collection.Collection(where, record["collection"], each, index.embedding)
    one.load()
    [(ids, rows)] = one.images(10_000)
    where.close()
    return ids[rows == each].tolist(), ids[rows != each].tolist()


@pytest.mark.parametrize("each", [1, 4])
def test_the_answers_are_those_of_the_folder(tmp_path, place, monkeypatch, each):
    monkeypatch.setattr(milvus, "_generation", lambda folder: None)
    index = Index(tmp_path, place, each)
    write(index)
    store, rng = milvus.opened(index), np.random.default_rng(1)
    ask = lambda *weights, **more: index.terms(rng, *weights, **more)
    queries = [
        ask(), ask(), index.like(index.catalogue.ids[155]), ask(leave_out=range(3, 60)),
        *(ask(where=text) for text in CONDITIONS[:6]),
        ask(1, 0.3, vectors=2), ask(1, -0.5), ask(1, 0.2, -0.5, where="price > 5", vectors=2),
        ask(0.0), ask(-1),
    ]  # fmt: skip
    ids, scores = equal(store, index, queries, 10)
    own = embedded.opened(index).top(queries, 10)
    np.testing.assert_array_equal(ids, own[0])
    np.testing.assert_array_equal(scores, own[1])
    tied = index.catalogue.ids[150:160]  # of 20 that are the same, those with the least ids
    assert ids[2].tolist() == tied.tolist() and len(set(scores[2].tolist())) == 1
    equal(store, index, queries[:2], 1)
    found, scores = equal(store, index, [queries[0], queries[6]], len(store) + 2)
    assert (found[:, -2:] == -1).all() and np.isneginf(scores[:, -2:]).all()
    np.testing.assert_array_equal(store.rows([5, 3]), index.rows([5, 3]))
    assert len(store) == 300 and store.count(None) == 300
    store.close()


def test_a_condition_finds_what_it_means(tmp_path, index):
    """Milvus alone: what it finds too much is only where a pattern cannot say it."""
    index = Index(tmp_path, index.store_place, count=150)
    write(index)
    ids = index.catalogue.ids
    where = connection.Connection(index.store_place)
    name = json.loads((index.folder / milvus.RECORD).read_text())["collection"]
    one = collection.Collection(where, name, 1, index.embedding)
    vector = np.ones((1, index.embedding), np.float32)
    texts = [
        *CONDITIONS,
        *(f"{negated}kind {test} {quoted(text)}" for text in HOSTILE for negated, test in (
            ("", "="), ("not ", "="), ("", "contains"), ("not ", "contains"),
        ) if text or test == "="),
        f"kind in ({', '.join(map(quoted, HOSTILE))})",
        f"kind not in ({', '.join(map(quoted, HOSTILE[5:]))})",
    ]  # fmt: skip
    for text in texts:
        clause = index.clause(text)
        wanted = set(ids[clause.mask(index.catalogue.table)].tolist())
        [(found, bound)] = one.nearest(vector, 200, int(ids[-1]), expressions.of(clause.tree))
        assert np.isneginf(bound)
        if "contains" in text and set(text.partition("contains '")[2][:-1]) & set("%_\\\"'\n\r\t"):
            assert wanted <= set(found.tolist()), text
        else:
            assert wanted == set(found.tolist()), text
    where.close()


def test_lists_that_are_too_short_leave_the_question_to_the_folder(index, monkeypatch):
    write(index)
    store, rng = milvus.opened(index), np.random.default_rng(2)
    monkeypatch.setattr(candidates, "MOST", 12)  # fewer than the 20 that are the same
    queries = [index.terms(rng), index.like(index.catalogue.ids[155])]
    equal(store, index, queries, 3)
    assert candidates.top(queries, 3, index, store._nearest)[1] is None
    equal(store, index, queries, 13)
    store.close()


def test_few_rows_make_an_answer_certain(tmp_path):
    """Also where a group takes away: its list holds the rows that are least like its vector."""
    index, rng, asked = Index(tmp_path, "", each=4, count=3000), np.random.default_rng(7), []
    rows = index.segments[0].rows
    np.abs(rows, out=rows)  # so that every product is above 0
    flat = rows.reshape(-1, index.embedding)

    def nearest(vectors, most, condition):
        asked.append(most)
        products = vectors @ flat.T
        order = np.argsort(-products, axis=1)
        bounds = np.take_along_axis(products, order[:, most - 1 : most], 1)[:, 0]
        ids = index.catalogue.ids[order[:, :most] // 4]
        return [(np.unique(i), float(b)) for i, b in zip(ids, bounds, strict=True)]

    for weights in ((1,), (-1,), (1, -0.3), (1, 0.5)):
        terms = index.terms(rng, *weights)
        np.abs(terms.vectors, out=terms.vectors)
        [found] = candidates.top([terms], 10, index, nearest)
        wanted = index.best(terms, 10)
        np.testing.assert_array_equal(found, wanted)
    assert max(asked) < 6000  # of 12,000 rows


def test_a_reader_goes_on_while_images_come_and_go(index):
    write(index)
    store, rng = milvus.opened(index), np.random.default_rng(3)
    queries = [index.terms(rng), index.terms(rng, where="price < 50"), index.terms(rng)]
    before = equal(store, index, queries, 10)
    newer = Index(index.folder, index.store_place, count=50, first=1001, seed=5)
    best = newer.catalogue.ids[:1]
    newer.segments[0].rows[0] = queries[2].vectors[0]
    milvus._generation = lambda folder: index  # of monkeypatch: it is put back
    one = milvus.writer(index.folder, index.store_place, 1, index.embedding)
    one.add(newer.catalogue.ids.tolist(), newer.segments[0].rows, newer.catalogue.table)
    one.commit()
    np.testing.assert_array_equal(store.top(queries, 10), before)
    [(near, _)] = store._nearest(queries[2].vectors, 10, "")
    assert len(near) == 10 and near.max() < 1001
    gone = before[0][0, :3].tolist()
    one.remove([*gone, 77777])
    one.remove([])
    one.commit()
    one.close()
    later = index.without(gone)
    equal(store := milvus.opened(later), later, queries, 10)
    assert best not in store.top(queries, 10)[0]  # it is of no generation that this reader knows
    store.close()


def test_what_is_added_again_is_replaced_with_its_fields(index):
    one = write(index)
    ids, rows, table = index.catalogue.ids, index.segments[0].rows, index.catalogue.table
    rows[:100] = rows[100:200]
    none = pa.nulls(300, pa.string())
    index.catalogue.table = table.set_column(1, "kind", none)
    one = milvus.writer(index.folder, index.store_place, 1, index.embedding)
    client, gone = one._collection._client, []
    delete = client.delete
    client.delete = lambda *args, ids, **more: gone.append(ids) or delete(*args, ids=ids, **more)
    for _ in range(2):
        one.add(ids.tolist(), rows, index.catalogue.table)
    assert gone == [ids.tolist()]  # for a server, where a second insert is a second row
    one.commit()
    one.close()
    assert held(index) == (ids.tolist(), [])
    store, rng = milvus.opened(index), np.random.default_rng(4)
    equal(store, index, [index.terms(rng), index.terms(rng, where="kind is null")], 10)
    assert store.top([index.terms(rng, where="kind = 'shoes'")], 1)[0] == -1
    store.close()


def test_a_killed_writer_is_mended_by_the_next(index, tmp_path, monkeypatch):
    """Half an image, an image too many and one too few, and a process that ends in the middle."""
    index = Index(tmp_path, str(tmp_path / "own.db"), each=4, width=8, count=60)
    code = f"""
import os, signal
from cir_jax.retrieval.stores import milvus
from tests.retrieval.stores.made_index import Index
import pathlib
index = Index(pathlib.Path({str(tmp_path)!r}), {index.store_place!r}, each=4, width=8, count=60)
milvus._generation = lambda folder: None
one = milvus.writer(index.folder, index.store_place, 4, 8)
ids, rows, table = index.catalogue.ids, index.segments[0].rows, index.catalogue.table
one.add(ids[:20].tolist(), rows[:20], table[:20])
one.commit()
one.add(ids[20:40].tolist(), rows[20:40], table[20:40])
one._collection._client.delete(one._record["collection"], ids=[int(ids[3]) * 4 + 2])
one.remove(ids[5:7].tolist())
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    ids = index.catalogue.ids
    kept = index.without(ids[30:])
    with pytest.raises(UserError, match=r"has 151 rows and the index in .* 240"):
        milvus.opened(index)
    monkeypatch.setattr(milvus, "_generation", lambda folder: kept)
    milvus.writer(tmp_path, index.store_place, 4, 8).close()
    assert held(index) == (ids[:30].tolist(), [])
    store = milvus.opened(kept)
    equal(store, kept, [index.terms(np.random.default_rng(6))], 10)
    store.close()


def test_a_folder_that_was_filled_without_milvus_fills_it(index, monkeypatch):
    monkeypatch.setattr(milvus, "_generation", lambda folder: index)
    monkeypatch.setattr(milvus, "_REPAIRED", 100)
    milvus.writer(index.folder, index.store_place, 1, index.embedding).close()
    assert held(index) == (index.catalogue.ids.tolist(), [])
    # What is whole is not looked at again.
    monkeypatch.setattr(collection.Collection, "images", None)
    milvus.writer(index.folder, index.store_place, 1, index.embedding).close()


def test_a_writer_killed_over_a_new_collection_is_followed_by_a_newer(index, place):
    """Milvus Lite has made its folder, and not yet written what the collection is."""
    record = {"collection": "cir_jax_begun", "finished": False, "folder": str(index.folder)}
    (index.folder / milvus.RECORD).write_text(json.dumps(record))
    os.makedirs(os.path.join(place, "collections", "cir_jax_begun"))
    write(index)
    assert held(index) == (index.catalogue.ids.tolist(), [])


def test_a_copy_of_a_folder_has_a_collection_of_its_own(index, tmp_path, monkeypatch):
    write(index)
    name = lambda folder: json.loads((folder / milvus.RECORD).read_text())["collection"]
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy)
    milvus.writer(copy, index.store_place, 1, index.embedding).close()
    assert name(copy) != name(tmp_path)
    moved = tmp_path.with_name("moved")
    own = name(tmp_path)
    tmp_path.rename(moved)
    milvus.writer(moved, index.store_place, 1, index.embedding).close()
    assert name(moved) == own


def test_another_process_has_the_file(tmp_path):
    place = tmp_path / "held.db"
    place.mkdir()
    with (place / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            UserError, match=r"another process has .*held\.db open, .*one at a time"
        ):
            connection.Connection(str(place))
    connection.Connection(str(place)).close()
    with (place / "LOCK").open("w") as lock:  # closed means that others may have it
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_store_that_nobody_holds_lets_go_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(milvus, "_generation", lambda folder: None)
    index = Index(tmp_path, str(tmp_path / "own.db"), count=2)
    write(index)
    store = milvus.opened(index)
    assert len(store) == 2
    del store
    with (tmp_path / "own.db" / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_server_that_is_away_is_named_without_the_token(monkeypatch):
    monkeypatch.setenv(connection.TOKEN, "root:secret")
    monkeypatch.setattr(connection, "_CONNECT", 0.3)
    with pytest.raises(
        UserError, match=r"no Milvus at http://127\.0\.0\.1:9 .*MILVUS_TOKEN"
    ) as told:
        connection.Connection("http://127.0.0.1:9")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("rows", "no place of a store; give milvus:FILE.db"),
        ("tcp://host:19530", "no place of a store"),
        ("http://", "has no host"),
        ("http://host:port", "has no host"),
        ("http://root:Milvus@host:19530", "MILVUS_TOKEN to USER:PASSWORD"),
        ("/nowhere/rows.db", "no folder /nowhere for rows.db; make it"),
        ("FILE/rows.db", "no folder"),
    ],
)
def test_a_place_that_is_none(text, message):
    with pytest.raises(UserError, match=message) as told:
        milvus.place(text)
    assert "Milvus@" not in str(told.value)


def test_a_place_is_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert milvus.place("rows.db") == str(tmp_path / "rows.db")
    assert milvus.place("https://host/base/") == "https://host/base"
    (tmp_path / "old.db").write_bytes(b"SQLite")
    with pytest.raises(UserError, match=r"old\.db is no database of Milvus Lite 3"):
        milvus.place("old.db")


def test_packages_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[milvus\]'"):
        connection.Connection(str(tmp_path / "rows.db"))


@pytest.mark.parametrize("text", ["{", "[]", '{"collection": "a; drop"}', '{"collection": 3}'])
def test_a_record_that_is_damaged(index, text):
    (index.folder / milvus.RECORD).write_text(text)
    with pytest.raises(UserError, match=r"milvus\.json .*delete it"):
        milvus.opened(index)


def test_what_milvus_does_not_keep_is_refused_before_anything_is_sent(index):
    one = milvus.writer(index.folder, index.store_place, 1, index.embedding)
    ids, rows, table = index.catalogue.ids.tolist(), index.segments[0].rows, index.catalogue.table
    bad = rows.copy()
    bad[7] = np.nan
    with pytest.raises(UserError, match=f"image {ids[7]} has a row that is not finite"):
        one.add(ids, bad, table)
    long = pa.array(["x"] * 4 + ["é" * 40_000] + [None] * 295)
    with pytest.raises(UserError, match=rf"fields of image {ids[4]} take 8\d,\d+ bytes.*'kind'"):
        one.add(ids, rows, table.set_column(1, "kind", long))
    one.close()
    assert held(index) == ([], [])


def test_rows_of_another_width_are_refused(index):
    write(index)
    with pytest.raises(UserError, match="vectors of width 16, the index has 8; drop it"):
        milvus.writer(index.folder, index.store_place, 1, 8)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("price < 5", "(h_7072696365 == true and f_7072696365 < 5.0)"),
        ("big != 5", "(h_626967 == true and f_626967 != 5)"),
        (f"big >= {-(2**63)}", "(h_626967 == true and f_626967 >= -9.223372036854776e+18)"),
        ("new = true", "(h_6e6577 == true and f_6e6577 == true)"),
        ("not new in (true)", "(h_6e6577 == true and f_6e6577 not in [true])"),
        ("big in (1, 2)", "(h_626967 == true and f_626967 in [1, 2])"),
        (
            "big is null",
            "(h_626967 == false or h_626967 is null or not (h_626967 == true))",
        ),
        ("big is not null", "(h_626967 == true)"),
        ("name = '\\\"''\n'", r"""(h_6e616d65 == true and f_6e616d65 == "\\\"'\n")"""),
        ("name contains 'a'", '(h_6e616d65 == true and f_6e616d65 like "%a%")'),
        ("name contains '5%'", '(h_6e616d65 == true and f_6e616d65 like "%5_%")'),
        ("not name contains 'a'", '(h_6e616d65 == true and not (f_6e616d65 like "%a%"))'),
        ("not name contains '5%'", "(h_6e616d65 == true)"),
    ],
)
def test_expressions(text, wanted, tmp_path):
    """No part of them is what somebody wrote but a quoted text, and no null is left to Milvus."""
    assert expressions.of(Index(tmp_path, "", count=2).clause(text).tree) == wanted
    both = Index(tmp_path, "", count=2).clause(f"{text} and (new = true or {text})").tree
    assert expressions.of(both) == (
        f"({wanted} and ((h_6e6577 == true and f_6e6577 == true) or {wanted}))"
    )


def test_numbers_that_json_does_not_have():
    table = pa.table({"x": [float("inf"), float("-inf"), float("nan"), 1.0]})
    found = [entry.get("f_78") for entry in expressions.entries(range(4), table)]
    assert found == [sys.float_info.max, -sys.float_info.max, None, 1.0]


def test_logging_of_the_program_is_left_alone(tmp_path):
    """Importing pymilvus would close every handler that there is."""
    program = """
import io, logging
class Closing(logging.StreamHandler):
    def close(self):
        self.stream.close()
stream = io.StringIO()
logging.getLogger().addHandler(Closing(stream))
from cir_jax.retrieval.milvus import connection
connection.Connection("made.db").close()
logging.getLogger("mine").error("still here")
print(stream.getvalue().count("still here"), logging.config.dictConfig.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split() == ["1", "dictConfig"], done.stderr
