# SPDX-License-Identifier: Apache-2.0
"""Searching on the page: pictures in, results out, rounds, and links that reproduce them."""

import re

from tests.serving.page import shapes
from tests.serving.page.reading import (
    names,
    pick,
    picture,
    references,
    rounds,
    search,
    settle,
    transfer,
)


def test_click_type_click_on_back_and_forward(visit, shoot):
    page = visit()
    assert names(page)[:2] == [shapes.ARABIC, "large red circle"]
    shoot(page, "gallery")
    pick(page, "large red circle")
    assert references(page) == 1
    search(page, "blue")
    first = names(page)
    assert first[0] == shapes.LONG + ".png"  # the large blue circle, which has no title
    card = page.locator(".card").first
    assert card.locator(".rank").inner_text() == "1"
    assert 0.5 < float(card.locator(".score").inner_text()) < 1
    about = page.locator(".about").inner_text()
    assert re.search(r"52 candidates · \d+(\.\d)? ms", about), about
    assert page.locator(".head .formula").inner_text().startswith("score = ")
    assert "blue" in page.title()

    pick(page, "large blue square")
    assert rounds(page) == ["blue", "alike"] and page.locator("#text").input_value() == ""
    search(page, "star")
    second = names(page)
    assert second[0] == "large blue star"
    assert rounds(page) == ["blue", "star"]
    shoot(page, "round two")

    page.go_back()
    page.go_back()
    assert names(page) == first and page.locator("#text").input_value() == "blue"
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused.startswith("large blue square.")  # where the visitor left
    page.go_forward()
    page.go_forward()
    assert names(page) == second

    tab = visit(page.url.removeprefix(page.at))
    assert names(tab) == second and rounds(tab) == ["blue", "star"] and references(tab) == 1
    tab.get_by_role("button", name="Back to round 1: blue").click()
    assert names(tab) == first and rounds(tab) == []


def test_drop_paste_choose(visit, server):
    page = visit()
    settle(page)
    search(page, "blue")
    mine = transfer(page, [picture()])
    page.dispatch_event("body", "dragenter", {"dataTransfer": mine})
    assert page.get_by_text("Drop it to search from this picture").is_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": mine})
    page.wait_for_url("**images=u*")
    assert references(page) == 1 and not page.locator("#dropping").is_visible()
    assert names(page)[0] == "large blue star"  # the text was there already
    tab = visit(page.url.removeprefix(page.at))
    assert references(tab) == 1 and names(tab) == names(page)

    page.get_by_role("button", name="Start anew").click()
    assert references(page) == 0
    page.evaluate(
        "(clipboardData) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData}))",
        transfer(page, [picture()]),
    )
    page.wait_for_url("**images=u*")
    assert references(page) == 1 and names(page)[0] == "large red star"

    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add another").click()
    other = picture("blue")
    chooser.value.set_files({"name": "b.png", "mimeType": "image/png", "buffer": other["content"]})
    page.wait_for_function("() => document.querySelectorAll('#references img').length === 2")
    assert references(page) == 2
    page.get_by_role("button", name="Remove: Reference picture 1").click()
    assert references(page) == 1


def test_a_picture_that_the_index_has_is_that_of_the_index(visit, indexes):
    page = visit()
    settle(page)
    content = indexes["shapes"].places[2].read_bytes()
    known = {"name": "mine.png", "type": "image/png", "content": content}
    page.dispatch_event("main", "drop", {"dataTransfer": transfer(page, [known])})
    page.wait_for_url("**images=5")  # ids start at 3
    settle(page)
    assert references(page) == 1


def test_what_is_dropped_in_vain(visit, browser):
    page = visit()
    settle(page)

    def drop(**carried):
        page.dispatch_event("main", "drop", {"dataTransfer": transfer(page, **carried)})
        page.wait_for_function("() => document.querySelector('#images-wrong').textContent")
        return page.locator("#images-wrong").inner_text()

    text = {"name": "notes.txt", "type": "text/plain", "content": b"red"}
    assert drop(files=[text]) == "notes.txt is not a picture."
    assert "asks no other host" in drop(**{"text_uri-list": "https://example.org/a.png"})
    page.evaluate("document.querySelector('#images-wrong').textContent = ''")
    page.expected = ("status of 4",)
    broken = {"name": "broken.png", "type": "image/png", "content": b"\x89PNG nothing"}
    assert len(drop(files=[broken])) > 20  # the server's own words
    assert page.locator("#references li").count() == 0


