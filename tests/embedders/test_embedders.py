# SPDX-License-Identifier: Apache-2.0
"""What is asked of embeddings servers, what is made of their answers, and what is kept of them."""

import json
import sqlite3
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from cir_jax.data.pixels import NATURAL, RELEASED, Crop
from cir_jax.embedders import forms, prompts
from cir_jax.embedders.embedder import exact_type
from cir_jax.embedders.inputs import Inputs, side
from cir_jax.embedders.items import Item
from cir_jax.errors import ServerError, UserError
from tests import runs
from tests.embedders.colours import Colours, inputs, section, vector
from tests.generation.scripted import Scripted

pytestmark = pytest.mark.usefixtures("quick")
COMPOSING = [name for name, form in forms.FORMS.items() if form.composes]


@pytest.fixture
def photos(tmp_path):
    """Paths of three pictures."""
    paths = [tmp_path / f"{name}.png" for name in ("red", "green", "blue")]
    for path in paths:
        runs.write_image(path, runs.COLORS[path.stem], len(path.stem))
    return [str(path) for path in paths]


def values(array, count=5):
    """The vector in an array for pixels, or in ids."""
    flat = np.asarray(array).reshape(-1)
    return (flat.view(np.float32) if flat.dtype == np.int32 else flat)[:count]


@pytest.mark.parametrize("form", forms.FORMS)
def test_images_and_texts_in_every_form(form, photos):
    with Colours() as server:
        made = Inputs(section(server.url, form=form, composition="sum", per_request=2))
        preprocess, tokenizer = made.preprocess(NATURAL), made.tokenizer(NATURAL)
        preprocess.prepare(photos)
        asked = server.count()
        for path in photos:
            content = open(path, "rb").read()
            square = preprocess(path)
            assert square.dtype == np.float32 and square.shape == (8, 8, 3)
            np.testing.assert_array_equal(values(square), vector(content, ""))
        ids = tokenizer.encode(["green", "", "red blue"])
        assert server.count() == asked + 2 == 5  # the empty text is no vector
        for row, text in zip(ids, ("green", None, "red blue"), strict=True):
            want = np.zeros(5) if text is None else vector(None, text)
            np.testing.assert_array_equal(values(row), np.float32(want))
    assert {len(inputs(body)) for body in server.bodies} == ({1} if form == "messages" else {1, 2})
    assert all(body["model"] == "tiny" and "dimensions" not in body for body in server.bodies)
    assert tokenizer.lengths(["a", "b"]) == [5, 5]


@pytest.mark.parametrize("form", COMPOSING)
def test_image_and_text_in_one_input(form, photos):
    with Colours() as server:
        tokenizer = Inputs(section(server.url, form=form)).tokenizer(NATURAL)
        assert tokenizer.reads_references
        ids = tokenizer.encode_with([photos[0], photos[1], None], ["blue", " ", "green"])
    content = [open(path, "rb").read() for path in photos]
    wanted = vector(content[0], "blue"), vector(content[1], ""), vector(None, "green")
    for row, want in zip(ids, wanted, strict=True):
        np.testing.assert_array_equal(values(row), want)


def test_requests_are_what_servers_document():
    """The bodies to the letter, with nothing in them that has no value."""
    image = Item(b"pix", "JPEG", "", "", "image", "")
    both = Item(b"pix", "JPEG", "but red", "Be brief.", "both", "")
    text = Item(b"", "", "red", "", "text", "")
    url = "data:image/jpeg;base64,cGl4"
    part, words = {"type": "image_url", "image_url": {"url": url}}, {"type": "text"}
    user = {"role": "user", "content": [part, words | {"text": "but red"}]}
    system = {"role": "system", "content": [words | {"text": "Be brief."}]}
    wanted = {
        "messages": {"messages": [system, user], "encoding_format": "float"},
        "contents": {"input": [{"content": [part]}, {"content": [words | {"text": "red"}]}],
                     "encoding_format": "float"},
        "fields": {"input": [{"image": url}, {"text": "red"}], "encoding_format": "float"},
        "jina": {"input": [{"image": "cGl4"}, {"text": "red"}], "embedding_type": "float"},
        "modality": {"input": ["red"], "modality": "text", "encoding_format": "float"},
    }  # fmt: skip
    sent = {"messages": [both], "modality": [text]}
    for name, form in forms.FORMS.items():
        body = json.loads(form.body("m", sent.get(name, [image, text]), 0))
        assert body == {"model": "m", **wanted[name]}, name
    body = json.loads(forms.FORMS["modality"].body("m", [image], 64))
    assert (body["input"], body["modality"], body["dimensions"]) == ([url], "image", 64)
    body = json.loads(forms.FORMS["fields"].body("m", [both], 0))
    assert body["input"] == [{"text": "but red", "image": url}]


