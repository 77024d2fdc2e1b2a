# SPDX-License-Identifier: Apache-2.0
"""The page for everybody: by keyboard alone, on a phone, in the dark, for those who hear it."""

import re

from tests.serving.page import shapes
from tests.serving.page.reading import names, references, rounds, search, settle

PHONE = {"width": 360, "height": 740}
# Relative luminance and contrast as WCAG 2.2 defines them, of each text that is seen.
_FAINT = """() => {
    const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const pixel = (color, under) => {
        context.fillStyle = `rgb(${under})`; context.fillRect(0, 0, 1, 1);
        context.fillStyle = color; context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => rgb.map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
    const ground = (element) => {
        const above = [];
        for (let at = element; at; at = at.parentElement) {
            above.unshift(getComputedStyle(at).backgroundColor);
        }
        return above.reduce((under, color) => pixel(color, under), [255, 255, 255]);
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
        if (element.closest(":disabled, script, noscript, option")) continue;
        const under = ground(element);
        const [a, b] = [light(pixel(getComputedStyle(element).color, under)), light(under)];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) faint.push([walker.currentNode.data.trim(), contrast]);
    }
    return faint;
}"""
# Controls that are seen and smaller than a finger; of a box, its label counts.
_SMALL = """() => [...document.querySelectorAll("button, select, textarea, input")]
    .filter((e) => e.checkVisibility() && !e.matches(".skip"))
    .map((e) => [e, (e.closest("label.check") ?? e).getBoundingClientRect()])
    .filter(([e, { width, height }]) => width < 43.9 || height < 43.9)
    .filter(([e]) => e.id !== "home")
    .map(([e, { width, height }]) => [e.id || e.className || e.textContent, width, height])"""


def unfold_all(page):
    page.evaluate("() => document.querySelectorAll('details').forEach((d) => (d.open = true))")


def wide(page):
    """How far the page can be scrolled sideways, and what sticks out of it."""
    return page.evaluate(
        """() => [document.scrollingElement.scrollWidth - innerWidth,
            [...document.querySelectorAll("body *")]
                .filter((e) => e.checkVisibility())
                .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
                .filter((e) => !e.closest("#status, svg, .skip"))
                .map((e) => `${e.tagName}#${e.id}.${e.className}`).slice(0, 5)]"""
    )


def test_on_a_phone(visit, shoot):
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    for name, fragment in {
        "gallery": "",
        "why": "images=4&text=blue&why=1&round=3~red&round=12~" + "x" * 200,
        "compare": "images=4,5,6&text=blue&compare=colour+blind&not=" + "y" * 90,
    }.items():
        page.evaluate("(fragment) => (location.hash = fragment)", fragment)
        page.wait_for_function("(text) => document.querySelector('#avoid').value.length === text",
                               arg=90 * (name == "compare"))  # fmt: skip
        settle(page)
        shoot(page, f"phone {name}")
        unfold_all(page)
        assert wide(page) == [0, []] and page.evaluate(_SMALL) == []
        page.locator(".acts button").last.tap()
        assert wide(page) == [0, []] and page.evaluate(_SMALL) == []
        page.keyboard.press("Escape")
    page.locator(".acts button").last.tap()
    page.get_by_role("dialog").get_by_role("button", name="Search on from it").tap()
    assert references(page) == 1
    assert page.evaluate("() => document.activeElement.id") != "text"  # no keyboard comes up
    page.locator("#text").fill("blue")
    page.locator("#go").tap()
    settle(page)
    page.wait_for_function("() => document.querySelector('main').getBoundingClientRect().top < 20")


def test_by_keyboard_alone(visit):
    page = visit()
    settle(page)
    press = page.keyboard.press
    active = lambda what="getAttribute('aria-label')": page.evaluate(
        f"() => document.activeElement.{what}"
    )
    press("Tab")
    assert active("textContent") == "Skip to the pictures"
    ring = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    press("Enter")
    assert shapes.ARABIC in active()
    press("ArrowRight")
    press("ArrowDown")
    assert active().startswith("small blue circle")  # five are in a row
    press("ArrowUp")
    press("ArrowRight")
    press("ArrowLeft")
    assert active().startswith("large red circle")
    press("Home")
    press("End")
    last = active()
    press("ArrowRight")  # the next page comes
    page.wait_for_function(
        "(last) => document.activeElement.getAttribute('aria-label') !== last", arg=last
    )
    press("Home")
    press("ArrowRight")
    press("Enter")
    settle(page)
    assert references(page) == 1 and active("id") == "text"
    page.keyboard.type("blue")
    press("Shift+Enter")
    page.keyboard.type("square")
    press("Enter")
    found = names(page)
    assert found[0] == "large blue square" and "text=blue%0Asquare" in page.url
    press("Tab")
    assert active("id") == "avoid"
    page.keyboard.type("what / is ? g")  # no key of the page while something is written
    assert page.locator("#avoid").input_value() == "what / is ? g"
    page.locator("#avoid").fill("")
    press("Tab")
    press("g")
    assert active().startswith("large blue square. Rank 1, score 0.")
    press("ArrowRight")
    press("a")
    assert references(page) == 2
    press("g")
    press("/")
    assert active("id") == "text"
    press("Tab")
    press("Tab")
    press("?")
    help = page.get_by_role("dialog")
    assert help.get_by_text("search on from it").is_visible()
    press("Escape")
    assert not help.is_visible() and active("id") == "go"
    page.locator("#help").press("Enter")
    help.get_by_label("Keys of one letter").uncheck()
    press("Escape")
    press("g")
    assert active("id") == "help"  # the keys are switched off
    press("Alt+ArrowLeft")
    settle(page)
    assert rounds(page) == []


