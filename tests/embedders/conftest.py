# SPDX-License-Identifier: Apache-2.0
"""Backoff that takes no time, a cache of the test's own, and what people are told."""

import pytest

from tests.servers.conftest import quick, said  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test finds vectors, or names of servers, of another one."""
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