def test_prompts(tmp_path, photos):
    with Colours() as server:
        made = Inputs(section(server.url, prompts="qwen3_vl_embedding"))
        made.preprocess(NATURAL)(photos[0])
        made.tokenizer(NATURAL).encode_with(photos[:1], ["blue"])
        told = [inputs(body)[0] for body in server.bodies]
        assert told[-2][1:] == ("", "Represent the user's input.")
        assert told[-1][1:] == ("blue", "Retrieve images or text relevant to the user's query.")
        own = tmp_path / "own.json"
        own.write_text(
            '{"image": {"text": "An item:"}, "both": {"text": "Like this, but {text}!"}}'
        )
        made = Inputs(section(server.url, prompts=str(own)))
        made.preprocess(NATURAL)(photos[0])
        made.tokenizer(NATURAL).encode_with(photos[:1], ["blue"])
        assert [inputs(body)[0][1] for body in server.bodies[-2:]] == [
            "An item:",
            "Like this, but blue!",
        ]
    for name in prompts.PROMPTS:
        assert prompts.find(name).of.keys() == set(prompts.KINDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no object of objects"),
        ("{", "cannot be read"),
        ('{"picture": {}}', "has 'picture'; there are image, text, both, each with text and syst"),
        ('{"image": {"texts": "a"}}', "has 'image.texts'"),
        ('{"image": {"text": "a {text}"}}', "an image alone has no {text}"),
        ('{"both": {"text": "a"}}', "the text of 'both' is 'a'; it must hold {text}"),
        ('{"both": {"text": 3}}', "'both' holds what is no text"),
    ],
)
def test_wrong_prompts(content, message, tmp_path):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(UserError, match=message):
        prompts.find(str(tmp_path / "p.json"))
    with pytest.raises(
        UserError, match=r"'qwen3_vl' is unknown; there are: none, .*Did you mean 'qw"
    ):
        prompts.find("qwen3_vl")


def spoiled(name):
    """A change of the reply to the second request."""

    def change(number, body, answer):
        data = answer["data"]
        if number == 0 or not data:
            return answer
        if name == "fewer":
            return {"data": data[1:]}
        if name == "more":
            return {"data": [*data, data[0] | {"index": len(data)}]}
        if name == "numbers":
            return {"data": [one | {"index": 1} for one in data]}
        wrong = {"width": [1.0, 2.0], "nan": [1.0, float("nan"), 0, 0, 0], "none": [None] * 5,
                 "huge": [1e300] * 5, "zero": [0.0] * 5}[name]  # fmt: skip
        return {"data": [one | {"embedding": wrong} for one in data]}

    return change


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fewer", r"server http.*: 1 vectors came back for 2 inputs; it is no embeddings server"),
        ("more", r"3 vectors came back for 2 inputs"),
        ("numbers", r"the vectors of 2 inputs have the numbers \[1, 1\]"),
        (
            "width",
            r"gives for image .*red.png a vector of 2 values, and the model has model.width=5",
        ),
        ("nan", r"for image .*red.png a vector with values that are no finite numbers"),
        ("none", r"values that are no finite numbers"),
        ("huge", r"values that are no finite numbers"),
        ("zero", r"for image .*red.png a vector of zeros"),
    ],
)
def test_vectors_that_are_none(name, message, photos):
    """Each is said at once; nothing of it is kept."""
    with Colours(spoiled(name)) as server:
        made = Inputs(section(server.url, form="contents", concurrency=1))
        with pytest.raises(ServerError, match=message):
            made.preprocess(NATURAL).prepare(photos[:2])
        assert len(server.bodies) == 2
    with Colours() as server:
        made = Inputs(section(server.url, form="contents"))
        made.preprocess(NATURAL).prepare(photos[:2])
        assert server.count() == 2


def test_width_that_is_said(photos):
    with Colours() as server:
        made = Inputs(section(server.url, width=7))
        with pytest.raises(
            ServerError, match=r"5 values, and the model has model.width=7; .*width=5"
        ):
            made.preprocess(NATURAL)(photos[0])
        assert Inputs(section(server.url)).width() == 5
    assert [side(n) for n in (1, 192, 193, 768, 2048)] == [8, 8, 9, 16, 27]


