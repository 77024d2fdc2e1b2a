# SPDX-License-Identifier: Apache-2.0
"""Results become training data by a click that asks first, and that can be taken back."""

import json
import re

from tests.serving.page.reading import names, search, settle


def _save(page, kind, title):
    """Presses a button of a card; the dialog that asks."""
    page.get_by_role("button", name=re.compile(f"^Save as {kind} answer: {title}$")).click()
    return page.get_by_role("dialog")


def _records(index, name):
    file = index.folder / "clicks" / name
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_result_is_saved_and_taken_back(visit, shoot, indexes):
    index = indexes["colour blind"]  # it holds no benchmark
    page = visit("#index=colour+blind&images=5&text=square")
    settle(page)
    dialog = _save(page, "the right", "small orange square")
    words = dialog.inner_text()
    assert "reference" in words and "square" in words and "right answer" in words
    assert dialog.locator("img").count() == 2
    shoot(page, "save")
    dialog.get_by_role("button", name="Cancel").click()
    assert not (index.folder / "clicks" / "triplets.jsonl").exists()

    _save(page, "the right", "small orange square").locator("#save-ok").click()
    page.get_by_text("Saved as the right answer. 1 triplet.").wait_for()
    assert page.locator("#clicks").inner_text() == "Saved: 1 triplet."
    [record] = _records(index, "triplets.jsonl")
    assert record["reference"] == "circles/orange-small.png" and record["text"] == "square"
    assert record["target"] == "squares/orange-small.png"
    assert page.locator(".card.saved").count() == 1
    _save(page, "a wrong", "small orange triangle").locator("#save-ok").click()
    page.get_by_text("Saved as a wrong answer. 1 triplet, 1 wrong answer.").wait_for()
    [pair] = _records(index, "excluded.jsonl")
    assert pair["excluded"] == "triangles/orange-small.png"
    shoot(page, "saved")

    page.get_by_role("button", name="Undo").click()
    page.get_by_text("Undone. 1 triplet.").wait_for()
    assert page.locator(".card.excluded").count() == 0 and _records(index, "excluded.jsonl") == []
    search(page, "ring")
    assert page.locator(".card.saved").count() == 0  # that was another question
    page.go_back()
    settle(page)
    assert page.locator(".card.saved").count() == 1
    page.locator(".card").first.locator(".pick").focus()
    page.keyboard.press("u")
    page.get_by_text("Undone. 0 triplets.").wait_for()
    assert _records(index, "triplets.jsonl") == [] and page.locator("#clicks").inner_text() == ""
    page.keyboard.press("u")
    page.get_by_text("There is nothing to undo.").wait_for()

    page.keyboard.press("s")  # by keys, then as wrong instead of right, then neither
    page.keyboard.press("Enter")
    page.get_by_text("Saved as the right answer.").wait_for()
    page.keyboard.press("x")
    page.keyboard.press("Enter")
    page.get_by_text("Saved as a wrong answer. 0 triplets, 1 wrong answer.").wait_for()
    page.keyboard.press("x")
    assert "Take it back" in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Enter")
    page.get_by_text("Taken back. 0 triplets.").wait_for()
    assert _records(index, "triplets.jsonl") == _records(index, "excluded.jsonl") == []


def test_what_cannot_be_saved_says_why(visit):
    page = visit("#images=4")
    dialog = page.get_by_role("dialog")

    def told(fragment):
        page.evaluate("(fragment) => (location.hash = fragment)", fragment)
        page.wait_for_function("(f) => location.hash.endsWith(f)", arg=fragment)
        settle(page)
        page.locator(".card .good").first.click()
        assert not dialog.locator("#save-ok").is_visible()
        words = dialog.locator("#save-wrong").inner_text()
        page.keyboard.press("Escape")
        return words

    assert "no text" in told("images=5")
    assert "no reference" in told("text=blue")
    assert "several" in told("images=4,5&text=blue")
    assert "of another index" in told("index=colour+blind&images=4@shapes&text=blue")

    # What a benchmark holds out never gets in; the server says so.
    page.evaluate("() => (location.hash = 'images=5&text=blue')")
    page.wait_for_function("() => location.hash.endsWith('images=5&text=blue')")
    assert len(names(page)) > 5
    page.expected = ("status of 409",)
    page.locator(".card .good").first.click()
    dialog.locator("#save-ok").click()
    page.locator("#save-wrong:not(:empty)").wait_for()
    assert "evaluated with" in dialog.inner_text()
    assert page.locator("#clicks").inner_text() == ""
