# SPDX-License-Identifier: Apache-2.0
"""The sections of a report as plain data: tiles, tables, curves, queries, facts, prose, warnings.

`cir_jax.evals.reports.report` draws them as HTML; `text_table` prints a table on a terminal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cir_jax.data.pixels import RELEASED, Loading
from cir_jax.evals.example import Example
from cir_jax.evals.reports.figures import Chart


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation over `count` seeds; a table cell."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value per seed; the deviation of a single one is 0."""
        x = np.asarray(values, np.float64)
        return cls(float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else 0.0, len(x))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f}" if self.count > 1 else f"{self.mean:.2f}"


Cell = str | int | float | Spread


@dataclass(frozen=True)
class Tiles:
    """A row of large numbers: (label, value, note) each."""

    items: Sequence[tuple[str, Cell, str]]


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
      title: heading.
      columns: their names.
      rows: one cell per column.
      note: a sentence below.
      best: mark the largest value of every numeric column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Curves:
    """Charts side by side with one legend; a name has one colour in all of them."""

    title: str
    charts: Sequence[Chart]
    note: str = ""


@dataclass(frozen=True)
class Queries:
    """Queries with their first results, the target framed.

    Attributes:
      title: heading.
      examples: those that are shown at first.
      note: a sentence below the heading.
      choice: what `examples` are called where there are others to choose.
      others: name -> further queries, of which the reader chooses one list.
      loading: how their images are opened.
    """

    title: str
    examples: Sequence[Example]
    note: str = ""
    choice: str = ""
    others: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    loading: Loading = RELEASED


@dataclass(frozen=True)
class Facts:
    """Names and values, folded away unless `open`. Nested mappings are flattened: a.b."""

    title: str
    values: Mapping[str, Any]
    open: bool = False


@dataclass(frozen=True)
class Caution:
    """A sentence that nobody should miss, in a frame."""

    text: str


@dataclass(frozen=True)
class Prose:
    """A heading and paragraphs; a blank line ends a paragraph."""

    title: str
    text: str


Section = Tiles | Table | Curves | Queries | Facts | Prose | Caution


def compare(
    title: str, runs: Mapping[str, Sequence[Mapping[str, float]]], columns: Mapping[str, str]
) -> Table:
    """A table of runs: mean ± sample deviation over the seeds of each, the best marked.

    Args:
      title: heading.
      runs: name -> scores of each seed.
      columns: metric -> column name.
    """
    rows: list[list[Cell]] = [
        [name, *(Spread.of([scores[metric] for scores in seeds]) for metric in columns)]
        for name, seeds in runs.items()
    ]
    seeds = sorted({len(s) for s in runs.values()})
    note = ""
    if seeds != [1]:
        note = f"Mean ± standard deviation over {' or '.join(map(str, seeds))} seeds, in %."
    return Table(title, ["", *columns.values()], rows, note, best=True)


def text_table(table: Table) -> str:
    """The table for a terminal."""
    cells = [list(table.columns), *([cell_text(c) for c in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = (c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def cell_text(cell: Cell) -> str:
    """A cell as text: two decimals for measurements, none for counts."""
    return f"{cell:.2f}" if isinstance(cell, float) else f"{cell:,}" if _is_int(cell) else str(cell)


def _is_int(cell: Cell) -> bool:
    return isinstance(cell, int) and not isinstance(cell, bool)


def number_of(cell: Cell) -> float | None:
    """The number of a cell that has one."""
    if isinstance(cell, Spread):
        return cell.mean
    return float(cell) if isinstance(cell, int | float) else None
