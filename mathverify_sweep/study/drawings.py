"""Small SVG drawings: a run's curve and confusion matrix, and curves beside each other. Text in, text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from mathverify_sweep.metrics import Interval
from mathverify_sweep.specs import Metrics

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 64, 36, 44
NAMES, ROW = 320, 22
MAX_POINTS = 500
COLOURS = ("#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518", "#72b7b2")
LOSS, VALUE, GRID, INK = "#4c78a8", "#e45756", "#dddddd", "#333333"

Curve = Sequence[tuple[float, float]]


def learning_curve(losses: Curve, values: Curve, objective: str) -> str:
    """Training loss (line, left axis) and the objective at its rungs (dots, right axis) over rows seen."""
    last = max((x for x, _ in (*losses, *values)), default=1.0)
    xs = _ticks(0.0, last)
    parts = [_text(_x(x, xs), HEIGHT - BOTTOM + 18, f"{x:,.0f}") for x in xs]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "rows seen"))
    if losses:
        ys = _ticks(min(y for _, y in losses), max(y for _, y in losses))
        parts += [_rule(_y(y, ys)) + _text(LEFT - 8, _y(y, ys) + 4, f"{y:g}", "end") for y in ys]
        path = " ".join(f"{_x(x, xs):.1f},{_y(y, ys):.1f}" for x, y in _thinned(losses))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{LOSS}" stroke-width="1.5"/>')
        parts.append(_text(LEFT, TOP - 14, "training loss", "start", LOSS))
    if values:
        ys = _ticks(min(y for _, y in values), max(y for _, y in values))
        parts += [_text(WIDTH - RIGHT + 8, _y(y, ys) + 4, f"{y:g}", "start") for y in ys]
        parts += [f'<circle cx="{_x(x, xs):.1f}" cy="{_y(y, ys):.1f}" r="4" fill="{VALUE}"/>' for x, y in values]
        parts.append(_text(WIDTH - RIGHT, TOP - 14, objective, "end", VALUE))
    return _svg(WIDTH, HEIGHT, "Learning curve", parts)


def confusion_matrix(metrics: Metrics) -> str:
    """Counts of solutions by what they are (rows) and what they were judged (columns)."""
    counts = (
        ("is True", (metrics.true_positives, metrics.false_negatives)),
        ("is False", (metrics.false_positives, metrics.true_negatives)),
    )
    parts = [_text(180 + 120 * i, 30, f"judged {word}") for i, word in enumerate(("True", "False"))]
    for row, (label, pair) in enumerate(counts):
        top = 44 + 90 * row
        parts.append(_text(104, top + 50, label, "end"))
        for column, count in enumerate(pair):
            share = count / (sum(pair) or 1)
            colour = "255,255,255" if share > 0.5 else "51,51,51"
            left = 120 + 120 * column
            parts.append(
                f'<rect x="{left}" y="{top}" width="116" height="86" fill="{LOSS}" fill-opacity="{share:.3f}"/>'
            )
            parts.append(_text(left + 58, top + 42, f"{count:,}", fill=f"rgb({colour})"))
            parts.append(_text(left + 58, top + 62, f"{share:.1%}", fill=f"rgb({colour})"))
    return _svg(380, 240, "Confusion matrix", parts)


def curves(title: str, x_label: str, y_label: str, named: Mapping[str, Curve]) -> str:
    """Curves over one pair of axes, each with its name at its end. At most as many as there are colours."""
    xs = _ticks(min(x for curve in named.values() for x, _ in curve), max(x for c in named.values() for x, _ in c))
    ys = _ticks(min(y for curve in named.values() for _, y in curve), max(y for c in named.values() for _, y in c))
    parts = [_text(_x(x, xs), HEIGHT - BOTTOM + 18, f"{x:,g}") for x in xs]
    parts += [_rule(_y(y, ys)) + _text(LEFT - 8, _y(y, ys) + 4, f"{y:g}", "end") for y in ys]
    parts += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label), _text(LEFT, TOP - 14, y_label, "start")]
    for colour, (name, curve) in zip(COLOURS, named.items(), strict=False):
        points = [(_x(x, xs), _y(y, ys)) for x, y in sorted(curve)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        parts.append(_text(points[-1][0] + 6, points[-1][1] + 4, name, "start", colour))
    return _svg(WIDTH + 40, HEIGHT, title, parts)


def intervals(title: str, x_label: str, named: Mapping[str, Interval]) -> str:
    """Estimates with their intervals, a line for each under one another; those that leave 0 out are filled."""
    ends = [0.0, *(end for each in named.values() for end in (each.low, each.high))]
    xs = _ticks(min(ends), max(ends))
    height = TOP + ROW * len(named) + BOTTOM

    def place(value: float) -> float:
        return NAMES + (value - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - RIGHT)

    parts = [_text(place(x), height - BOTTOM + 18, f"{x:g}") for x in xs]
    parts.append(_text(place((xs[0] + xs[-1]) / 2), height - 8, x_label))
    parts.append(f'<line x1="{place(0):.1f}" x2="{place(0):.1f}" y1="{TOP}" y2="{height - BOTTOM}" stroke="{INK}"/>')
    for number, (name, each) in enumerate(named.items()):
        y = TOP + ROW * (number + 0.5)
        fill = "white" if each.low <= 0 <= each.high else LOSS
        parts.append(_text(NAMES - 12, y + 4, name, "end"))
        parts.append(
            f'<line x1="{place(each.low):.1f}" x2="{place(each.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{LOSS}"/>'
        )
        parts.append(f'<circle cx="{place(each.estimate):.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{LOSS}"/>')
    return _svg(NAMES + WIDTH, height, title, parts)


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that span the values."""
    span = high - low or abs(high) or 1.0
    raw = span / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _x(value: float, ticks: Sequence[float]) -> float:
    return LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, ticks: Sequence[float]) -> float:
    return HEIGHT - BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)


def _thinned(curve: Curve) -> Curve:
    return curve[:: math.ceil(len(curve) / MAX_POINTS)]


def _rule(y: float) -> str:
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", fill: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>{"".join(parts)}</svg>\n'
    )
