"""The parts that figures are made of: traces, axes, menus, and what a mark says when one points at it.

Plotly reads text as HTML, and names come from people: all text that goes to it is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from mathverify_sweep.reports.models import RunRow, TrialRow
from mathverify_sweep.search_space import Value
from mathverify_sweep.states import RunState

# Readable on white and on near-black, and apart for people who see no red and green.
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b82c4", "#e08e0b", "#1a9e77", "#a568b8", "#d1495b", "#8a939e"
STATE_COLOURS = {
    RunState.COMPLETE: BLUE,
    RunState.PRUNED: ORANGE,
    RunState.FAIL: RED,
    RunState.RUNNING: GREEN,
    RunState.WAITING: GREY,
}
SYMBOLS = {"complete": "circle", "imported": "circle-open"}
"""Of marks by their name; the others are crosses."""
AXIS = {"automargin": True, "zeroline": False, "exponentformat": "power"}


def figure(traces: Sequence[Any], x: str, y: str, height: int = 380) -> Any:
    """Traces with the house's layout: no template (its colours would fight the page's), room for thumbs."""
    figure = go.Figure(data=list(traces))
    figure.update_layout(
        template={"layout": {}},
        height=height,
        margin={"l": 56, "r": 16, "t": 36, "b": 56},
        xaxis=AXIS | {"title": {"text": x}},
        yaxis=AXIS | {"title": {"text": y}},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        dragmode=False,
    )
    return figure


def intervals(name: str, runs: Mapping[str, RunRow], colour: str, symbol: str) -> Any:
    found = [run.metrics for run in runs.values()]
    known = [(label, m, run) for (label, run), m in zip(runs.items(), found, strict=True) if m is not None]
    return go.Scatter(
        name=name,
        x=[m.accuracy for _, m, _ in known],
        y=[label for label, _, _ in known],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [m.accuracy_high - m.accuracy for _, m, _ in known],
            "arrayminus": [m.accuracy - m.accuracy_low for _, m, _ in known],
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        },
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 10},
        text=[hover(run) for _, _, run in known],
        hovertemplate="%{y}: %{x:.4f}<br>%{text}<extra></extra>",
    )


def marks(name: str, trials: Sequence[TrialRow], at: Sequence[Any], state: RunState) -> Any:
    return go.Scatter(
        name=name,
        x=list(at),
        y=[trial.value for trial in trials],
        mode="markers",
        marker={
            "color": STATE_COLOURS[state],
            "symbol": SYMBOLS.get(name, "x-thin-open"),
            "size": 9,
        },
        text=[f"trial {trial.number}<br>{hover(trial)}" for trial in trials],
        hovertemplate="%{y:.4f}<br>%{text}<extra></extra>",
    )


def line(
    name: str, points: Sequence[tuple[int, float]], colour: str, width: float, trial: TrialRow | None = None
) -> Any:
    cut = trial is not None and trial.state is RunState.PRUNED
    symbols = ["circle"] * (len(points) - 1) + ["x" if cut else "circle"]
    few = len(points) <= 12
    return go.Scatter(
        name=name,
        x=[x for x, _ in points],
        y=[y for _, y in points],
        mode="lines+markers" if few or cut else "lines",
        line={"color": colour, "width": width},
        marker={"symbol": symbols, "size": [5] * (len(points) - 1) + [8 if cut else 5]},
        opacity=0.45 if colour == GREY else 1,
        showlegend=colour != GREY,
        text=[hover(trial) if trial else ""] * len(points),
        hovertemplate=f"{name} at %{{x}} rows: %{{y:.4f}}<br>%{{text}}<extra></extra>",
    )


def bars(name: str, spent: Sequence[tuple[int, float]], colour: str) -> Any:
    return go.Bar(
        name=name,
        x=[number for number, _ in spent],
        y=[seconds / 60 for _, seconds in spent],
        marker=filled(colour),
        hovertemplate="trial %{x}: %{y:.1f} minutes<extra>" + name + "</extra>",
    )


def filled(colour: str) -> dict[str, Any]:
    return {"color": colour, "line": {"width": 0}}


def in_legend(name: str, dash: str) -> Any:
    """A legend entry for a line across the figure, which has none of its own."""
    return go.Scatter(x=[None], y=[None], mode="lines", name=name, line={"dash": dash, "color": GREY, "width": 1})


def axis_of(name: str, values: Sequence[Value]) -> dict[str, Any]:
    """Numbers over more than a factor of 30 get a logarithmic axis, choices of words one place each."""
    title = AXIS | {"title": {"text": words(name)}}
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return title | {"type": "category"}
    wide = min(numbers) > 0 and max(numbers) / min(numbers) > 30
    return title | {"type": "log" if wide else "linear"} | ({"dtick": 1} if wide and _decades(numbers) else {})


def menu(names: Sequence[str], axes: Sequence[dict[str, Any]], per_name: int) -> dict[str, Any]:
    buttons = []
    for place, (name, axis) in enumerate(zip(names, axes, strict=True)):
        visible = [other == place for other in range(len(names)) for _ in range(per_name)]
        dtick = {"xaxis.dtick": axis.get("dtick")}
        change = {
            "xaxis.title.text": axis["title"]["text"],
            "xaxis.type": axis["type"],
            "xaxis.autorange": True,
        } | dtick
        buttons.append({"label": words(name), "method": "update", "args": [{"visible": visible}, change]})
    return {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"b": 4}}


def hover(run: RunRow) -> str:
    """What a mark says beside its value. Plotly reads text as HTML, and names come from people."""
    parts = [f"{run.end_reason or run.how} after {run.rows_seen:,} rows, {run.seconds / 60:.1f} min"]
    if isinstance(run, TrialRow):
        parts += [f"{words(name)}: {_short(value)}" for name, value in run.params.items()]
    return "<br>".join(parts)


def plain(value: Value) -> Value:
    return escape(value) if isinstance(value, str) else str(value) if isinstance(value, bool) else value


def words(name: str) -> str:
    return escape(name.replace("_", " "))


def _decades(numbers: Sequence[float]) -> bool:
    return math.log10(max(numbers) / min(numbers)) > 1.5


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