def test_results_are_dragged_onto_the_references(visit):
    lost = "0" * 64  # an upload that is kept no more
    page = visit(f"#images=u:{lost}&text=blue")
    page.expected = ("status of 404",)
    settle(page)
    page.locator("#images-wrong:not(:empty)").wait_for()
    assert page.get_by_text("Nothing was searched").is_visible()
    page.evaluate("() => (location.hash = '#images=4')")
    page.wait_for_function("() => !document.querySelector('#images-wrong').textContent")
    settle(page)
    page.locator(".card").nth(3).drag_to(page.locator("#drop"))
    page.wait_for_function("() => document.querySelectorAll('#references img').length === 2")
    assert re.search(r"images=4%2C\d+", page.url)


def test_weights_words_to_avoid_and_the_formula(visit):
    page = visit("#images=4&text=blue")
    before = names(page)
    page.get_by_text("Weights", exact=True).click()
    assert "query weight * query" in page.locator("#formula").inner_text()
    slider = page.get_by_label("Likeness to the picture")
    steps = page.evaluate("() => history.length")
    slider.fill("2")
    settle(page)
    after = names(page)
    assert after != before and "wi=2" in page.url
    assert page.locator("#w-image-is").inner_text() == "2.00"
    page.get_by_role("button", name="As usual").click()
    assert names(page)[:24] == before and "wi=" not in page.url
    assert steps == page.evaluate("() => history.length")  # a slider adds no steps
    page.get_by_label("Words to avoid").first.fill("circle")
    page.keyboard.press("Enter")
    avoided = names(page)
    assert avoided[0] == "large blue square" and "not=circle" in page.url
    with page.expect_request("**/search") as sent:
        page.locator("#w-avoid").fill("1.5")
    body = sent.value.post_data_json
    assert body["not"] == "circle" and body["weights"] == {"query": 1, "image": 0, "avoid": 1.5}


def test_scrolling_goes_on_and_the_way_back_remembers(visit):
    page = visit("#text=blue")
    assert len(names(page)) == 24
    more = page.get_by_role("button", name="Show more")
    assert more.is_visible()
    page.wait_for_function(
        """() => {
            scrollTo(0, document.body.scrollHeight);
            return document.querySelector(".note").textContent;
        }"""
    )
    found = names(page)
    assert len(found) == 50 and page.get_by_text("These are all: 50 pictures.").is_visible()
    ranks = page.locator(".rank").all_inner_texts()
    assert ranks == [str(n + 1) for n in range(50)]
    place = page.evaluate("scrollY")
    assert place > 500
    page.wait_for_function("() => history.state?.y > 500")
    page.locator(".card .pick").last.click()
    settle(page)
    page.go_back()
    assert names(page) == found
    page.wait_for_function(f"() => Math.abs(scrollY - {place}) < 300")


def test_near_duplicates_unfold_and_why_is_shown(visit, shoot):
    page = visit("#images=4&text=blue")
    settle(page)
    assert page.locator(".why").count() == 0
    page.get_by_label("Show why").check()
    settle(page)
    card = page.locator(".card").first
    halves = [float(x) for x in card.locator(".why dd").all_inner_texts()]
    total = float(card.locator(".score").inner_text())
    assert len(halves) == 2 and abs(sum(halves) - total) < 0.002
    wide = [f.bounding_box()["width"] for f in card.locator(".fill").all()]
    assert abs(wide[0] / wide[1] - halves[0] / halves[1]) < 0.05
    assert "why=1" in page.url

    count = page.locator(".card").count()
    fold = page.locator(".same").first
    assert fold.inner_text() == "+1" and fold.get_attribute("aria-expanded") == "false"
    fold.click()
    assert page.locator(".card").count() == count + 1
    assert page.locator(".card.alike").inner_text().startswith("nearly the same")
    shoot(page, "why")
    fold.click()
    assert page.locator(".card").count() == count
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("Fold pictures that are nearly the same").uncheck()
    settle(page)
    assert page.locator(".same").count() == 0 and "fold=0" in page.url