def test_replies_that_are_tried_again(photos, said):
    answers = [(429, b"slow down", {"Retry-After": "0"}), (503, b"", {}), (500, b"oops", {}),
               (200, b"<html>", {}), (200, {"data": 3}, {})]  # fmt: skip
    good = Colours()
    behave = lambda n, body: answers[n] if n < len(answers) else good.behave(n, body)
    with Scripted(behave) as server:
        made = Inputs(section(server.url, concurrency=1, width=5))
        np.testing.assert_array_equal(
            values(made.preprocess(NATURAL)(photos[0])), vector(open(photos[0], "rb").read(), "")
        )
        assert len(server.bodies) == 7
    good.http.server_close()


def test_a_server_that_stays_away(photos):
    made = Inputs(section("http://127.0.0.1:9", wait=0.05, width=5))
    with pytest.raises(
        ServerError, match=r"has given no reply for .*the same command goes on from"
    ):
        made.preprocess(NATURAL)(photos[0])


def test_replies_without_end(photos, monkeypatch):
    monkeypatch.setattr("cir_jax.embedders.server.LONGEST_REPLY", 1000)
    answer = (200, {"data": [{"embedding": [0.5] * 2000}]}, {})
    with Scripted(lambda *_: answer) as server:
        made = Inputs(section(server.url, width=5, concurrency=1))
        with pytest.raises(
            ServerError, match=r"none of the first 3 requests, .*has over 1,000 byte"
        ):
            made.preprocess(NATURAL).prepare(photos)


def test_one_input_that_is_refused(photos):
    """The others of its request have their vectors, and who needs it is told why it has none."""
    good = Colours()

    def behave(number, body):
        if any(b"green" in (image or b"") or text == "green" for image, text, _ in inputs(body)):
            return 400, {"error": {"message": "no green"}}, {}
        return good.behave(number, body)

    with Scripted(behave) as server:
        made = Inputs(section(server.url, form="contents", concurrency=1))
        tokenizer = made.tokenizer(NATURAL)
        with pytest.raises(
            UserError, match=r"the text 'green': server .* has no vector .*no green"
        ):
            tokenizer.encode(["red", "green", "blue"])
        before = len(server.bodies)
        assert len(tokenizer.encode(["red", "blue"])) == 2 and len(server.bodies) == before
    good.http.server_close()


def test_nothing_is_asked_twice(photos, tmp_path, said):
    again = tmp_path / "copy.png"
    again.write_bytes(open(photos[0], "rb").read())
    with Colours() as server:
        made = Inputs(section(server.url))
        made.preprocess(NATURAL).prepare([*photos, str(again), photos[0]])
        assert server.count() == 3
        assert made.vectors.cost.images == 3 and made.vectors.cost.tokens == 7 * 4
        facts = made.facts()
        assert facts["values"] == {"encoding": "JSON", "type": "float32"} and facts["width"] == 5
        there = Inputs(section(server.url))  # as another run
        there.preprocess(NATURAL).prepare(photos)
        assert server.count() == 3 and there.vectors.cost.requests == 0
        # Another name, prompt or size is another vector.
        Inputs(section(server.url, tower="large")).preprocess(NATURAL)(photos[0])
        Inputs(section(server.url, prompts="gme")).preprocess(NATURAL)(photos[0])
        Inputs(section(server.url, max_side=10)).preprocess(NATURAL)(photos[0])
        assert server.count() == 6
    offline = Inputs(section("http://127.0.0.1:9"))
    assert values(offline.preprocess(NATURAL)(photos[1])).any()


def test_a_run_that_was_killed_goes_on(photos):
    """What was answered before the failure is there."""
    good = Colours()
    with Scripted(lambda n, body: good.behave(n, body) if n < 3 else (401, b"", {})) as server:
        made = Inputs(section(server.url, concurrency=1))
        with pytest.raises(ServerError, match="answered 401"):
            made.preprocess(NATURAL).prepare(photos)
    with Colours() as server:
        Inputs(section(server.url)).preprocess(NATURAL).prepare(photos)
        assert server.count() == 1
    good.http.server_close()


