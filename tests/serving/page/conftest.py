# SPDX-License-Identifier: Apache-2.0
"""The page in headless Chromium, on a server over drawn shapes.

CHROMIUM names the browser, else it is looked for. Without one these tests are skipped, or fail if
CIR_JAX_NEEDS_CHROMIUM is set. CIR_JAX_SCREENSHOTS names a folder that keeps the screenshots.
"""

import os
import shutil
import threading
from pathlib import Path

import pytest
import uvicorn

from cir_jax.serving import app, running
from cir_jax.serving.settings import Settings
from tests.serving.page import shapes

# Whether all pictures in view are there, or known to be broken.
_PICTURES = """() => [...document.images].every((i) => !i.checkVisibility() || i.complete
    || i.getBoundingClientRect().top > innerHeight)"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="package")
def browser():
    """Chromium, without a window."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        reason = "there is no Chromium: install one, or name it in the variable CHROMIUM"
        (pytest.fail if os.environ.get("CIR_JAX_NEEDS_CHROMIUM") else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="package")
def indexes(tmp_path_factory):
    """Two indexes of the same pictures; the model of the second knows no colours."""
    root = tmp_path_factory.mktemp("indexes")
    blind = [*shapes.SHAPES, *shapes.SIZES]
    queries = [
        {"reference": 4, "text": "blue", "targets": [10]},
        {"reference": 10, "text": "green square", "targets": [17, 16]},
        {"reference": 5, "text": shapes.ARABIC, "targets": [40]},
    ]
    return {
        "shapes": shapes.Index(root / "shapes", queries=queries),
        "colour blind": shapes.Index(root / "blind", words=blind),
    }


def serve(indexes, **settings):
    """(address, end) of a server in this process."""
    made = Settings(**{"port": 0, "rate": 0, **settings})
    port = running.bound(made)
    server = uvicorn.Server(
        uvicorn.Config(app.make(indexes, made, log=lambda line: None), log_config=None, ws="none")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [port]}, daemon=True)
    thread.start()

    def end():
        server.should_exit = True
        thread.join(30)

    return running.address(port, made), end


@pytest.fixture(scope="package")
def server(indexes):
    address, end = serve(indexes)
    yield address
    end()


@pytest.fixture
def visit(browser, server, tmp_path, request):
    """visit(fragment, ...) -> a new tab of a new visitor.

    No tab may ask another host, raise an error, or write one to its console; those that a test
    brings about are named by it, in `page.expected`.
    """
    contexts, pages = [], []

    def go(fragment="", at=server, context=None, **options):
        if context is None:
            sizes = {"viewport": {"width": 1280, "height": 860}}
            context = browser.new_context(**{**sizes, "reduced_motion": "reduce", **options})
            contexts.append(context)
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(30_000)
        page.errors, page.hosts, page.expected, page.at = [], set(), (), at
        page.on("console", lambda m: m.type in ("error", "warning") and page.errors.append(m.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda r: page.hosts.add(r.url.partition(":")[0] + r.url[: len(at)]))
        page.goto(at + fragment)
        return page

    yield go
    for page in pages:
        surprises = [e for e in page.errors if not any(x in e for x in page.expected)]
        assert not surprises, surprises
        scheme = page.at.partition(":")[0]
        assert {h for h in page.hosts if not h.startswith(("data", "blob"))} == {scheme + page.at}
    for context in contexts:
        context.close()


@pytest.fixture
def shoot(tmp_path, request):
    """shoot(page, name) keeps what a page looks like."""
    kept = os.environ.get("CIR_JAX_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path
    folder.mkdir(parents=True, exist_ok=True)

    def take(page, name, **options):
        page.wait_for_function(_PICTURES)
        page.screenshot(path=folder / f"{name}.png", **options)
        assert (folder / f"{name}.png").stat().st_size > 5_000  # a blank page is smaller

    return take
