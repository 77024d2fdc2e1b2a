# SPDX-License-Identifier: Apache-2.0
"""`/v1`: what programs that speak OpenAI's, Cohere's or Jina's form get."""

import base64

import numpy as np
import openai
import pytest
from PIL import Image

from cir_jax.serving import app
from cir_jax.serving.settings import Settings
from tests.serving import made
from tests.serving.conftest import listening, picture, problem, url

MODEL = made.Model()


def image_part(content=None):
    return {"type": "image_url", "image_url": {"url": url(content)}}


def text_part(text="but red"):
    return {"type": "text", "text": text}


def vectors(response):
    assert response.status_code == 200, response.text
    return [np.asarray(item["embedding"], np.float32) for item in response.json()["data"]]


def embed(client, **body):
    return client.post("/v1/embeddings", json={"model": "photos", **body})


def test_texts(client):
    response = embed(client, input=["a chair", "a red chair"])
    expected = MODEL.encode_queries(None, ["a chair", "a red chair"])
    np.testing.assert_array_equal(vectors(response), expected)
    body = response.json()
    assert body["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert [item["of"] for item in body["data"]] == ["text", "text"]
    np.testing.assert_array_equal(vectors(embed(client, input="a chair"))[0], expected[0])


def test_images_and_composed_queries(client):
    content = picture("blue")
    row = MODEL.encode_images([Image.new("RGB", (40, 30), "blue")])[0, 0]
    query = MODEL.encode_queries([Image.new("RGB", (40, 30), "blue")], ["but red"])[0]
    both = [image_part(content), text_part()]
    items = [{"content": [image_part(content)]}, {"content": both}, {"content": "a"}, "a"]
    response = embed(client, input=items)
    found = vectors(response)
    assert [x["of"] for x in response.json()["data"]] == ["image", "query", "text", "text"]
    np.testing.assert_array_equal(found[0], row)
    np.testing.assert_array_equal(found[1], query)
    np.testing.assert_array_equal(found[2], found[3])
    message = {"role": "user", "content": both}
    np.testing.assert_array_equal(vectors(embed(client, messages=[message]))[0], query)
    parts = [text_part("but"), {"type": "image_url", "image_url": url(content)}, text_part("red")]
    np.testing.assert_array_equal(vectors(embed(client, input=[{"content": parts}]))[0], query)


def test_base64_is_little_endian_float32(client):
    plain = vectors(embed(client, input="a", dimensions=made.D))[0]
    coded = embed(client, input="a", encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), plain)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"input": "a", "model": "gpt"}, 404, "gpt"),
        ({"input": "a", "dimensions": 4}, 400, "12 values"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, 400, "float"),
        ({"input": "a", "extra": 1}, 400, "extra"),
        ({}, 400, "one of input and messages"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "one of input"),
        ({"input": []}, 400, "0 items"),
        ({"input": ["a"] * 257}, 400, "256"),
        ({"input": [1, 2, 3]}, 400, "tokens"),
        ({"input": [[1, 2], [3]]}, 400, "tokens"),
        ({"input": ""}, 400, "empty"),
        ({"input": [{"content": []}]}, 400, "empty"),
        ({"input": "a" * 3000}, 400, "2,000"),
        ({"input": "word " * 100}, 400, "77"),
        ({"input": ["\ud800"]}, 400, "unicode"),
        ({"input": [{"content": [image_part(), image_part()]}]}, 400, "2 images"),
        ({"input": [{"content": [image_part(b"<svg></svg>")]}]}, 400, "SVG"),
        ({"input": [{"content": [{"type": "input_audio"}]}]}, 400, "image_url"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, 400, "one message"),
        ({"messages": [{"role": "system", "content": "a"}]}, 400, "user"),
        (
            {"input": [{"content": [{"type": "image_url", "image_url": "http://10.0.0.1/x"}]}]},
            400,
            "opens no address",
        ),
    ],
)
def test_what_cannot_be_embedded(client, body, status, word):
    import json

    raw = json.dumps({"model": "photos", **body})
    response = client.post(
        "/v1/embeddings", content=raw, headers={"Content-Type": "application/json"}
    )
    assert word in problem(response, status)["message"], response.text


def test_models_that_have_no_vector_for_it(start, tmp_path):
    index = made.Index(tmp_path)
    index.model.rows_per_image, index.model.text_alone = 32, False
    client = start({"photos": index})
    error = problem(embed(client, input=[{"content": [image_part()]}]))
    assert error["code"] == "several_rows" and "32 rows" in error["message"]
    assert problem(embed(client, input="a"))["code"] == "no_text_alone"
    vectors(embed(client, input=[{"content": [image_part(), text_part()]}]))
    problem(client.post("/v1/rerank", json={"query": "a", "documents": [{"id": 3}]}))


