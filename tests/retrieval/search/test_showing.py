# SPDX-License-Identifier: Apache-2.0
"""Results as a table, as JSON, as a page, and with pictures on a terminal."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.retrieval.search import answering, html, previews, printing
from cir_jax.retrieval.search.asking import Question
from cir_jax.retrieval.search.results import Answer, Hit

HITS = [
    Hit(7, "dresses/red dress.jpg", 0.87654, 1, {"title": "Red dress", "price": 49.9}, (9, 12)),
    Hit(3, "漢字/ドレス🙂.jpg", 0.5, 2, {"title": None, "price": 1234567.5, "sale": True}),
    Hit(12345, "bad\x1b[31m\nname\u202e.jpg", -0.25, 10, {"title": "a\tb " * 30, "rank": "own"}),
]


def test_a_table_of_all_there_is():
    lines = printing.table(HITS).splitlines()
    assert lines[0].split() == ["rank", "score", "name", "same", "title", "price", "sale", "rank"]
    assert lines[1].split() == "1 0.8765 dresses/red dress.jpg +2 Red dress 49.9".split()
    assert lines[2].split() == "2 0.5000 漢字/ドレス🙂.jpg 1234567.5 true".split()
    assert r"bad\x1b[31m\nname\u202e.jpg" in lines[3] and "\x1b" not in lines[3]
    assert r"a\tb" in lines[3] and lines[3].endswith("own")
    assert len(lines) == 4
    assert "same" not in printing.table(HITS[1:])
    assert (
        printing.table([Hit(1, "a", 0.1, 1, {"x": None})]).split()
        == "rank score name 1 0.1000 a".split()
    )


def test_why_has_columns():
    why = {"image": 0.5, "text": -0.25, "avoid": 0.0}
    hits = [Hit(1, "a.jpg", 0.25, 1, why=why), Hit(2, "b" * 90, 0.2, 2, {"x": "y"}, why=why)]
    lines = printing.table(hits).splitlines()
    assert lines[0].split() == ["rank", "score", "image", "text", "avoid", "name", "x"]
    assert lines[1].split() == ["1", "0.2500", "+0.5000", "-0.2500", "+0.0000", "a.jpg"]
    narrow = printing.table(hits, 60).splitlines()
    assert all(len(line) <= 60 for line in narrow)
    assert "b…" in narrow[2] and "x" not in narrow[0].split()


@pytest.mark.parametrize("width", [30, 40, 63, 80, 100, 150, 250, 400])
def test_no_line_is_wider_than_the_terminal(width):
    lines = printing.table(HITS, width).splitlines()
    assert all(printing.columns_of(line) <= width for line in lines)
    assert len(lines) == 4 and "name" in lines[0] and "0.8765" in lines[1]
    assert ("title" in lines[0]) == ("Red dress" in lines[1]) == (width >= 63)
    assert ("dresses/red dress.jpg" in lines[1]) == (width in (40, 100, 150, 250, 400))
    assert ("…" in "".join(lines)) == (width < 250)


def test_columns_of_letters():
    assert printing.columns_of("abc") == 3
    assert printing.columns_of("漢字") == 4
    assert printing.columns_of("e\u0301") == 1  # a letter and the accent on it
    assert printing.fitting("漢字漢字", 5) == "漢字…" and printing.fitting("漢字", 4) == "漢字"
    assert printing.fitting("abcdef", 1) == "…" and printing.fitting("abc", 0) == ""


def test_details_of_an_image():
    why = {"image": 0.5, "text": -0.25}
    lines = printing.details(Hit(1, "a.jpg", 0.25, 3, {"x": 5, "y": None}, (2,), why), 0, 9)
    assert lines == [
        "3  0.2500  a.jpg",
        "image +0.5000 text -0.2500",
        "and 1 nearly the same",
        "x: 5",
    ]
    short = printing.details(HITS[2], 12, 2)
    assert len(short) == 2 and all(printing.columns_of(line) <= 12 for line in short)


def test_json_is_one_document():
    answer = Answer(tuple(HITS), 40, "score = query", True, (5,), {"total": 0.5})
    found = json.loads(json.dumps(printing.document("INDEX", answer)))
    assert set(found) == {
        "index", "formula", "candidates", "more", "left_out", "seconds", "results",
    }  # fmt: skip
    assert found["results"][0] == {
        "id": 7, "name": "dresses/red dress.jpg", "score": 0.87654, "rank": 1,
        "fields": {"title": "Red dress", "price": 49.9}, "same": [9, 12], "why": None,
    }  # fmt: skip
    assert json.dumps(printing.document("INDEX", answer)).isascii()


@pytest.mark.parametrize(
    "environment, kind",
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-256color", "TMUX": "/tmp/x", "LC_TERMINAL": "iTerm2"}, "blocks"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm"}, "none"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "none"),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, "none"),
        ({}, "none"),
    ],
)
def test_what_a_terminal_can(environment, kind):
    assert previews.supported(environment, "utf-8") == kind
    if kind == "blocks":  # its letters are none of ASCII
        assert previews.supported(environment, "ascii") == "none"


@pytest.fixture
def image():
    noise = np.random.default_rng(3).integers(0, 256, (90, 300, 3), np.uint8)
    return Image.fromarray(noise).resize((300, 90), Image.Resampling.BOX)


def test_blocks_are_two_pixels_each(image):
    drawn = previews.drawn(image, ["one", "two"], "blocks", {"COLORTERM": "truecolor"})
    lines = drawn.split("\n")
    assert len(lines) == 2 and lines[0].endswith("  one") and lines[1].endswith("  two")
    cell = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m\u2580")
    rows = [cell.findall(line) for line in lines]
    filled = [row for row in rows if row]
    assert len(filled) == 2 and all(len(row) == 16 for row in filled)  # 300 x 90 in 16 x 16 pixels
    small = np.asarray(image.resize((16, 4), Image.Resampling.BICUBIC))
    found = np.asarray(filled, int).reshape(2, 16, 2, 3).transpose(0, 2, 1, 3).reshape(4, 16, 3)
    np.testing.assert_array_equal(found, small)
    assert re.sub(r"\x1b\[[\d;]*m", "", lines[0]) == "\u2580" * 16 + "  one"
    assert all("\x1b[0m" in line for line in lines[:2])


def test_blocks_of_256_colours():
    image = Image.new("RGB", (10, 10), (255, 0, 90))
    drawn = previews.drawn(image, [], "blocks", {"TERM": "xterm-256color"})
    assert set(re.findall(r"\x1b\[(.*?)m", drawn)) == {"38;5;197;48;5;197", "0"}  # 16 + 36 * 5 + 1


def shown_by(drawn, pattern):
    content = "".join(re.findall(pattern, drawn))
    return Image.open(io.BytesIO(base64.b64decode(content, validate=True)))


def test_kitty_gets_png_in_pieces(image):
    drawn = previews.drawn(image, ["one"], "kitty", {})
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", drawn)
    assert len(commands) > 2 and all(len(content) <= 4096 for _, content in commands)
    assert commands[0][0] == "a=T,f=100,C=1,q=2,c=16,r=2,m=1"
    assert [keys for keys, _ in commands[1:]] == ["m=1"] * (len(commands) - 2) + ["m=0"]
    assert shown_by(drawn, r"\x1b_G[^;]*;([^\x1b]*)\x1b\\").size == (256, 77)
    # Room for it is made first, and the text is beside it.
    assert drawn.startswith("\n\x1b[1A\r\x1b7\x1b_G") and drawn.count("\n") == 2
    assert "\x1b8\x1b[18Cone\n" in drawn


def test_iterm_gets_png(image):
    drawn = previews.drawn(image, [], "iterm", {})
    assert "\x1b]1337;File=inline=1;width=16;height=2;preserveAspectRatio=1:" in drawn
    assert shown_by(drawn, r"File=[^:]*:([^\a]*)\a").size == (256, 77)


def test_a_picture_that_is_gone_leaves_its_place(index, capsys):
    index.path_of = lambda id: "nowhere.png"
    for kind in ("blocks", "kitty", "iterm"):
        previews.show(index, HITS[0], kind, {"COLORTERM": "truecolor"}, 60)
        out = capsys.readouterr().out
        assert "\x1b" not in out and out.startswith(" " * 18 + "1  0.8765  dresses/red dress.jpg\n")
        assert out.count("\n") == 4 + 1


class Page(HTMLParser):
    """Every attribute that could load something, and all text."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.texts, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data")
        ]

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_holds_its_pictures_and_nothing_from_outside(index, tmp_path):
    def path_of(id, inside=index.path_of):
        if id == index.ids(3)[0]:
            raise UserError("it leads out of the folder")
        return inside(id)

    question = Question((str(index.files[0]), 7), "<b>red</b> & \u202e", "stripes", k=23)
    [answer] = answering.answer(index, [question])
    index.path_of = path_of
    html.write(tmp_path / "page.html", index, "IN<DEX", question, answer)
    text = (tmp_path / "page.html").read_text("utf-8")
    page = Page(text)
    assert len(page.sources) == 2 + 22 - 1 and all(
        s.startswith("data:image/") for s in page.sources
    )
    assert not {"script", "link", "iframe", "b"} & {*page.tags} and "url(" not in text
    shown = " ".join(page.texts)
    assert "<b>red</b> & \\u202e" in shown and "not stripes" in shown and "IN<DEX" in shown
    assert "query - 0.5 avoided" in shown and "\u202e" not in text
    for hit in answer.hits:
        assert f"{hit.rank}  {hit.score:.4f}  {hit.name}" in shown
    nothing = Answer((), 0, "score = query")
    html.write(tmp_path / "none.html", index, "INDEX", Question((5,), where="count = 9"), nothing)
    assert "Nothing was found." in (tmp_path / "none.html").read_text("utf-8")
