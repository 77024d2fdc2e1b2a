# SPDX-License-Identifier: Apache-2.0
"""Reports: one file, well formed, escaped, with every picture, curve and number in it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cir_jax import config
from cir_jax.data import small_pictures
from cir_jax.evals import benchmark, metrics
from cir_jax.evals.benchmark import Example, Hit, Result
from cir_jax.evals.reports import explanations, figures, run_report
from cir_jax.evals.reports.figures import Chart, Series
from cir_jax.evals.reports.report import write_report
from cir_jax.evals.reports.sections import (
    Caution,
    Curves,
    Facts,
    Prose,
    Queries,
    Spread,
    Table,
    Tiles,
    compare,
    text_table,
)

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects elements and checks that tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag, kind=""):
        named = [a for t, a in self.found if t == tag]
        return [a for a in named if not kind or kind in a.get("class", "").split()]


def read(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    outside = [a[k] for _, a in page.found for k in ("src", "href", "xlink:href") if k in a]
    assert all(u.startswith("data:image/") for u in outside)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    return page


@pytest.fixture
def examples(tmp_path, tiny):
    """Two queries: the target third of five, and at rank 41."""
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for i, path in enumerate(paths):
        tiny.picture(path, i)
    hits = tuple(Hit(f"image{i}", paths[i], 0.9 - i / 10) for i in range(5))
    return [
        Example("a", "is <red> & long", paths[5], paths[2], "image2", 3, hits),
        Example("b", "no dog", paths[6], paths[6], "image6", 41, hits),
    ]


def test_queries_show_pictures_and_mark_the_target(tmp_path, examples):
    page = read(write_report(tmp_path / "out", "Queries", [Queries("Found", examples)]))
    images = page.all("img")
    assert len(images) == 6 + 7  # reference and five results; the second also its late target
    for image in images:
        content = base64.b64decode(image["src"].split(",")[1])
        assert Image.open(io.BytesIO(content)).size == (10, 12)
    targets = page.all("figure", "target")
    assert [a["class"] for a in targets] == ["target", "target later"]
    assert "is <red> & long" in page.texts  # as text, not as tags
    assert {"rank 3", "rank 41", "target, rank 41: image6"} <= set(page.texts)


def test_an_image_that_is_gone_leaves_its_name(tmp_path, examples):
    examples[0].results[0].path.unlink()
    page = read(write_report(tmp_path / "out", "Queries", [Queries("Found", examples[:1])]))
    assert len(page.all("img")) == 5
    assert "0.png" in page.texts


def test_pictures_are_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    photo = Image.fromarray(noise).resize((800, 600))
    photo.save(tmp_path / "photo.jpg")
    uri = small_pictures.data_uri(tmp_path / "photo.jpg")
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 20_000
    content = base64.b64decode(uri.split(",")[1])
    assert Image.open(io.BytesIO(content)).size == (160, 120)
    Image.new("RGBA", (300, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert small_pictures.data_uri(tmp_path / "clear.png").startswith("data:image/png;base64,")


@pytest.mark.parametrize(("loading", "white"), [("natural", False), ("released", True)])
def test_pictures_are_shown_as_the_run_opened_them(tmp_path, loading, white):
    """Of 16 bits, "released" leaves white alone, as in the published pipeline."""
    ramp = np.linspace(300, 60_000, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    file = tmp_path / "deep.png"
    hits = (Hit("deep", file, 0.5),)
    one = Example("a", "text", file, file, "deep", 1, hits)
    results = {"scores": {}, "protocol": {}, "step": 1, "seconds": 1.0, "bank_seconds": 0.0,
               "triplets": {}, "dropped": 0, "finished": True, "history": [],
               "config": {"data": {"loading": loading}}, "environment": {}}  # fmt: skip
    page = read(write_report(tmp_path / "out", "x", run_report.run_sections(results, [], [one])))
    assert len(page.all("img")) == 2
    for image in page.all("img"):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))))
        assert (shown.min() == 255) == white


def test_every_section(tmp_path):
    sections = [
        Prose("About", "First <one>.\n\nSecond."),
        Tiles([("recall, %", Spread(51.234, 0.5, 3), "over 3 seeds"), ("images", 1234, "")]),
        Table("Runs", ["", "n", "R@1"], [["a", 5, 1.5], ["b", 4, 2.5]], "Note.", best=True),
        Curves("Training", [Chart("Loss", [Series("a", [0, 1, 2], [3.0, 2.0, 1.0])])]),
        Facts("Config", {"model": {"name": "<x>"}, "batch": 8}),
    ]
    page = read(write_report(tmp_path, "A & B <C>", sections, "sub"))
    assert {"A & B <C>", "First <one>.", "Second.", "1,234", "over 3 seeds", "model.name"} <= set(
        page.texts
    )
    assert len(page.all("td", "best")) == 2 and len(page.all("path", "curve")) == 1
    assert len(page.all("circle")) == 3
    assert list(tmp_path.glob("*.partial")) == []


def test_compare_runs_over_seeds():
    runs = {
        "control": [{"m": 1.0, "other": 0}, {"m": 2.0, "other": 0}, {"m": 3.0, "other": 0}],
        "method": [{"m": 5.0, "other": 0}, {"m": 5.0, "other": 0}, {"m": 8.0, "other": 0}],
    }
    table = compare("Runs", runs, {"m": "R@1"})
    assert table.rows[0][1] == Spread(2.0, 1.0, 3)
    assert table.rows[1][1].deviation == pytest.approx(3**0.5)
    assert "3 seeds" in table.note
    lines = text_table(table).splitlines()
    assert lines[1] == "control  2.00 ± 1.00"
    assert lines[2] == "method   6.00 ± 1.73"
    assert compare("Runs", {"one": [{"m": 1.25}]}, {"m": "R@1"}).note == ""
    assert str(Spread.of([1.25])) == "1.25"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 3.9, [0, 1, 2, 3, 4]),
        (0.42, 0.61, [0.4, 0.45, 0.5, 0.55, 0.6, 0.65]),
        (25, 43, [25, 30, 35, 40, 45]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert figures.ticks(low, high) == pytest.approx(expected)


def test_a_constant_curve_has_room_around_it():
    found = figures.ticks(7.3, 7.3)
    assert found[0] < 7.3 < found[-1]


def test_curves_stay_inside_their_axes():
    rng = np.random.default_rng(0)
    series = Series("a", np.arange(5000), rng.normal(size=5000))
    drawn = figures.svg(Chart("Loss", [series]), {"a": 0})
    path = re.search(r'class="curve"[^>]*d="M([^"]*)"', drawn)[1]
    points = np.asarray([[float(v) for v in p.split(" ")] for p in path.split("L")])
    assert len(points) == 240  # averaged in buckets
    assert (points >= 0).all() and (points <= [460, 270]).all()
    assert (np.diff(points[:, 0]) > 0).all()


def test_points_that_are_no_numbers_are_left_out():
    series = Series("a", [0, 1, 2], [1.0, float("nan"), 2.0])
    assert figures.svg(Chart("Loss", [series]), {"a": 0}).count("<circle") == 2
    assert figures.svg(Chart("Loss", [Series("a", [], [])]), {"a": 0}) == ""


def test_legends(tmp_path):
    a, b = Series("a", [0, 1], [0, 1]), Series("b", [0, 1], [1, 0])
    shared = [Chart("One", [a, b]), Chart("Two", [a, a, b])]
    page = read(write_report(tmp_path, "Shared", [Curves("Curves", shared)]))
    assert len(page.all("div", "legend")) == 1 and len(page.all("path", "several")) == 2
    own = [Chart("One", [a]), Chart("Two", [a, b])]  # a chart of one curve is named by its title
    page = read(write_report(tmp_path, "Own", [Curves("Curves", own)]))
    assert len(page.all("div", "legend")) == 1


FASHION = {
    "dress_recall_at10": 10.0,
    "dress_recall_at50": 20.0,
    "my_own_recall_at10": 30.0,
    "my_own_recall_at50": 40.0,
    "average_recall_at10": 20.0,
    "average_recall_at50": 30.0,
    "average_recall": 25.0,
}
GALLERY = {"gallery": 3817, "hash": "0123456789ab", "queries": 2017}


def test_recall_table_of_categories():
    protocol = {"benchmark": "FashionIQ", "gallery": "full", "galleries": {"dress": GALLERY}}
    table = run_report.recall_table(FASHION, protocol)
    assert table.columns == ["", "queries", "gallery", "hash", "R@10", "R@50"]
    assert table.rows == [
        ["dress", 2017, 3817, "0123456789ab", 10.0, 20.0],
        ["my_own", "", "", "", 30.0, 40.0],
        ["average", "", "", "", 20.0, 30.0],
    ]
    tiles, _, facts = run_report.scores_sections(FASHION, protocol)
    assert tiles.items == [("average recall, %", 25.0, "")]
    assert facts.values == {"benchmark": "FashionIQ", "gallery": "full"}


def test_recall_table_of_one_gallery():
    scores = {"recall_at1": 1.0, "recall_subset_at2": 2.0, "recall_mean": 3.0}
    protocol = {"benchmark": "CIRR", "reference": "removed", "missing_images": 2, **GALLERY}
    table = run_report.recall_table(scores, protocol)
    assert table.columns[1:] == ["queries", "gallery", "hash", "images left out", "R@1", "Rsub@2"]
    assert table.rows == [["all", 2017, 3817, "0123456789ab", 2, 1.0, 2.0]]
    facts = run_report.scores_sections(scores, protocol)[-1]
    assert facts.values == {"benchmark": "CIRR", "reference": "removed"}
    assert run_report.scores_sections({}, {}) == []


def test_report_of_a_run(tmp_path, examples):
    history = [{"step": s, "seconds": 1.0, "score": 1.0, **FASHION} for s in (10, 20)]
    lines = [{"step": s, "loss": 3.0, "loss/a": 2.0, "loss/b": 4.0} for s in range(5)]
    lines.append({"step": 5, "eval/average_recall": 3.0})
    results = {
        "scores": FASHION, "protocol": {"benchmark": "FashionIQ", "galleries": {}},
        "history": history, "step": 20, "seconds": 3.2, "bank_seconds": 0.0, "finished": False,
        "triplets": {"a": 5, "b": 6}, "dropped": {"a": 1}, "config": {"batch": 8},
        "environment": run_report.environment(),
    }  # fmt: skip
    page = read(write_report(tmp_path, "Run", run_report.run_sections(results, lines, examples)))
    assert {"average R@10", "average R@50", "loss", "a", "b", "batch"} <= set(page.texts)
    assert "stopped; the same command resumes it" in page.texts
    assert len(page.all("path", "curve")) == 5 and len(page.all("img")) == 13


def test_loss_of_a_single_source_is_one_curve():
    lines = [{"step": s, "loss": 3.0, "loss/only": 3.0} for s in range(5)]
    assert [s.name for s in run_report.loss_chart(lines).series] == ["loss"]
    assert [s.name for s in run_report.loss_chart(lines, "stage two").series] == ["stage two"]


def test_curves_of_a_single_metric():
    history = [{"step": 1, "recall_at1": 5.0, "recall_at5": 9.0}]
    every = run_report.recall_chart(history)
    assert [s.name for s in every.series] == ["R@1", "R@5"]
    one = run_report.recall_chart(history, "recall_at5", "control")
    assert [(s.name, s.y) for s in one.series] == [("control", [9.0])]
    assert run_report.recall_chart([]).series == []


def test_examples_survive_json(examples):
    again = [Example.from_json(json.loads(json.dumps(e.to_json()))) for e in examples]
    assert [e.to_json() for e in again] == [e.to_json() for e in examples]
    assert again[0].results[1] == Hit("image1", str(examples[0].results[1].path), 0.8)


def test_report_of_an_evaluation(tmp_path, examples):
    result = Result(FASHION, "average_recall", {"galleries": {"dress": GALLERY}}, examples)
    loaded = config.load("clip_sum:fashioniq")
    page = read(run_report.write_evaluation(tmp_path / "out", "Title", loaded, result))
    assert len(page.all("img")) == 13
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["scores"] == FASHION and results["score"] == 25.0
    assert results["config"]["model"]["name"] == "clip_sum"
    assert {"jax", "python", "devices", "git"} <= set(results["environment"])


def test_a_chart_of_one_point_is_not_drawn(tmp_path):
    """Neither its frame nor its part of a legend."""
    one, two = Series("one", [3], [1.0]), Series("two", [1, 2], [1.0, 2.0])
    assert figures.svg(Chart("Lonely", [one]), {"one": 0}) == ""
    page = read(write_report(tmp_path, "A", [Curves("Curves", [Chart("Lonely", [one])])]))
    assert not page.all("svg") and "Curves" not in page.texts
    charts = [Chart("Lonely", [one]), Chart("Course", [two, one])]
    page = read(write_report(tmp_path, "B", [Curves("Curves", charts)]))
    assert len(page.all("svg")) == 1 and "Lonely" not in page.texts and "Course" in page.texts
    undrawn = Series("none", [1, 2], [1.0, float("nan")])  # one point that is a number
    assert not figures.is_drawn(Chart("Lonely", [undrawn, one]))


def test_small_numbers_fit_beside_an_axis():
    values = (0.0, 0.00032, 2e-5, 0.05, 1234.5, 2.5e6)
    assert [figures._number(v) for v in values] == [
        "0", "3.2e-4", "2e-5", "0.05", "1,234.5", "2.5e6",
    ]  # fmt: skip


def test_queries_can_be_chosen(tmp_path, examples):
    """By radio buttons and style alone; an empty list has no button, a single one none at all."""
    others = {"Best <1>": examples[:1], "Worst": examples, "None": []}
    section = Queries("Found", examples[1:], "", "Spread", others)
    page = read(write_report(tmp_path, "Choice", [section]))
    assert len(page.all("div", "query")) == 1 + 1 + 2
    inputs = page.all("input")
    assert [a["type"] for a in inputs] == ["radio"] * 3 and len({a["name"] for a in inputs}) == 1
    assert ["checked" in a for a in inputs] == [True, False, False]
    assert [a["for"] for a in page.all("label")] == [a["id"] for a in inputs]
    assert {"Spread (1)", "Best <1> (1)", "Worst (2)"} <= set(page.texts)
    assert len(page.all("section")) == 3
    page = read(write_report(tmp_path, "One", [Queries("Found", examples, "", "Spread", {})]))
    assert not page.all("input") and len(page.all("div", "query")) == 2


def test_the_page_is_made_for_a_phone_and_for_both_themes(tmp_path):
    table = Table("Runs", ["", "R@<1>", "hash"], [["a", 1.5, "x"]])
    page = read(write_report(tmp_path, "Page", [Caution("It means nothing <b>"), table]))
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert viewport in page.all("meta")
    text = (tmp_path / "report.html").read_text()
    assert "color-scheme: light dark" in text and "(prefers-color-scheme: dark)" in text
    # A cell carries the name of its column, which a narrow screen shows instead of the head.
    assert [a["data-column"] for a in page.all("td")] == ["", "R@<1>", "hash"]
    assert "td::before { content:attr(data-column)" in text
    assert "It means nothing <b>" in page.texts and page.all("p", "caution")


def test_the_numbers_are_explained_in_words(tmp_path, examples):
    protocol = {"benchmark": "FashionIQ", "reference": "removed", "galleries": {"dress": GALLERY}}
    result = Result(FASHION, "average_recall", protocol, examples, examples[:1], examples[1:])
    loaded = config.load("clip_sum:fashioniq")
    page = read(run_report.write_evaluation(tmp_path, "Title", loaded, result))
    assert "What the numbers mean" in page.texts
    assert any("among the first K images" in t and "K is 10, 50" in t for t in page.texts)
    assert any(t.startswith("removed: the image of the query itself") for t in page.texts)
    assert any("size and hash of the gallery are the same" in t for t in page.texts)
    assert {"Best ranked (1)", "Worst ranked (1)"} <= set(page.texts)
    of_cirr = explanations.of_scores(
        {"recall_at1": 1, "recall_subset_at2": 2, "recall_mean": 3}, {}
    )
    assert [*of_cirr] == [
        "R@K (recall at K)", "Rsub@K (subset recall at K)", "recall mean",
    ]  # fmt: skip
    assert [*explanations.of_scores({"map_at5": 1.0}, {})] == [
        "mAP@K (mean average precision at K)"
    ]


def test_every_score_and_rule_of_a_benchmark_is_explained():
    """The names that the metrics give; a new one must be explained as well."""
    ranks = np.asarray([0, 3, 60])
    hits = np.zeros((3, 50), bool)
    made = [
        metrics.fashioniq({"dress": ranks}),
        metrics.cirr(ranks, np.asarray([0, 1, 2])),
        metrics.circo(hits, np.ones(3, int), ranks, [["cardinality"]] * 3),
        metrics.genecis({"focus_object": ranks}),
    ]
    for scores in made:
        for name in scores:
            assert explanations.of_scores({name: scores[name]}, {}), name


def test_speed_and_learning_rate_are_drawn_and_told():
    lines = [
        {"step": s, "loss": 2.0, "learning_rate": s * 1e-4, "examples_per_second": 10.0 * s,
         "images_per_second": 20.0 * s}
        for s in (1, 2, 3)
    ]  # fmt: skip
    results = {
        "scores": {}, "protocol": {}, "history": [], "step": 3, "seconds": 1.0, "triplets": {},
        "bank_seconds": 0.0, "finished": True, "dropped": {}, "config": {}, "environment": {},
    }  # fmt: skip
    sections = run_report.run_sections(results, lines, [])
    [curves] = [s for s in sections if isinstance(s, Curves)]
    drawn = {c.title: list(c.series[0].y) for c in curves.charts if figures.is_drawn(c)}
    assert drawn == {
        "Loss": [2.0] * 3, "Learning rate": pytest.approx([1e-4, 2e-4, 3e-4]),
        "Examples per second": [10.0, 20.0, 30.0],
    }  # fmt: skip
    [training] = [s for s in sections if isinstance(s, Facts) and s.title == "Training"]
    assert training.values["images per second"] == "40.0"


def test_the_best_and_the_worst_are_the_ends_of_the_ranking(tmp_path):
    ranks = np.asarray([5, 0, 9, 0, 7, 2, 8])
    first, last = benchmark.ends(ranks, 6)
    assert first.tolist() == [1, 3] and last.tolist() == [2, 6]
    first, last = benchmark.ends(ranks, 0)
    assert len(first) == len(last) == 0
    assert [len(x) for x in benchmark.ends(ranks[:1], 24)] == [1, 1]
