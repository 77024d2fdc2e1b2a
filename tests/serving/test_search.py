# SPDX-License-Identifier: Apache-2.0
"""`POST /search` and the addresses of the page: what they find, and what they refuse."""

import json

import pytest

from tests.serving import made
from tests.serving.conftest import picture, problem, url


def names(response):
    assert response.status_code == 200, response.text
    return [result["name"] for result in response.json()["results"]]


def test_a_question_of_an_image_of_the_index(client):
    found = client.post("/search", json={"images": [{"id": 3}], "k": 2})
    assert names(found) == ["red-4.png", "red-8.png"]
    body = found.json()
    assert body["index"] == "photos" and body["candidates"] == 11 and body["more"]
    first = body["results"][0]
    assert first["rank"] == 1 and first["fields"] == {
        "colour": "red", "price": 40.0, "broken": None
    }  # fmt: skip
    kept = client.post("/search", json={"images": [{"id": 3}], "k": 1, "keep_reference": True})
    assert names(kept) == ["red-0.png"]


def test_pages_of_an_answer_follow_each_other(client):
    whole = names(client.post("/search", json={"text": "something", "k": 12, "fold": False}))
    question = {"text": "something", "k": 5, "fold": False}
    pages = [client.post("/search", json={**question, "offset": n}) for n in (0, 5, 10)]
    assert [name for page in pages for name in names(page)] == whole
    assert [page.json()["more"] for page in pages] == [True, True, False]


def test_an_image_is_an_id_an_upload_or_sent_and_gives_the_same(client, index):
    content = index.places[0].read_bytes()
    upload = client.post("/api/uploads", files={"image": ("any.png", content)}).json()
    assert (upload["width"], upload["height"]) == (40, 32)
    assert list(upload["ids"].values()) == [3]
    asked = [{"id": 3}, {"upload": upload["upload"]}, {"data": url(content)}]
    question = {"text": "but new", "keep_reference": True}
    answers = [client.post("/search", json={"images": [i], **question}) for i in asked]
    scores = [[r["score"] for r in a.json()["results"]] for a in answers]
    assert scores[0] == scores[1] == scores[2]
    for image in asked:  # it is the one of the index, and not found by itself
        assert "red-0.png" not in names(client.post("/search", json={"images": [image]}))
    again = client.post("/api/uploads", files={"image": ("other.png", content)}).json()
    assert again == upload


def test_an_image_of_another_index_that_is_served(start, index, tmp_path):
    (tmp_path / "b").mkdir()
    other = made.Index(tmp_path / "b", count=13)
    client = start({"photos": index, "more": other})
    same = {"images": [{"id": 3, "index": "photos"}], "index": "more"}
    assert "red-0.png" not in names(client.post("/search", json=same))  # there it has that name
    of_other = {"images": [{"id": 15, "index": "more"}], "index": "photos", "k": 1}
    assert names(client.post("/search", json=of_other))[0].startswith("red")
    problem(client.post("/search", json={"images": [{"id": 3, "index": "x"}]}), 404)


def test_where_min_score_not_and_several_images(client):
    red = {"images": [{"id": 3}, {"id": 7}], "fold": False}
    red["where"] = "colour = 'red' and price < 50"
    assert names(client.post("/search", json=red)) == []
    red["keep_reference"] = True
    assert set(names(client.post("/search", json=red))) == {"red-0.png", "red-4.png"}
    everything = client.post("/search", json={"text": "a"}).json()["results"]
    least = everything[3]["score"]
    some = client.post("/search", json={"text": "a", "min_score": least}).json()["results"]
    assert some == [r for r in everything if r["score"] >= least] and len(some) < 10
    avoided = client.post("/search", json={"text": "a", "not": "b", "weights": {"avoid": 3}})
    assert names(avoided) != [r["name"] for r in everything]


def test_images_that_are_nearly_the_same_are_under_the_best(start, tmp_path):
    twin = made.Index(tmp_path)
    twin.catalogue._contents[8] = twin.catalogue._contents[4]  # red-8 and red-4
    client = start({"twin": twin})
    question = {"images": [{"id": 3}], "text": "a"}
    shown = {r["id"]: r["same"] for r in client.post("/search", json=question).json()["results"]}
    assert [11] in shown.values() or [7] in shown.values()
    all_ = client.post("/search", json={**question, "fold": False, "k": 20}).json()["results"]
    assert len(all_) == 11 and not any(r["same"] for r in all_)


