# SPDX-License-Identifier: Apache-2.0
"""`cir-jax search` on an index of tiny weights: what it prints, writes and refuses."""

import json
import re
import shutil
import sys

import pytest

import cir_jax
from cir_jax import main
from cir_jax.retrieval import opening
from tests import runs
from tests.convert import published


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photographs, weights, and their index."""
    root = tmp_path_factory.mktemp("search")
    rows = ["image,title,price"]
    for i in range(12):
        color = list(runs.COLORS)[i % 4]
        runs.write_image(root / f"photos/{color}/{i}.png", runs.COLORS[color], i, (48 + i, 32))
        if i % 4 != 3:
            rows.append(f"{color}/{i}.png,{color} \u202ething,{10 * i}")
    (root / "titles.csv").write_text("\n".join(rows))
    weights = published.write("spn", root, published.state())
    model = cir_jax.load(weights)
    model.index(root / "photos", out=root / "INDEX", titles=[root / "titles.csv"])
    return root, model


@pytest.fixture
def run(place, monkeypatch, capsys):
    """(status, standard output, standard error) of the command, its model loaded already."""
    root, model = place
    monkeypatch.chdir(root)
    monkeypatch.setattr(opening, "model_of", lambda record, **_: model)

    def call(*flags):
        status = main.main(["search", "INDEX", *flags])
        found = capsys.readouterr()
        return status, found.out, found.err

    return call


def test_a_table(run):
    status, out, err = run("--image", "photos/red/0.png", "--text", "but red", "--top", "11",
                           "--no-fold")  # fmt: skip
    lines = out.splitlines()
    assert status == 0 and not err
    assert lines[0].split() == ["rank", "score", "name", "title", "price"]
    assert [int(line.split()[0]) for line in lines[1:12]] == [*range(1, 12)]
    scores = [float(line.split()[1]) for line in lines[1:12]]
    assert scores == sorted(scores, reverse=True)
    assert "red/0.png" not in out and "red/4.png" in out  # the reference is left out
    assert r"red \u202ething" in out and "\u202e" not in out
    assert lines[12].startswith("score = query; 11 candidates, ") and len(lines) == 13


def test_every_flag_is_part_of_the_question(run, place):
    flags = [
        "--image", "photos/red/0.png", "--image", "photos/blue/2.png", "--id", "4", "--text",
        "green", "--not", "stripes", "--not", "dots", "--query-weight", "0.8", "--image-weight",
        "0.5", "--avoid-weight", "0.25", "--top", "3", "--offset", "1", "--min-score", "-0.5",
        "--where", "price < 100 or title is null", "--no-fold", "--keep-reference", "--why",
        "--approximate", "--recall", "0.9",
    ]  # fmt: skip
    status, out, err = run(*flags, "--json")
    found = json.loads(out)
    assert status == 0 and not err
    root, model = place
    index = cir_jax.open_index(root / "INDEX", model)
    images = [root / "photos/red/0.png", root / "photos/blue/2.png", 4]
    hits = index.search(
        images, "green", avoid="stripes, dots", query_weight=0.8, image_weight=0.5,
        avoid_weight=0.25, k=3, offset=1, min_score=-0.5, where="price < 100 or title is null",
        fold=False, keep_reference=True, why=True, exact=False,
    )  # fmt: skip
    assert [(hit.id, hit.rank, hit.fields, hit.why) for hit in hits] == [
        (one["id"], one["rank"], one["fields"], one["why"]) for one in found["results"]
    ]
    assert [one["rank"] for one in found["results"]] == [2, 3, 4] and found["more"]
    assert found["formula"] == "score = 0.8 query + 0.5 image - 0.25 avoided"
    assert found["index"] == "INDEX" and found["left_out"] == []
    assert found["candidates"] == 12 - 1  # only the last one costs 100 and has a title


def test_what_nothing_matches(run):
    status, out, err = run("--text", "red", "--where", "price > 1e6")
    assert (status, out.splitlines()[0]) == (1, "nothing was found") and not err
    status, out, _ = run("--text", "red", "--min-score", "5", "--json")
    assert status == 1 and json.loads(out)["results"] == []


def test_pictures_on_a_terminal(run, monkeypatch):
    flags = ["--text", "red", "--top", "2"]
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "TMUX", "KITTY_WINDOW_ID", "LC_TERMINAL", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    assert "\x1b" not in run(*flags)[1]  # no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    drawn = run(*flags)[1]
    assert drawn.count("\u2580") > 100 and drawn.count("\x1b[0m") == drawn.count("\u2580") // 16
    assert "\u202e" not in drawn and r"\u202e" in drawn  # of a title
    assert "\x1b" not in run(*flags, "--preview", "none")[1]
    assert "\x1b]1337;File=" in run(*flags, "--preview", "iterm")[1]
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    assert run(*flags)[1].count("\x1b_Ga=T") == 2
    table = run(*flags, "--preview", "none")[1].splitlines()[:3]
    assert all(len(line) <= 50 for line in table)


def test_a_page(run, place, tmp_path):
    status, out, _ = run("--id", "1", "--text", "red", "--html", str(tmp_path / "page.html"))
    assert status == 0 and out.splitlines()[-1] == f"page: {tmp_path / 'page.html'}"
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count('src="data:image/') >= 3 and "\u202e" not in page
    status, _, err = run("--text", "red", "--html", str(tmp_path / "none/page.html"))
    assert status == 2 and "folder does not exist" in err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--text", "red", "--where", "pric < 5"], "no field 'pric'.*Did you mean 'price'"),
        (["--text", "red", "--top", "1000000000"], "k=1000000000 is not within 1 to 1000"),
        (["--image", "nowhere.jpg"], "nowhere.jpg does not exist"),
        (["--id", "99"], "no image with the id 99"),
        (["--text", "red", "--query-weight", "nan", "--id", "1"], "the query weight is nan"),
        ([], "needs an image, a text or both"),
        (["--text", "word " * 100], "102 tokens, the limit is 77"),
    ],
)
def test_what_is_refused(run, flags, message):
    status, out, err = run(*flags)
    assert status == 2 and not out
    assert err.startswith("cir-jax search: ") and err.count("\n") == 1
    assert re.search(message, err)


def test_the_model_may_have_moved_and_what_needs_none_is_said_first(place, tmp_path, capsys):
    root, _ = place
    shutil.copytree(root / "INDEX", tmp_path / "INDEX")
    shutil.move(root / "spn.pt", tmp_path / "moved.pt")
    try:
        search = ["search", str(tmp_path / "INDEX"), "--text", "red"]
        assert main.main([*search, "--where", "nothing = 5"]) == 2
        assert "no field 'nothing'" in capsys.readouterr().err
        assert main.main(search) == 2
        assert "--model WEIGHTS" in capsys.readouterr().err
        assert main.main([*search, "--json", "--model", str(tmp_path / "moved.pt")]) == 0
        found = capsys.readouterr()
        assert len(json.loads(found.out)["results"]) == 10
        assert "moved.pt" in found.err  # what the loader says is no part of the answer
        other = published.write("spn", tmp_path, published.state(seed=5))
        assert main.main([*search, "--model", str(other)]) == 2
        assert "is of another model" in capsys.readouterr().err
    finally:
        shutil.move(tmp_path / "moved.pt", root / "spn.pt")
