# SPDX-License-Identifier: Apache-2.0
"""What is told of long work: a bar on a terminal, a line now and then in the log of a job."""

import sys

import pytest

from cir_jax import progress


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


def test_a_line_a_minute_without_a_terminal(said, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert type(progress.counter(10, "captioning")) is progress._Lines
    times = iter([0.0, 20.0, 59.0, 61.0, 100.0, 122.0])
    with progress._Lines(1000, "captioning", 400, lambda: next(times)) as lines:
        for _ in range(5):
            lines.update(20)
    # 60 of 600 took 61 s, so 540 take 549 s; then 100 took 122 s, so 500 take 610 s.
    assert said == [
        "captioning: 460 of 1,000, 9 min left",
        "captioning: 500 of 1,000, 10 min left",
    ]


def test_a_bar_on_a_terminal(said, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.counter(3, "captioning", 1) as bar:
        bar.update(2)
        assert bar.n == 3 and not bar.disable
    assert not said and "captioning" in capsys.readouterr().err