def test_queries_of_a_benchmark_with_the_ranks_of_their_answers(start, tmp_path):
    index = made.Index(tmp_path)
    index.queries = [
        {"reference": 3, "text": "but new", "targets": [7, 11]},
        {"reference": 4, "text": "but old", "targets": [5]},
    ]
    client = start({"benchmark": index})
    assert client.get("/api/info").json()["indexes"][0]["queries"] == 2
    listed = client.get("/api/queries", params={"offset": 1}).json()
    assert listed["total"] == 2 and listed["queries"] == [{"number": 1, **index.queries[1]}]
    answer = client.post("/search", json={"query": 0, "k": 20, "fold": False}).json()
    ranks = {result["id"]: result["rank"] for result in answer["results"]}
    assert answer["targets"] == [{"id": i, "rank": ranks[i]} for i in (7, 11)]
    other = {"images": [{"id": 7}], "text": "x", "query": 0, "where": "price < 75"}
    targets = client.post("/search", json=other).json()["targets"]
    assert targets == [{"id": 7, "rank": None}, {"id": 11, "rank": None}]  # left out; not allowed
    assert client.post("/search", json={"text": "x"}).json()["targets"] is None
    problem(client.post("/search", json={"query": 2}), 404)
    problem(client.get("/api/queries?index=x"), 404)


def test_what_is_served_is_told(client):
    info = client.get("/api/info").json()
    [index] = info["indexes"]
    assert (index["name"], index["images"], index["text_alone"]) == ("photos", 12, True)
    fields = {field["name"]: field for field in index["fields"]}
    assert fields["colour"]["values"] == ["blue", "green", "grey", "red"]
    assert (fields["price"]["min"], fields["price"]["max"]) == (0, 110)
    assert fields["broken"]["values"] is None and fields["broken"]["min"] is None
    assert info["limits"]["k"] == 1000
    assert client.get("/healthz").json() == {"status": "ready"}


def test_images_are_listed_by_number(client):
    page = client.get("/api/images", params={"offset": 10, "limit": 5}).json()
    assert [image["id"] for image in page["images"]] == [13, 14] and page["total"] == 12
    some = client.get("/api/images", params={"where": "price >= 100"}).json()
    assert [image["name"] for image in some["images"]] == ["blue-10.png", "grey-11.png"]
    problem(client.get("/api/images", params={"where": "price >="}))


def test_thumbnails_have_a_tag_and_are_not_sent_twice(client, index):
    small = client.get("/images/4?size=64")
    assert small.headers["content-type"] == "image/webp" and small.content[:4] == b"RIFF"
    again = client.get("/images/4?size=64", headers={"If-None-Match": small.headers["etag"]})
    assert again.status_code == 304 and not again.content
    whole = client.get("/images/4?size=full")
    assert whole.content == index.places[1].read_bytes()
    assert whole.headers["content-type"] == "image/png"


