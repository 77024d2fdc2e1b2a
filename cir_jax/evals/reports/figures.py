# SPDX-License-Identifier: Apache-2.0
"""Draws line charts as SVG inside the report's HTML; no script and no font is loaded.

Colours are CSS variables of the page, so a chart follows its light or dark theme.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

COLOURS = 8  # of the page's palette, --series-0 and so on
_WIDTH, _HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 24, 12, 40
_MOST_POINTS = 240  # a curve of more is averaged in buckets: a screen shows no more
_MARKED = 30  # curves of at most this many points show each, with its value on hover


@dataclass(frozen=True)
class Series:
    """One curve. Curves of one name share a colour and a legend entry: seeds of one run.

    Attributes:
      name: legend entry.
      x, y: points; those whose y is not finite are left out.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """One pair of axes.

    Attributes:
      title: above the axes.
      series: the curves.
      x_label: below the axes.
      unit: behind the values on hover, e.g. " %".
    """

    title: str
    series: Sequence[Series] = field(default_factory=tuple)
    x_label: str = "step"
    unit: str = ""


def svg(chart: Chart, colour_of: dict[str, int]) -> str:
    """The chart as an <svg> element; "" if it is not drawn, see `is_drawn`.

    Args:
      chart: what to draw.
      colour_of: series name -> index into the page's palette.
    """
    curves = [(s, *_points(s)) for s in chart.series]
    curves = [c for c in curves if len(c[1])]
    if not is_drawn(chart):
        return ""
    xs = np.concatenate([x for _, x, _ in curves])
    ys = np.concatenate([y for _, _, y in curves])
    x_ticks = ticks(0 if xs.min() <= 0.3 * xs.max() else xs.min(), xs.max())
    y_ticks = ticks(0 if 0 <= ys.min() <= 0.5 * ys.max() else ys.min(), ys.max())
    across = _scale(x_ticks[0], max(xs.max(), x_ticks[0] + 1e-9), _LEFT, _WIDTH - _RIGHT)
    up = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    names = [s.name for s, _, _ in curves]
    parts = [_axes(chart, [t for t in x_ticks if t <= xs.max() * 1.0001], y_ticks, across, up)]
    for series, x, y in curves:
        several = names.count(series.name) > 1
        parts.append(_curve(series, x, y, across, up, colour_of[series.name], several, chart.unit))
    label = escape(f"{chart.title}: {', '.join(dict.fromkeys(names))}", quote=True)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def is_drawn(chart: Chart) -> bool:
    """Whether a curve of it has two points: a single one shows no course, only a number."""
    return any(len(_points(series)[0]) > 1 for series in chart.series)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that enclose [low, high], at most `most` + 2 of them."""
    if not high > low:
        high, low = (low + 1, low) if low == 0 else (low + abs(low) / 2, low - abs(low) / 2)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _points(series: Series) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) > _MOST_POINTS:
        buckets = np.array_split(np.arange(len(x)), _MOST_POINTS)
        x, y = (np.asarray([v[b].mean() for b in buckets]) for v in (x, y))
    return x, y


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _axes(
    chart: Chart, x_ticks: list[float], y_ticks: list[float], across: Callable, up: Callable
) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for t in y_ticks:
        y = round(up(t), 1)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:g}" text-anchor="end">{_number(t)}</text>')
    for t in x_ticks:
        x = round(across(t), 1)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{_number(t)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="label" x="{(_LEFT + right) / 2:g}" y="{_HEIGHT - 4}" '
        f'text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    return "".join(parts)


def _curve(
    series: Series,
    x: np.ndarray,
    y: np.ndarray,
    across: Callable,
    up: Callable,
    colour: int,
    several: bool,
    unit: str,
) -> str:
    paint = f'style="--c:var(--series-{colour % COLOURS})"'
    points = [(round(across(a), 1), round(up(b), 1)) for a, b in zip(x, y, strict=True)]
    path = "M" + "L".join(f"{a:g} {b:g}" for a, b in points)
    kind = "curve several" if several else "curve"
    parts = [f'<path class="{kind}" {paint} d="{path}"/>']
    if len(points) <= _MARKED:
        for (a, b), step, value in zip(points, x, y, strict=True):
            hover = escape(f"{series.name}, {_number(step)}: {value:.4g}{unit}")
            parts.append(
                f'<circle class="point" {paint} cx="{a:g}" cy="{b:g}" r="2.6">'
                f"<title>{hover}</title></circle>"
            )
    return "".join(parts)


def _number(value: float) -> str:
    if value != 0 and (abs(value) < 1e-2 or abs(value) >= 1e6):
        digits, power = f"{value:.2e}".split("e")  # short: there is room for six characters
        return f"{float(digits):g}e{int(power)}"
    return f"{value:,.10g}"
