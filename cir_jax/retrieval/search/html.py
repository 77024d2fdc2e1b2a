# SPDX-License-Identifier: Apache-2.0
"""Results as a page in one file, with small pictures in it and no request to anywhere."""

from html import escape
from pathlib import Path
from typing import Any

from cir_jax import files, html_page, progress
from cir_jax.data import small_pictures
from cir_jax.data.pixels import NATURAL
from cir_jax.errors import UserError
from cir_jax.retrieval.search import printing
from cir_jax.retrieval.search.asking import Question
from cir_jax.retrieval.search.checking import Searched
from cir_jax.retrieval.search.results import Answer, Hit

_SIDE = 320  # pixels; a picture is half as wide on the page


def write(
    path: str | Path, index: Searched, place: str, question: Question, answer: Answer
) -> None:
    """Writes the page.

    Of the index only files inside its roots are shown; the reference images are those that the
    question names.

    Raises:
      UserError: the file cannot be written.
    """
    asked = "".join(_reference(index, image) for image in question.images)
    text = f"<p>{escape(question.text)}</p>" if question.text else ""
    avoid = f'<p class="soft">not {escape(question.avoid)}</p>' if question.avoid else ""
    found = "".join(_result(index, hit) for hit in answer.hits)
    nothing = '<p class="soft">Nothing was found.</p>'
    facts = {
        "index": place,
        "score": answer.formula.removeprefix("score = "),
        "candidates": f"{answer.candidates:,}",
        "where": question.where,
    }
    listed = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value
    )
    body = (
        f'<div class="card query"><div class="ask">{asked}<div>{text}{avoid}</div></div>'
        f'<div class="found">{found or nothing}</div></div><dl>{listed}</dl>'
    )
    page = html_page.page("Search", question.text or "images like this one", body)
    # A browser obeys marks of direction, and UTF-8 has no half pairs.
    files.put(path, progress.shown(page).encode())


def _reference(index: Searched, image: Any) -> str:
    source = _file(index, image) if isinstance(image, int) else image
    name = Path(str(source)).name if isinstance(source, str | Path) else ""
    return html_page.figure(_uri(source), "reference", name)


def _result(index: Searched, hit: Hit) -> str:
    lines = printing.details(hit, width=0, lines=20)
    return html_page.figure(_uri(_file(index, hit.id)), " · ".join(lines), hit.name)


def _file(index: Searched, id: int) -> str | None:
    try:
        return index.path_of(id)
    except UserError:  # it leads out of the indexed folder by now
        return None


def _uri(source: Any) -> str:
    known = isinstance(source, str | Path)  # pictures that are no files are not shown
    return small_pictures.data_uri(source, NATURAL, _SIDE) if known else ""