def test_details_show_all_that_is_known(visit):
    page = visit("#images=4&text=blue")
    settle(page)
    card = page.locator(".card").nth(1)
    card.get_by_role("button", name=re.compile("^Details of")).click()
    dialog = page.get_by_role("dialog")
    said = dialog.inner_text()
    assert all(word in said for word in ("price", "colour", "Rank", "Score", "sold"))
    page.keyboard.press("Escape")
    card.locator(".pick").focus()
    page.keyboard.press("d")
    assert dialog.inner_text() == said
    dialog.get_by_role("button", name="Add to the references").click()
    assert references(page) == 2


def test_two_indexes_side_by_side(visit, shoot):
    page = visit("#images=4&text=blue")
    left = names(page)
    page.get_by_label("Compare with").select_option("colour blind")
    assert names(page, 0) == left and names(page, 1) != left
    titles = page.locator(".pane h2").all_inner_texts()
    assert titles == ["shapes", "colour blind"]
    ranks = page.locator(".pane").nth(0).locator(".other").all_inner_texts()
    right = names(page, 1)
    assert ranks[0] == f"other side: {right.index(left[0]) + 1}"
    shoot(page, "compare")
    other = page.locator(".pane").nth(1).locator(".pick").first
    other.click()  # a picture of the other index
    settle(page)
    assert "images=5%40colour%2520blind" in page.url or "%40colour" in page.url
    assert references(page) == 1
    page.go_back()
    assert names(page, 1) == right
    page.locator("#index").select_option("colour blind")
    settle(page)
    assert "images=4%40shapes" in page.url and names(page, 0) == right


def test_a_link_that_somebody_shortened_or_made_up(visit):
    page = visit("#index=gone&images=4,%E0%A4,x,u:%&wq=Infinity&min=NaN&query=-3&text=blue")
    assert len(names(page)) > 5
    assert page.get_by_text('There is no index "gone" here').is_visible()
    assert references(page) == 1


def test_the_queries_of_a_benchmark(visit, shoot):
    page = visit()
    settle(page)
    page.get_by_role("button", name="3 queries").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("green square").click()
    settle(page)
    assert not dialog.is_visible() and "query=1" in page.url
    assert page.locator("#query-list").inner_text() == "Query 2 of 3"
    assert page.locator("#text").input_value() == "green square" and references(page) == 1
    marked = page.locator(".card.right")
    assert marked.count() == 2 and marked.first.get_by_text("right", exact=True).is_visible()
    ranks = [f"rank {card.locator('.rank').inner_text()}" for card in marked.all()]
    answers = page.locator(".answer").all_inner_texts()
    assert (
        sorted(answers) == sorted(ranks) and "Right answers:" in page.locator(".head").inner_text()
    )
    shoot(page, "benchmark")
    tab = visit(page.url.removeprefix(page.at))
    assert len(names(tab)) and tab.locator(".answer").all_inner_texts() == answers

    search(page, "red square")  # marks stay while the words are tried
    assert page.locator(".card.right").count() == 2
    assert page.locator(".answer").all_inner_texts() != answers
    page.get_by_role("button", name="Query before").click()
    page.wait_for_url("**query=0**")
    settle(page)
    assert page.locator(".answer").all_inner_texts() == ["rank 1"]
    assert page.get_by_role("button", name="Query before").is_disabled()
    page.get_by_role("button", name="Next query").click()
    page.wait_for_url("**query=1**")
    settle(page)
    page.get_by_role("button", name="Next query").click()
    page.wait_for_url("**query=2**")
    settle(page)
    assert page.locator("#text").input_value() == shapes.ARABIC
    pick(page, "large red circle")
    assert page.locator(".card.right").count() == 0 and "query=" not in page.url
    page.locator("#index").select_option("colour blind")
    settle(page)
    assert not page.locator("#benchmark").is_visible()