def test_two_runs_at_once_ask_once(photos):
    with Colours() as server:
        made = [Inputs(section(server.url, width=5)) for _ in range(2)]
        both = [
            threading.Thread(target=m.preprocess(NATURAL).prepare, args=(photos,)) for m in made
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert server.count() == 3


def test_another_model_under_the_same_name(photos):
    def turned(number, body, answer):
        return {"data": [one | {"embedding": one["embedding"][::-1]} for one in answer["data"]]}

    with Colours() as server:
        Inputs(section(server.url)).preprocess(NATURAL)(photos[0])
    with Colours(turned) as server:
        with pytest.raises(ServerError, match=r"another model is served under that name.*sqlite"):
            Inputs(section(server.url)).preprocess(NATURAL)(photos[1])
        Inputs(section(server.url, cache=str(photos[0]) + "-other")).preprocess(NATURAL)(photos[1])


def test_a_cache_that_is_damaged(photos, tmp_path, said):
    with Colours() as server:
        made = Inputs(section(server.url, cache=str(tmp_path / "kept")))
        made.preprocess(NATURAL)(photos[0])
        path = made.vectors.cache.path
        made.vectors.cache.close()
        path.write_bytes(b"no such thing" * 999)
        made = Inputs(section(server.url, cache=str(tmp_path / "kept"), concurrency=2))
        made.preprocess(NATURAL)(photos[0])
        assert server.count() == 2 and "is kept as" in " ".join(said)
        made.vectors.cache.close()
        with pytest.raises(UserError, match=r"vectors cannot be kept in .*name another folder"):
            made.vectors.cache.put({b"x": np.ones(3, np.float32)})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"vectors cannot be kept in .*model.cache"):
        Inputs(section("http://127.0.0.1:9", cache=str(tmp_path / "file")))
    assert sqlite3.connect(path).execute("select count(*) from vectors").fetchone() == (2,)


def test_rounding_is_recorded():
    row = np.float32([0.1, 1 / 3, 2])
    assert exact_type(row) == "float32" and exact_type(row.astype(np.float16)) == "float16"
    assert exact_type(np.asarray([0.5, 2, -3])) == "bfloat16"
    assert exact_type(np.asarray([0.1234, 1e300])) == "float64"  # decimals that float32 has not
    coded = forms.read(json.dumps({"data": [{"embedding": "zczMPQ=="}]}).encode(), 1)
    assert coded.encoding == "base64" and coded.tokens is None
    np.testing.assert_array_equal(coded.vectors[0], np.float32([0.1]))


def test_parts_of_images_and_decoded_ones(photos):
    whole = Image.open(photos[0])
    with Colours() as server:
        made = Inputs(section(server.url))
        for loading in (NATURAL, RELEASED):
            preprocess = made.preprocess(loading)
            crop = preprocess(Crop(photos[0], (0, 0, 20, 20)))
            np.testing.assert_allclose(
                values(crop)[:3], np.asarray(whole.crop((0, 0, 20, 20))).mean((0, 1)) / 255, 1e-6
            )
            np.testing.assert_array_equal(preprocess(whole), preprocess(photos[0]))


def test_a_changed_file_is_another_image(photos):
    with Colours() as server:
        preprocess = Inputs(section(server.url)).preprocess(NATURAL)
        preprocess.prepare(photos[:1])
        before = preprocess(photos[0])
        Image.open(photos[1]).resize((9, 9)).save(photos[0])
        assert (preprocess(photos[0]) != before).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"form": "modality"},
            r"model.form=modality has no place for both; set model.composition=s",
        ),
        (
            {"form": "fields", "prompts": "gme"},
            r"words of a system, and model.form=fields has no pl",
        ),
        ({"tower": ""}, r"model.tower is empty; give the server's name of the model"),
        ({"url": "host:8000"}, r"url='host:8000' is no address"),
        ({"url": "http://h/v1/embeddings"}, r"must end before /embeddings"),
        (
            {"url": "", "tower": "nowhere"},
            r"model.tower=nowhere is no folder of sentence-transform",
        ),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(UserError, match=message):
        Inputs(section(**{"url": "http://127.0.0.1:9", **changes}))


def test_without_the_http_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(
        UserError, match=r"model.url needs httpx2.*pip install 'cir_jax\[caption\]'"
    ):
        Inputs(section("http://127.0.0.1:9"))


def test_without_sentence_transformers(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(
        UserError, match=r"sentence_transformers, which is not .*'cir_jax\[torch\]'"
    ):
        Inputs(section(tower=str(tmp_path)))
