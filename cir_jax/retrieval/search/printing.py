# SPDX-License-Identifier: Apache-2.0
"""Results as a table for a terminal, and as JSON for programs."""

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from cir_jax.progress import shown
from cir_jax.retrieval.search.results import Answer, Hit

_GAP = "  "
_NAME, _FIELD = 20, 6  # columns of the terminal that a name or a field keeps at least
_CUT = "…"


class _Column(NamedTuple):
    title: str
    cells: list[str]
    right: bool = False  # figures
    least: int = 0  # columns to which it may be cut; 0 is never

    @property
    def width(self) -> int:
        return max(map(columns_of, (self.title, *self.cells)))


def table(hits: Sequence[Hit], width: int = 0) -> str:
    """A line for each image: rank, score and its parts, name, how many are under it, fields.

    Args:
      hits: see `Answer`.
      width: columns of the terminal. Long names and fields are cut, and the last fields left out,
        so that no line is longer; 0 cuts nothing.
    """
    columns = _columns_of(hits)
    widths = [column.width for column in columns]
    if width:
        widths = _fitted(columns, widths, width)
    lines = []
    for row in zip(*([c.title, *c.cells] for c in columns), strict=True):
        cells = []
        for cell, size, column in zip(row, widths, columns, strict=False):
            cell = fitting(cell, size)
            space = " " * (size - columns_of(cell))
            cells.append(space + cell if column.right else cell + space)
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def details(hit: Hit, width: int, lines: int) -> list[str]:
    """What is known of an image in a few lines of a terminal; a width of 0 cuts nothing."""
    found = [f"{hit.rank}  {hit.score:.4f}  {shown(hit.name, one_line=True)}"]
    found += [
        f"{shown(name, one_line=True)}: {text(value)}"
        for name, value in hit.fields.items()
        if value is not None
    ]
    if hit.same:
        found.insert(1, f"and {len(hit.same)} nearly the same")
    if hit.why is not None:
        found.insert(1, " ".join(f"{name} {value:+.4f}" for name, value in hit.why.items()))
    return [fitting(line, width) if width else line for line in found[:lines]]


def document(place: str, answer: Answer) -> dict[str, Any]:
    """An answer as JSON.

    Keys: "index" (its place), "formula", "candidates", "more", "left_out" (ids), "seconds", and
    "results", a list of {"id", "name", "score", "rank", "fields", "same" (ids), "why"}: the
    attributes of `Answer` and `Hit`.
    """
    results = [
        {
            "id": hit.id,
            "name": hit.name,
            "score": hit.score,
            "rank": hit.rank,
            "fields": dict(hit.fields),
            "same": list(hit.same),
            "why": None if hit.why is None else dict(hit.why),
        }
        for hit in answer.hits
    ]
    return {
        "index": place,
        "formula": answer.formula,
        "candidates": answer.candidates,
        "more": answer.more,
        "left_out": list(answer.left_out),
        "seconds": dict(answer.seconds),
        "results": results,
    }


def text(value: Any) -> str:
    """A value of a field for people; "" where there is none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else shown(value, one_line=True)


def columns_of(line: str) -> int:
    """The columns of a terminal that a text takes: two for wide letters, none for marks on them."""
    return sum(map(_columns, line))


def fitting(line: str, width: int) -> str:
    """A text in at most so many columns of a terminal; what is cut is marked."""
    if columns_of(line) <= width:
        return line
    kept, left = "", width - 1
    for letter in line:
        left -= _columns(letter)
        if left < 0:
            break
        kept += letter
    return kept + _CUT if width > 0 else ""


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1


def _columns_of(hits: Sequence[Hit]) -> list[_Column]:
    found = [
        _Column("rank", [str(hit.rank) for hit in hits], right=True),
        _Column("score", [f"{hit.score:.4f}" for hit in hits], right=True),
        _Column("name", [shown(hit.name, one_line=True) for hit in hits], least=_NAME),
    ]
    for name in dict.fromkeys(name for hit in hits for name in hit.why or ()):
        parts = [f"{(hit.why or {}).get(name, 0.0):+.4f}" for hit in hits]
        found.insert(len(found) - 1, _Column(name, parts, right=True))
    if any(hit.same for hit in hits):
        under = [f"+{len(hit.same)}" if hit.same else "" for hit in hits]
        found.append(_Column("same", under, right=True))
    for name in dict.fromkeys(name for hit in hits for name in hit.fields):
        values = [hit.fields.get(name) for hit in hits]
        if any(value is not None for value in values):
            figures = all(value is None or isinstance(value, int | float) for value in values)
            cells = [text(value) for value in values]
            title, least = shown(name, one_line=True), 0 if figures else _FIELD
            found.append(_Column(title, cells, right=figures, least=least))
    return found


def _fitted(columns: Sequence[_Column], widths: Sequence[int], width: int) -> list[int]:
    """Widths of as many columns as a line has room for: the widest that may be cut is cut first."""
    found = list(widths)
    named = 1 + next(i for i, column in enumerate(columns) if column.least == _NAME)
    while found:
        excess = sum(found) + len(_GAP) * (len(found) - 1) - width
        wide = [i for i, size in enumerate(found) if 0 < columns[i].least < size]
        if excess <= 0:
            return found
        if wide:
            widest = max(wide, key=lambda i: found[i])
            found[widest] -= 1
        elif len(found) > named:
            found = list(widths[: len(found) - 1])
        else:  # the name takes what there is
            found[-1] = max(1, found[-1] - excess)
            return found
    return found
