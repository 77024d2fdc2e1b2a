# SPDX-License-Identifier: Apache-2.0
"""What a person sees on the page, for tests: results, rounds, references."""

import base64
import io
import re

from tests.serving.page import shapes

_WAIT = """() => document.querySelector("#panes .pane") && !document.querySelector("[aria-busy]")"""


def settle(page):
    """Waits until every pane has its answer."""
    page.wait_for_function(_WAIT)


def names(page, pane=0):
    """The titles of the cards, in order."""
    settle(page)
    pane = page.locator(".pane").nth(pane)
    return pane.locator(".grid > .card > .foot > .title").all_inner_texts()


def search(page, text):
    """Types a text and searches."""
    page.get_by_label(re.compile("What (to find|should be different)")).fill(text)
    page.keyboard.press("Enter")
    settle(page)


def pick(page, title):
    """Clicks the card of a title."""
    page.get_by_role("button", name=re.compile(f"^{title}[.]")).first.click()
    settle(page)


def references(page):
    """How many reference pictures are shown; all of them have loaded."""
    settle(page)
    page.wait_for_function(
        "() => [...document.querySelectorAll('#references img')].every((i) => i.naturalWidth > 0)"
    )
    return page.locator("#references img").count()


def rounds(page):
    """The texts of the rounds, the present one last; none if this is the first."""
    return page.locator("#rounds li").all_inner_texts() if page.locator("#rounds li").count() > 1 \
        else []  # fmt: skip


def transfer(page, files=(), **texts):
    """What a drop or a paste carries: {name, type, content} of files, or texts by type."""
    return page.evaluate_handle(
        """([files, texts]) => {
            const carried = new DataTransfer();
            for (const { name, type, content } of files) {
                const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
                carried.items.add(new File([bytes], name, { type }));
            }
            for (const [type, text] of Object.entries(texts)) carried.setData(type, text);
            return carried;
        }""",
        [
            [{**f, "content": base64.b64encode(f["content"]).decode()} for f in files],
            {key.replace("_", "/"): text for key, text in texts.items()},
        ],
    )


def picture(colour="red"):
    """A file that a person has: a large star."""
    out = io.BytesIO()
    shapes.draw("star", colour, "large", shift=9).save(out, "PNG")
    return {"name": "mine.png", "type": "image/png", "content": out.getvalue()}