def test_one_card_is_in_the_tab_order(visit):
    page = visit("#text=blue")
    settle(page)
    reachable = page.locator(".grid button[tabindex='0']")
    assert reachable.count() == 4  # of one card: its picture, right, wrong, details
    page.locator(".card").nth(5).locator(".pick").focus()
    assert reachable.count() == 4
    assert reachable.first.get_attribute("aria-label").startswith(names(page)[5])


def test_in_the_dark_and_in_the_light(visit, shoot):
    page = visit("#images=4&text=blue&why=1&round=3~red")
    settle(page)
    ground = lambda: sum(
        int(n) for n in re.findall(r"\d+", page.evaluate(
            "() => getComputedStyle(document.body).backgroundColor"))
    )  # fmt: skip
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        assert (ground() > 600) == (theme == "light") and ground() != 383
        shoot(page, theme)
        unfold_all(page)
        assert page.evaluate(_FAINT) == []
        page.get_by_role("button", name=re.compile("^Details of")).first.click()
        assert page.evaluate(_FAINT) == []
        page.keyboard.press("Escape")
    switch = page.get_by_role("button", name=re.compile("^Colours"))
    seen = []
    for _ in range(3):
        switch.click()
        seen.append((switch.get_attribute("title").removeprefix("Colours: "), ground() > 600))
    assert seen == [("light", True), ("dark", False), ("as the system", False)]
    switch.click()
    tab = visit(context=page.context)  # the choice is kept
    assert tab.evaluate("() => document.documentElement.dataset.theme") == "light"


def test_every_control_has_a_name(visit):
    """As a screen reader gets them from the browser."""
    page = visit("#images=4,5&text=blue&why=1&round=3~red&compare=colour+blind")
    settle(page)
    unfold_all(page)
    roles = {"button", "textbox", "searchbox", "checkbox", "slider", "combobox", "spinbutton",
             "img", "image", "link", "dialog", "navigation", "main", "form"}  # fmt: skip
    session = page.context.new_cdp_session(page)
    met = set()

    def check():
        for node in session.send("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if node.get("ignored") or role not in roles:
                continue
            name = node.get("name", {}).get("value", "").strip()
            assert name, node
            met.add((role, name))

    check()
    page.get_by_role("button", name=re.compile("^Details of")).first.click()
    check()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    check()
    assert len(met) > 100
    assert {("slider", "Likeness to the picture"), ("textbox", "What should be different"),
            ("textbox", "Filter as text"), ("navigation", "Rounds of this search"),
            ("dialog", "Keys")} <= met  # fmt: skip


def test_what_a_screen_reader_is_told(visit):
    page = visit(viewport={"width": 1280, "height": 400})  # one page of pictures is enough
    settle(page)
    status = page.get_by_role("status").first
    assert status.inner_text() == "24 pictures."
    search(page, "blue")
    assert status.inner_text() == "24 pictures of 53 candidates."
    search(page, "blue " * 600)
    page.expected = ("status of 400",)
    assert page.get_by_role("alert").filter(has_text="2,000").count() == 1


def test_words_of_any_script_and_no_motion(visit):
    page = visit()
    settle(page)
    first = page.locator(".card .title").first
    direction = "(e) => getComputedStyle(e).direction"
    assert first.inner_text() == shapes.ARABIC and first.evaluate(direction) == "rtl"
    assert page.locator(".card .title").nth(1).evaluate(direction) == "ltr"
    page.locator("#text").fill(shapes.ARABIC + " 😀")
    assert page.locator("#text").evaluate(direction) == "rtl"
    page.keyboard.press("Enter")
    settle(page)
    assert "😀" in page.title()
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((e) => {
            const { animationName, transitionDuration } = getComputedStyle(e);
            return animationName !== "none" || !/^0s(, 0s)*$/.test(transitionDuration);
        }).length"""
    )
    assert moving == 0
