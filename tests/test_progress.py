# SPDX-License-Identifier: Apache-2.0
"""What is told of long work: a bar on a terminal, a line now and then in the log of a job."""

import io
import sys

import pytest

from cir_jax import main, progress


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


SHOWN = {
    "\x1b[31mred": r"\x1b[31mred",
    "a\x07\x08b": r"a\x07\x08b",
    "abc\r123": r"abc\r123",
    "\x9b31m": r"\x9b31m",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u2066a\u2069": r"\u2066a\u2069",
    "\ud83d": r"\ud83d",
    "\x7f\x00": r"\x7f\x00",
    "a\u2028b": r"a\u2028b",
    "two\nlines\tand é": "two\nlines\tand é",
    "\U0001f468\u200d\U0001f469": "\U0001f468\u200d\U0001f469",
}


@pytest.mark.parametrize("text", SHOWN)
def test_what_a_terminal_would_obey_is_shown(text, capsys):
    assert progress.shown(text) == SHOWN[text]
    assert progress.shown(text, one_line=True).count("\n") == 0
    progress.say("name:", text)
    progress.show("name:", text, file=sys.stderr)
    said = capsys.readouterr()
    assert said.out == said.err == f"name: {SHOWN[text]}\n"


def test_a_stream_of_few_letters():
    """An error or a name must not end a run on a machine whose output is ASCII."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    progress.show("é \u202e 猫", file=stream)
    assert raw.getvalue() == b"\\xe9 \\u202e \\u732b\n"


def test_errors_are_printed_escaped(capsys):
    assert main.main(["doctor", "folder", "/no/such\x1b[31m"]) == 2
    said = capsys.readouterr().err
    assert r"/no/such\x1b[31m" in said and "\x1b" not in said