def test_a_file_that_changed_has_another_tag_and_one_that_went_is_404(start, tmp_path):
    (tmp_path / "x").mkdir()
    other = made.Index(tmp_path / "x")
    client = start({"x": other})
    before = client.get("/images/3")
    other.places[0].write_bytes(picture("yellow", (50, 50)))
    after = client.get("/images/3", headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200 and after.content != before.content
    other.places[0].write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    problem(client.get("/images/3"), 404)
    problem(client.get("/images/3?size=full"), 404)
    other.places[0].unlink()
    problem(client.get("/images/3"), 404)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"text": "a", "k": 10**9}, 400, "1,000"),
        ({"text": "a", "k": 0}, 400, "k"),
        ({"text": "a", "k": "5"}, 400, "integer"),
        ({"text": "a", "k": True}, 400, "integer"),
        ({"text": "a" * 10_000}, 400, "2,000"),
        ({"text": "a", "not": "b" * 10_000}, 400, "2,000"),
        ({"text": "word " * 90}, 400, "77"),
        ({"text": "a", "offset": -1}, 400, "offset"),
        ({"text": "a", "offset": 10**12}, 400, "offset"),
        ({}, 400, "an image, a text or both"),
        ({"text": "  "}, 400, "an image, a text or both"),
        ({"text": None}, 400, "text"),
        ({"txt": "a"}, 400, "txt"),
        ({"text": "a", "where": "price < 5; drop table x"}, 400, "where"),
        ({"text": "a", "where": "__import__('os')"}, 400, "where"),
        ({"text": "a", "where": "(" * 1_900}, 400, "where"),
        ({"text": "a", "where": "a" * 3_000}, 400, "2,000"),
        ({"text": "a", "index": "../photos"}, 404, "../photos"),
        ({"images": [{"id": 99}]}, 404, "99"),
        ({"images": [{"id": -1}]}, 400, "id"),
        ({"images": [{"id": 2**70}]}, 400, "id"),
        ({"images": [{"id": "../../etc/passwd"}]}, 400, "id"),
        ({"images": [{"id": 3, "data": "x"}]}, 400, "one of id, upload and data"),
        ({"images": [{}]}, 400, "one of id, upload and data"),
        ({"images": [{"upload": "../secret"}]}, 400, "upload"),
        ({"images": [{"upload": "0" * 64}]}, 404, "send the image again"),
        ({"images": [{"id": 3}] * 9}, 400, "images"),
        ({"images": [{"data": "http://169.254.169.254/latest"}]}, 400, "opens no address"),
        ({"images": [{"data": "file:///etc/passwd"}]}, 400, "opens no address"),
        ({"images": [{"data": "data:image/png;base64,!!!"}]}, 400, "base64"),
        ({"images": [{"data": "data:image/png;base64,"}]}, 400, "empty"),
        ({"text": "a\ud800"}, 400, "unicode"),
        ({"text": "a", "not": "\udfff"}, 400, "unicode"),
        ({"text": "a", "\ud800": 1}, 400, "unicode"),
    ],
)
def test_bad_questions_are_refused_with_a_message(client, body, status, word):
    error = problem(client.post("/search", content=json.dumps(body), headers=JSON), status)
    assert word in error["message"], error["message"]


def test_the_part_of_a_question_that_is_wrong_is_named(client):
    long = "word " * 90
    for body, param in (
        ({"text": "a", "where": "price <"}, "where"),
        ({"text": long}, "text"),
        ({"text": "a", "not": long}, "not"),
        ({"text": "a", "k": 2000}, "k"),
        ({"images": [{"id": 3}, {"id": 99}]}, "id"),
    ):
        response = client.post("/search", json=body)
        assert response.json()["error"]["param"] == param, response.text


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"text": "a", "min_score": NaN}',
        b'{"text": "a", "weights": {"image": Infinity}}',
        b'{"text": "a", "weights": {"query": -Infinity}}',
        b'{"text": "a", "weights": {"query": 1e999}}',
        b'{"text": "a"',
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"' + b"[" * 10_000,
        b"[" * 100_000,
        b'{"text": "' + b"\xed\xa0\x80" + b'"}',
    ],
)
def test_bodies_that_are_none_are_refused(client, raw):
    problem(client.post("/search", content=raw, headers=JSON))


def test_a_body_of_another_type_is_refused(client):
    problem(
        client.post("/search", content=b'{"text": "a"}', headers={"Content-Type": "text/plain"})
    )
    problem(client.post("/search", data={"text": "a"}))


@pytest.mark.parametrize(
    "text", ["מעיל אדום", "👩‍👩‍👧 🔴", "a\u202eb", "\0", "' OR 1=1 --", "日本語"]
)
def test_texts_of_all_scripts_are_read(client, text):
    assert len(names(client.post("/search", json={"text": text, "k": 3}))) == 3


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/images/..%2f..%2fetc%2fpasswd", 404),
        ("/images/%2e%2e", 400),
        ("/images/../../etc/passwd", 404),
        ("/images/1e9", 400),
        ("/images/99", 404),
        ("/images/-1", 400),
        ("/images/99999999999999999999999", 400),
        ("/images/3?size=7", 400),
        ("/images/3?index=..%2f..", 404),
        ("/page/..%2fapp.py", 404),
        ("/page/%2e%2e/serving/app.py", 404),
        ("/api/uploads/..%2fx", 404),
        ("/api/uploads/x", 400),
        ("/api/images?limit=100000", 400),
        ("/api/images?offset=1e9", 400),
        ("/nothing", 404),
        ("/search", 405),
        ("/docs", 404),
    ],
)
def test_addresses_that_are_none(client, path, status):
    problem(client.get(path), status)
