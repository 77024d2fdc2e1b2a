# SPDX-License-Identifier: Apache-2.0
"""Writes a list of sections as report.html, one file that needs no other file and no network.

    write_report(folder, "Two stages", [Tiles(...), Table(...), Curves(...), Queries(...)])

It draws the sections of `cir_jax.evals.reports.sections` and knows neither runs nor benchmarks.
Every text is escaped; pictures are embedded, so the file can be mailed.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from cir_jax import files, progress
from cir_jax.data import small_pictures
from cir_jax.data.pixels import ImageFile, Loading
from cir_jax.evals.example import Example
from cir_jax.evals.reports import figures
from cir_jax.evals.reports.sections import (
    Caution,
    Cell,
    Curves,
    Facts,
    Prose,
    Queries,
    Section,
    Spread,
    Table,
    Tiles,
    cell_text,
    number_of,
)
from cir_jax.html_page import figure, page

FILE = "report.html"


def write_report(
    folder: str | Path, title: str, sections: Sequence[Section], subtitle: str = ""
) -> Path:
    """Writes `folder`/report.html and returns its path."""
    path = Path(folder) / FILE
    body = "\n".join(_RENDER[type(section)](section) for section in sections)
    # Names and texts are strangers': a browser obeys marks of direction, UTF-8 has no half pairs.
    files.put(path, progress.shown(page(title, subtitle, body)).encode())
    return path


def _tiles(section: Tiles) -> str:
    items = "".join(
        f'<div class="card tile"><span>{escape(label)}</span><b>{_html(cell)}</b>'
        f"{f'<small>{escape(note)}</small>' if note else ''}</div>"
        for label, cell, note in section.items
    )
    return f'<div class="tiles">{items}</div>'


def _table(section: Table) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in section.columns)
    columns = list(zip(*section.rows, strict=True))
    best = [_largest(column) if section.best else None for column in columns]
    rows = []
    for row in section.rows:
        cells = []
        for column, cell, top in zip(section.columns, row, best, strict=True):
            mark = ' class="best"' if top is not None and number_of(cell) == top else ""
            named = f' data-column="{escape(column, quote=True)}"'
            cells.append(f"<td{mark}{named}>{_html(cell)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'{_heading(section.title)}<div class="card scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{_note(section.note)}"
    )


def _largest(column: Sequence[Cell]) -> float | None:
    """The largest number of a column of several numbers; None if any cell is none."""
    numbers = [x for x in map(number_of, column) if x is not None]
    return max(numbers) if 1 < len(numbers) == len(column) else None


def _html(cell: Cell) -> str:
    if isinstance(cell, Spread) and cell.count > 1:
        return f"{cell.mean:.2f} <small>± {cell.deviation:.2f}</small>"
    return escape(cell_text(cell))


def _curves(section: Curves) -> str:
    charts = [chart for chart in section.charts if figures.is_drawn(chart)]
    if not charts:
        return ""
    names = [list(dict.fromkeys(s.name for s in chart.series)) for chart in charts]
    colour_of = {name: i for i, name in enumerate(dict.fromkeys(n for ns in names for n in ns))}
    shared = all(ns == names[0] for ns in names)  # one legend for all charts
    cards = []
    for chart, own in zip(charts, names, strict=True):
        picture = figures.svg(chart, colour_of)
        legend = "" if shared else _legend({n: colour_of[n] for n in own})
        title = f"<h3>{escape(chart.title)}</h3>"
        cards.append(f'<div class="card chart">{title}{legend}{picture}</div>')
    return (
        f"{_heading(section.title)}{_legend(colour_of) if shared else ''}"
        f'<div class="charts">{"".join(cards)}</div>{_note(section.note)}'
    )


def _legend(colour_of: Mapping[str, int]) -> str:
    if len(colour_of) < 2:  # the title says it
        return ""
    entries = "".join(
        f'<span><i style="--c:var(--series-{i % figures.COLOURS})"></i>{escape(name)}</span>'
        for name, i in colour_of.items()
    )
    return f'<div class="legend">{entries}</div>'


def _queries(section: Queries) -> str:
    if not section.examples:
        return ""
    head = f"{_heading(section.title)}{_note(section.note)}"
    lists = {section.choice: section.examples, **section.others}
    lists = {name: examples for name, examples in lists.items() if examples}
    if len(lists) == 1:
        return head + _cards(section.examples, section.loading)
    return head + _choice(lists, section.loading)


def _cards(examples: Sequence[Example], loading: Loading) -> str:
    return "".join(_query(example, loading) for example in examples)


def _choice(lists: Mapping[str, Sequence[Example]], loading: Loading) -> str:
    """Lists of queries of which one is seen at a time; by style alone, without a script."""
    group = "choice-" + hashlib.sha256(repr([*lists]).encode()).hexdigest()[:8]
    buttons, panels = [], []
    for number, (name, examples) in enumerate(lists.items()):
        first = " checked" if number == 0 else ""
        buttons.append(
            f'<input type="radio" name="{group}" id="{group}-{number}"{first}/>'
            f'<label for="{group}-{number}">{escape(name)} ({len(examples)})</label>'
        )
        cards = _cards(examples, loading)
        panels.append(f'<section aria-label="{escape(name, quote=True)}">{cards}</section>')
    return f'<div class="choice">{"".join(buttons)}{"".join(panels)}</div>'


def _query(example: Example, loading: Loading) -> str:
    shown = partial(_figure, loading)
    hit = " hit" if example.rank <= len(example.results) else ""
    asked = (
        f'<div class="ask">{shown(example.reference, "", "reference")}'
        f"<div><p>{escape(example.text)}</p>"
        f'<span class="rank{hit}">rank {example.rank:,}</span></div></div>'
    )
    found = []
    for place, result in enumerate(example.results, start=1):
        right = result.name in (example.target_name, *example.also)
        kind = "target" if right else ""
        caption = f"{place}. {result.name} ({result.score:.3f})"
        found.append(shown(result.path, kind, caption))
    if example.rank > len(example.results):
        caption = f"target, rank {example.rank:,}: {example.target_name}"
        found.append(shown(example.target, "target later", caption))
    return f'<div class="card query">{asked}<div class="found">{"".join(found)}</div></div>'


def _figure(loading: Loading, source: ImageFile, kind: str, caption: str) -> str:
    uri = small_pictures.data_uri(source, loading)
    return figure(uri, caption, Path(str(source)).name, kind)


def _facts(section: Facts) -> str:
    items = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>"
        for key, value in _flat(section.values).items()
    )
    shown = " open" if section.open else ""
    return (
        f'<details class="card"{shown}><summary>{escape(section.title)}</summary>'
        f"<dl>{items}</dl></details>"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _prose(section: Prose) -> str:
    paragraphs = "".join(f"<p>{escape(p.strip())}</p>" for p in section.text.split("\n\n"))
    return f"{_heading(section.title)}{paragraphs}"


def _caution(section: Caution) -> str:
    return f'<p class="card caution" role="note">{escape(section.text)}</p>'


def _heading(title: str) -> str:
    return f"<h2>{escape(title)}</h2>" if title else ""


def _note(note: str) -> str:
    return f'<p class="soft">{escape(note)}</p>' if note else ""


_RENDER: dict[type[Section], Callable[[Any], str]] = {
    Tiles: _tiles,
    Table: _table,
    Curves: _curves,
    Queries: _queries,
    Facts: _facts,
    Prose: _prose,
    Caution: _caution,
}
