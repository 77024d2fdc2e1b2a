# SPDX-License-Identifier: Apache-2.0
"""The filter, and what the page says when a server refuses, waits or is gone."""

import json

from tests.serving.page import shapes
from tests.serving.page.conftest import serve
from tests.serving.page.reading import names, pick, picture, references, search, settle, transfer

TOKEN = "a-token-of-this-test-0123456789"


def where(page):
    settle(page)
    return page.locator("#where").input_value()


def test_choices_write_the_filter(visit, shoot):
    page = visit()
    page.get_by_text("Filter", exact=True).click()
    assert "Fields: title, shape, colour, price, sold" in page.locator("#where-hint").inner_text()
    page.get_by_label("star", exact=True).check()
    assert where(page) == "shape = 'star'"
    page.get_by_label("ring", exact=True).check()
    assert where(page) == "shape in ('ring', 'star')"
    assert len(names(page)) == 20  # the gallery is filtered too
    page.get_by_label("price to").fill("48")
    page.get_by_label("price to").press("Enter")
    page.get_by_label("true", exact=True).check()
    assert where(page) == "shape in ('ring', 'star') and price <= 48 and sold = true"
    pick(page, names(page)[0])
    search(page, "violet")
    found = names(page)
    assert len(found) == 1 and "1 candidate ·" in page.locator(".about").inner_text()
    shoot(page, "filter")
    tab = visit(page.url.removeprefix(page.at))
    assert names(tab) == found
    tab.get_by_text("Filter", exact=True).click()
    assert (
        tab.get_by_label("ring", exact=True).is_checked()
        and not tab.get_by_label("red", exact=True).is_checked()
    )
    assert tab.get_by_label("price to").input_value() == "48"
    page.go_back()
    page.go_back()
    page.go_back()
    assert where(page) == "shape in ('ring', 'star') and price <= 48"
    assert not page.get_by_label("true", exact=True).is_checked()


def test_a_filter_as_text(visit):
    page = visit("#text=blue")
    page.get_by_text("Filter", exact=True).click()
    field = page.get_by_label("Filter as text")
    field.fill("shape = 'ring' or price < 8")
    field.press("Enter")
    assert len(names(page)) == 13  # ten rings and three circles
    assert page.get_by_text("says more than these choices can show").is_visible()
    assert page.get_by_label("ring", exact=True).is_disabled()
    field.fill("price < -1")
    field.press("Enter")
    assert names(page) == [] and page.get_by_text("Nothing passes the filter.").is_visible()
    page.get_by_role("button", name="Search without the filter").click()
    assert len(names(page)) > 20 and where(page) == ""

    page.expected = ("status of 400",)
    field.fill("colour = 5")
    field.press("Enter")
    settle(page)
    told = page.locator("#where-wrong").inner_text()
    assert "colour" in told and "character 10" in told
    assert field.get_attribute("aria-invalid") == "true"
    assert page.get_by_text("Nothing was searched").is_visible()
    field.fill("colour = 'red'")
    field.press("Enter")
    assert len(names(page)) == 10 and page.locator("#where-wrong").inner_text() == ""
    assert field.get_attribute("aria-invalid") is None
    page.get_by_label("Lowest score").fill("0.99")
    page.get_by_label("Lowest score").press("Enter")
    assert names(page) == [] and "min=0.99" in page.url


def test_a_token_is_asked_for_once(visit, browser, indexes, shoot):
    address, end = serve(indexes, token=TOKEN, upload_bytes=1_000)
    try:
        page = visit("#images=4&text=blue", at=address)
        page.expected = ("status of 401",)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Token").fill("a-wrong-token-of-the-right-length")
        page.keyboard.press("Enter")
        page.locator("#token-why:not(:empty)").wait_for()
        shoot(page, "token")
        dialog.get_by_label("Token").fill(TOKEN)
        dialog.get_by_role("button", name="Go on").click()
        assert len(names(page)) == 24 and references(page) == 1
        page.wait_for_function(
            """() => [...document.querySelectorAll(".card img")].slice(0, 3)
                .every((img) => img.src.startsWith("blob:") && img.naturalWidth > 0)"""
        )
        assert TOKEN not in page.url and not page.context.cookies()
        page.dispatch_event("main", "drop", {"dataTransfer": transfer(page, [picture()])})
        page.locator("#images-wrong:not(:empty)").wait_for()  # before anything is sent
        assert "this server takes 1 kB" in page.locator("#images-wrong").inner_text()
        page.reload()  # the tab remembers it
        assert len(names(page)) == 24 and not dialog.is_visible()
        other = visit(at=address)
        other.expected = ("status of 401",)
        other.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        other.get_by_role("button", name="Try again").wait_for()
        assert "token" in other.locator("#error").inner_text()
    finally:
        end()


def test_a_busy_server_is_waited_for(visit):
    page = visit()
    settle(page)
    page.expected = ("status of 503", "status of 429")
    met = []

    def busy(route):
        met.append(route.request.url)
        body = {"error": {"message": "too many", "type": "", "param": None, "code": None}}
        if len(met) < 3:
            route.fulfill(
                status=(503, 429)[len(met) - 1], headers={"Retry-After": "1"}, body=json.dumps(body)
            )
        else:
            route.continue_()

    page.route("**/search", busy)
    page.locator("#text").fill("blue")
    page.keyboard.press("Enter")
    page.get_by_text("The server is busy. Trying again in 1 s").first.wait_for()
    page.wait_for_function("() => document.querySelectorAll('.rank').length > 0")
    assert len(met) == 3 and page.locator("#toast").inner_text() == ""


def test_what_a_server_refuses_is_said_in_its_words(visit):
    page = visit()
    settle(page)
    page.expected = ("status of 400", "status of 500", "net::ERR_FAILED")
    search(page, "x" * 2500)
    assert "2,000" in page.locator("#text-wrong").inner_text()
    page.route("**/search", lambda route: route.fulfill(status=500, body="<html>broken"))
    search(page, "blue")
    assert "500" in page.locator(".failure").inner_text()
    page.unroute("**/search")
    page.route("**/search", lambda route: route.abort())
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("The server does not answer. Is it still running?").wait_for()
    page.unroute("**/search")
    page.get_by_role("button", name="Try again").click()
    page.locator(".rank").first.wait_for()
    assert page.locator(".failure").count() == 0


def test_a_search_that_is_overtaken_is_not_shown(visit):
    page = visit()
    settle(page)
    held = []
    page.route(
        "**/search",
        lambda route: held.append(route) if "red" in route.request.post_data else route.continue_(),
    )
    page.locator("#text").fill("red")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('[aria-busy]')")
    assert page.locator(".grid").evaluate("(list) => list.inert")  # it answers another question
    search(page, "blue")
    found = names(page)
    for route in held:
        try:
            route.continue_()
        except Exception as error:  # the browser has given it up already
            assert "route" in str(error).lower() or "closed" in str(error).lower()
    page.wait_for_timeout(100)
    assert held and names(page) == found and "blue" in page.url


def test_markup_in_names_and_texts_stays_text(visit, indexes):
    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    page = visit("#images=4")
    settle(page)
    titles = indexes["shapes"].catalogue.table["title"].to_pylist()
    assert shapes.EVIL in titles
    search(page, evil)
    pick(page, "large red circle" if "large red circle" in names(page) else names(page)[0])
    assert evil in page.locator("#rounds").inner_text()
    assert page.locator("b").count() == 0
    page.get_by_role("button", name="Start anew").click()
    settle(page)
    assert shapes.EVIL in names(page)
