# SPDX-License-Identifier: Apache-2.0
"""`/openapi.json` says what the server does: requests drawn from it get what it promises."""

import pytest

from cir_jax.serving import app
from cir_jax.serving.settings import Settings
from tests.serving import made
from tests.serving.conftest import listening
from tools import api_fuzz

STATUSES = {"200", "400", "401", "403", "413"}


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The app over made pictures, with its description."""
    index = made.Index(tmp_path_factory.mktemp("photos"))
    index.queries = [{"reference": 3, "text": "but new", "targets": [7]}]
    return app.make({"photos": index}, Settings(rate=0), log=lambda line: None)


def test_every_address_is_described_with_its_errors_and_examples(described):
    found = described.openapi()
    operations = {
        (method, path): one
        for path, methods in found["paths"].items()
        for method, one in methods.items()
    }
    assert {("post", "/search"), ("get", "/images/{id}"), ("post", "/triplets")} <= set(operations)
    assert {("post", "/v1/embeddings"), ("post", "/rerank"), ("get", "/metrics")} <= set(operations)
    for (method, path), one in operations.items():
        assert one["summary"] and "422" not in one["responses"]
        if path != "/healthz":
            assert set(one["responses"]) >= STATUSES, (method, path)
        for status, answer in one["responses"].items():
            if status >= "400":
                schema = answer["content"]["application/json"]["schema"]
                assert schema["$ref"].endswith("/ErrorBody"), (method, path, status)
    for name in ("SearchBody", "EmbeddingsBody", "RerankBody", "TripletBody", "ImageRef"):
        assert found["components"]["schemas"][name]["examples"], name
        assert found["components"]["schemas"][name]["additionalProperties"] is False
    assert found["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_requests_that_are_drawn_from_the_description(described):
    """A few of each address, from a seed; `tools/api_fuzz.py` draws for minutes."""
    few = ["--max-examples=4", "--phases=examples,fuzzing"]
    with listening(described, Settings(port=0)) as url:
        assert api_fuzz.asked(url, 1, few) == 0
