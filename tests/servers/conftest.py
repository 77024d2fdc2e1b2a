# SPDX-License-Identifier: Apache-2.0
"""Backoff that takes no time, and what a waiting client tells."""

import pytest

from cir_jax.servers import retry


@pytest.fixture
def quick(monkeypatch):
    """Backoff in hundredths of a second."""
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(retry, "LONGEST_DELAY", 0.05)
    monkeypatch.setattr(retry, "OUTAGE", 0.01)


@pytest.fixture
def said(monkeypatch):
    """The lines that people are told."""
    lines = []
    monkeypatch.setattr(retry.progress, "say", lambda *m: lines.append(" ".join(map(str, m))))
    return lines
