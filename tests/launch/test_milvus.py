# SPDX-License-Identifier: Apache-2.0
"""launch/milvus/: what Docker and Helm are told, as far as it can be looked at without them."""

import re

import pytest
import yaml

from cir_jax.retrieval.milvus import connection
from tests.launch.calls import LAUNCH

COMPOSE = yaml.safe_load((LAUNCH / "milvus/compose.yaml").read_text())
VALUES = yaml.safe_load((LAUNCH / "milvus/values.yaml").read_text())
# Of a service, as the Compose specification has them; a mistyped key is refused by Compose.
KEYS = {
    "image", "command", "environment", "volumes", "healthcheck", "restart", "ports", "depends_on",
    "security_opt",
}  # fmt: skip
# Of the chart, as far as the values use them.
CHART = {
    "cluster", "image", "pulsarv3", "woodpecker", "streaming", "indexNode", "queryNode", "proxy",
    "service", "extraConfigFiles",
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service(name):
    service = COMPOSE["services"][name]
    assert set(service) <= KEYS
    image, _, tag = service["image"].rpartition(":")
    assert image and re.search(r"\d", tag) and tag != "latest"
    assert set(service["healthcheck"]) <= {"test", "interval", "timeout", "retries", "start_period"}
    for volume in service["volumes"]:
        assert volume.partition(":")[0] in COMPOSE["volumes"]
    for other, wanted in service.get("depends_on", {}).items():
        assert COMPOSE["services"][other] and wanted == {"condition": "service_healthy"}


def test_only_this_machine_reaches_milvus_and_nothing_else_is_reached():
    ports = {name: one.get("ports", []) for name, one in COMPOSE["services"].items()}
    assert ports == {"etcd": [], "minio": [], "milvus": ["127.0.0.1:19530:19530"]}


def test_the_parts_know_each_other():
    told = COMPOSE["services"]["milvus"]["environment"]
    storage = COMPOSE["services"]["minio"]["environment"]
    assert told["MINIO_ACCESS_KEY_ID"] == storage["MINIO_ROOT_USER"]
    assert told["MINIO_SECRET_ACCESS_KEY"] == storage["MINIO_ROOT_PASSWORD"]
    assert told["ETCD_ENDPOINTS"] == "etcd:2379" and told["MINIO_ADDRESS"] == "minio:9000"


def test_the_values_of_the_chart():
    assert set(VALUES) == CHART
    image = VALUES["image"]["all"]
    assert f"{image['repository']}:{image['tag']}" == COMPOSE["services"]["milvus"]["image"]
    user = yaml.safe_load(VALUES["extraConfigFiles"]["user.yaml"])
    assert user == {"common": {"security": {"authorizationEnabled": True}}}


def test_the_address_of_both_is_a_place_of_the_store():
    assert connection.place("http://127.0.0.1:19530") == "http://127.0.0.1:19530"
    assert VALUES["service"]["port"] == 19530