def test_models_are_named_as_indexes(client):
    [model] = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["dimensions"]) == ("photos", "model", made.D)
    assert client.get("/v1/models/photos").json() == model
    problem(client.get("/v1/models/x"), 404)


def test_rerank(client, index):
    query = {"id": 3, "text": "but new"}
    documents = [{"id": 4}, {"id": 7}, {"image": url(picture("red"))}, url(picture("blue"))]
    body = client.post("/v1/rerank", json={"query": query, "documents": documents}).json()
    vector = MODEL.encode_queries([index.places[0]], ["but new"])[0]
    rows = [
        *MODEL.encode_images([index.places[1], index.places[4]])[:, 0],
        *MODEL.encode_images([Image.new("RGB", (40, 30), c) for c in ("red", "blue")])[:, 0],
    ]
    scores = np.asarray([row @ vector for row in rows])
    assert [x["index"] for x in body["results"]] == np.argsort(-scores, kind="stable").tolist()
    found = {x["index"]: x["relevance_score"] for x in body["results"]}
    np.testing.assert_allclose([found[i] for i in range(4)], scores, atol=1e-6)
    best = client.post(
        "/rerank",
        json={"query": query, "documents": documents, "top_n": 1, "return_documents": True},
    ).json()["results"]
    assert len(best) == 1 and best[0]["index"] == body["results"][0]["index"]


def test_rerank_by_an_image_alone_and_by_a_text(client):
    alone = {"content": [image_part(picture("red"))]}
    documents = [{"id": 5}, {"id": 3}, {"content": [image_part(picture("green"))]}]
    body = client.post("/rerank", json={"query": alone, "documents": documents}).json()
    assert body["results"][0]["index"] == 1
    text = client.post("/rerank", json={"query": "a", "documents": documents, "top_n": 99}).json()
    assert len(text["results"]) == 3 and text["usage"]["total_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"query": "a", "documents": []}, 400, "documents"),
        ({"query": "a", "documents": ["a text"]}, 400, "no image"),
        ({"query": "a", "documents": [{"text": "b"}]}, 400, "no image"),
        ({"query": "a", "documents": [{}]}, 400, "one of id, image and content"),
        ({"query": "a", "documents": [{"id": 99}]}, 404, "99"),
        ({"query": "a", "documents": [{"content": [text_part()]}]}, 400, "no image"),
        ({"query": "a", "documents": ["http://10.0.0.1/x.png"]}, 400, "no image"),
        ({"query": "a", "documents": [{"id": 3}] * 300}, 400, "256"),
        ({"query": "a", "documents": [{"id": 3}], "top_n": 0}, 400, "top_n"),
        ({"query": "a", "documents": [{"id": 3}], "model": "x"}, 404, "x"),
        ({"query": {}, "documents": [{"id": 3}]}, 400, "empty"),
        ({"query": {"id": 3, "image": url()}, "documents": [{"id": 3}]}, 400, "give one"),
        ({"query": {"id": 99}, "documents": [{"id": 3}]}, 404, "99"),
    ],
)
def test_what_cannot_be_ranked(client, body, status, word):
    assert word in problem(client.post("/v1/rerank", json=body), status)["message"]


def test_the_client_of_openai(serving, index):
    client = openai.OpenAI(base_url=f"{serving}v1", api_key="a-token-of-some-length", max_retries=0)
    expected = MODEL.encode_queries(None, ["a chair", "b"])
    for form in ("float", "base64"):
        found = client.embeddings.create(
            model="photos", input=["a chair", "b"], encoding_format=form
        )
        values = [item.embedding for item in found.data]
        if form == "base64" and isinstance(values[0], str):
            values = [np.frombuffer(base64.b64decode(x), "<f4") for x in values]
        np.testing.assert_array_equal(np.asarray(values, np.float32), expected)
    default = client.embeddings.create(model="photos", input="a chair")  # asks for base64 itself
    np.testing.assert_array_equal(np.asarray(default.data[0].embedding, np.float32), expected[0])
    assert [model.id for model in client.models.list()] == ["photos"]
    assert client.models.retrieve("photos").owned_by == "cir_jax"
    content = [image_part(index.places[0].read_bytes()), text_part()]
    composed = client.embeddings.create(
        model="photos", input=[{"content": content}], encoding_format="float"
    )
    query = MODEL.encode_queries([index.places[0]], ["but red"])[0]
    np.testing.assert_array_equal(np.asarray(composed.data[0].embedding, np.float32), query)
    with pytest.raises(openai.NotFoundError, match="there is no index 'x'"):
        client.embeddings.create(model="x", input="a")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{serving}v1", api_key="other", max_retries=0).models.list()


@pytest.fixture(scope="module")
def serving(index):
    """The address of a server that listens, with a token."""
    settings = Settings(port=0, token="a-token-of-some-length")
    made_app = app.make({"photos": index}, settings, log=lambda line: None)
    with listening(made_app, settings) as url:
        yield url
