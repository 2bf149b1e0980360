"""A study as interactive figures: Plotly, made from rows alone. Colours of text and grid are the page's business.

A figure that has nothing to show is not made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from mathverify_sweep import metrics
from mathverify_sweep.reports.models import PromotionRow, RunRow, StatusReport, TrialRow
from mathverify_sweep.reports.rows import best_stage, ranked
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
ENDED_FIRST = (RunState.COMPLETE, RunState.PRUNED, RunState.FAIL, RunState.RUNNING)
AXIS = {"automargin": True, "zeroline": False, "exponentformat": "power"}
BASELINE_DASHES = ("dot", "dash", "dashdot")
MOST_ON_THE_BOARD = 20


@dataclass(frozen=True)
class Panel:
    """A figure with its place on the page: `key` names it, `caption` says what to look for."""

    key: str
    title: str
    caption: str
    figure: Any


def panels(report: StatusReport, importances: Mapping[str, float]) -> list[Panel]:
    """Every figure that the study has something to show in."""
    drawn = [
        leaderboard(report),
        promotion(report),
        history(report),
        importance(importances),
        slices(report),
        rungs(report),
        losses(report),
        device_time(report),
    ]
    return [panel for panel in drawn if panel is not None]


def leaderboard(report: StatusReport) -> Panel | None:
    """Accuracy of the best trials with 95 % intervals, what promotion made of them, and the baselines as lines."""
    best = ranked(report.trials, report.objective)[:MOST_ON_THE_BOARD]
    if not best:
        return None
    shown = {f"trial {trial.number}": trial for trial in reversed(best)}
    promoted = {f"trial {row.trial_number}": best_stage(row, report.objective) for row in report.promotions}
    after = {name: stage for name, stage in promoted.items() if stage is not None and name in shown}
    traces = [_intervals("trial", shown, BLUE, "circle")]
    if after:
        traces.append(_intervals("promoted", after, GREEN, "diamond"))
    figure = _figure(traces, "accuracy", "", height=160 + 26 * len(shown))
    figure.update_yaxes(categoryorder="array", categoryarray=list(shown), type="category")
    for dash, (name, found) in zip(BASELINE_DASHES, report.baselines.items(), strict=False):
        figure.add_vline(x=found.accuracy, line={"dash": dash, "color": GREY, "width": 1})
        figure.add_trace(_in_legend(f"{_words(name)} {found.accuracy:.3f}", dash))
    caption = "Bars are 95 % intervals, clustered by question. The best of many trials looks better than it is."
    return Panel("leaderboard", "Leaderboard", caption, figure)


def promotion(report: StatusReport) -> Panel | None:
    """Accuracy of each promotion's stages beside that of the trial they came from, over training rows."""
    trials = {trial.number: trial for trial in report.trials}
    traces = []
    for colour, row in zip(_cycle((GREEN, BLUE, PURPLE, ORANGE)), report.promotions, strict=False):
        traces += _before_and_after(row, trials.get(row.trial_number), colour)
    if not traces:
        return None
    figure = _figure(traces, "training rows", "accuracy")
    _baseline_lines(figure, report)
    caption = "The open marker is the trial, the line its promotion, stage by stage; bars are 95 % intervals."
    return Panel("promotion", "Trial against promoted result", caption, figure)


def history(report: StatusReport) -> Panel | None:
    """The objective of every trial in order, and the best so far."""
    with_value = [trial for trial in report.trials if trial.value is not None]
    if not with_value:
        return None
    traces = []
    for state in ENDED_FIRST:
        of_state = [trial for trial in with_value if trial.state is state]
        if of_state:
            traces.append(_marks(state.lower(), of_state, [trial.number for trial in of_state], state))
    numbers, best = _best_so_far(with_value, higher=metrics.higher_is_better(report.objective))
    if numbers:
        line = {"color": BLUE, "width": 1.5, "shape": "hv"}
        traces.append(go.Scatter(x=numbers, y=best, mode="lines", name="best so far", line=line, hoverinfo="skip"))
    figure = _figure(traces, "trial", _words(report.objective))
    _baseline_lines(figure, report)
    caption = "Of trials that did not finish, the value at their last rung."
    return Panel("history", "History", caption, figure)


def importance(importances: Mapping[str, float]) -> Panel | None:
    """Which parameters make trials differ."""
    if not importances:
        return None
    names = [_words(name) for name in importances][::-1]
    shares = list(importances.values())[::-1]
    text = [f"{share:.0%}" for share in shares]
    bars = go.Bar(
        x=shares, y=names, orientation="h", marker=_filled(BLUE), text=text, textposition="outside", hoverinfo="skip"
    )
    figure = _figure([bars], "share", "", height=140 + 28 * len(names))
    figure.update_xaxes(tickformat=".0%", range=[0, max(shares) * 1.15])
    caption = "fANOVA over complete trials; with few trials a rough guess."
    return Panel("importance", "Parameter importance", caption, figure)


def slices(report: StatusReport) -> Panel | None:
    """The objective over one parameter at a time; a menu picks the parameter."""
    with_value = [trial for trial in report.trials if trial.value is not None]
    names = list(dict.fromkeys(name for trial in with_value for name in trial.params))
    if not names:
        return None
    traces, axes = [], []
    for name in names:
        having = [trial for trial in with_value if name in trial.params]
        axes.append(_axis_of(name, [trial.params[name] for trial in having]))
        for state in ENDED_FIRST:
            of_state = [trial for trial in having if trial.state is state]
            at = [_plain(trial.params[name]) for trial in of_state]
            trace = _marks(state.lower(), of_state, at, state)
            trace.update(visible=name == names[0], showlegend=bool(of_state))
            traces.append(trace)
    figure = _figure(traces, "", _words(report.objective))
    figure.update_layout(xaxis=axes[0], margin={"t": 72}, updatemenus=[_menu(names, axes, len(ENDED_FIRST))])
    caption = "Each mark is a trial; those that did not finish stand at the value of their last rung."
    return Panel("slices", "Parameters", caption, figure)


def rungs(report: StatusReport) -> Panel | None:
    """The objective at each rung and at the end, a line for every trial."""
    lines = [(trial, [(p.rows_seen, p.value) for p in trial.curve if p.value is not None]) for trial in report.trials]
    drawn = [
        (trial, points + _end_of(trial))
        for trial, points in lines
        if points or (trial.metrics and trial.value is not None)
    ]
    if not drawn:
        return None
    figure = _figure(_lines(drawn, report), "rows seen", _words(report.objective))
    caption = "The best three trials in colour; a cross is where a trial was pruned."
    return Panel("rungs", "Learning curves: value at rungs", caption, figure)


def losses(report: StatusReport) -> Panel | None:
    """Training loss of trials and stages."""
    drawn = [(trial, [(p.rows_seen, p.loss) for p in trial.curve if p.loss is not None]) for trial in report.trials]
    traces = _lines([(trial, points) for trial, points in drawn if points], report)
    for row in report.promotions:
        for stage in row.stages:
            points = [(p.rows_seen, p.loss) for p in stage.curve if p.loss is not None]
            if points:
                name = f"trial {row.trial_number} stage {stage.stage}"
                traces.append(_line(name, points, GREEN, 1.0 + 0.5 * stage.stage))
    if not traces:
        return None
    caption = "Promotion stages in green. Stages see more rows than trials."
    return Panel("losses", "Learning curves: training loss", caption, _figure(traces, "rows seen", "training loss"))


def device_time(report: StatusReport) -> Panel | None:
    """Device minutes of each trial, by how it ended, and of its promotion."""
    spent = [trial for trial in report.trials if trial.seconds > 0]
    if not spent:
        return None
    traces = []
    for state in ENDED_FIRST:
        of_state = [trial for trial in spent if trial.state is state]
        if of_state:
            traces.append(_bars(state.lower(), [(t.number, t.seconds) for t in of_state], STATE_COLOURS[state]))
    stages = [(row.trial_number, stage.seconds) for row in report.promotions for stage in row.stages if stage.seconds]
    if stages:
        traces.append(_bars("promotion", stages, PURPLE))
    figure = _figure(traces, "trial", "device minutes")
    figure.update_layout(barmode="stack")
    total = sum(trial.seconds for trial in spent) + sum(seconds for _, seconds in stages)
    caption = f"All attempts counted; {total / 3600:.2f} device-hours together."
    return Panel("device_time", "GPU time by trial", caption, figure)


def _figure(traces: Sequence[Any], x: str, y: str, height: int = 380) -> Any:
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


def _intervals(name: str, runs: Mapping[str, RunRow], colour: str, symbol: str) -> Any:
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
        text=[_hover(run) for _, _, run in known],
        hovertemplate="%{y}: %{x:.4f}<br>%{text}<extra></extra>",
    )


def _before_and_after(row: PromotionRow, trial: TrialRow | None, colour: str) -> list[Any]:
    runs: list[RunRow] = [run for run in ((trial,) if trial else ()) if run.metrics]
    stages = [stage for stage in row.stages if stage.metrics]
    if not stages:
        return []
    runs += stages
    return [
        go.Scatter(
            name=f"trial {row.trial_number}",
            x=[run.train_rows for run in runs],
            y=[run.accuracy for run in runs],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [(run.accuracy_high or 0) - (run.accuracy or 0) for run in runs],
                "arrayminus": [(run.accuracy or 0) - (run.accuracy_low or 0) for run in runs],
                "thickness": 1.5,
            },
            mode="lines+markers",
            line={"color": colour},
            marker={"size": 10, "symbol": ["diamond" if run in stages else "circle-open" for run in runs]},
            text=[_hover(run) for run in runs],
            hovertemplate="%{x} rows: %{y:.4f}<br>%{text}<extra></extra>",
        )
    ]


def _marks(name: str, trials: Sequence[TrialRow], at: Sequence[Any], state: RunState) -> Any:
    return go.Scatter(
        name=name,
        x=list(at),
        y=[trial.value for trial in trials],
        mode="markers",
        marker={
            "color": STATE_COLOURS[state],
            "symbol": "circle" if state is RunState.COMPLETE else "x-thin-open",
            "size": 9,
        },
        text=[f"trial {trial.number}<br>{_hover(trial)}" for trial in trials],
        hovertemplate="%{y:.4f}<br>%{text}<extra></extra>",
    )


def _lines(drawn: Sequence[tuple[TrialRow, list[tuple[int, float]]]], report: StatusReport) -> list[Any]:
    """A line a trial: the best three in colour and in the legend, in front of the others."""
    best = [trial.number for trial in ranked(report.trials, report.objective)[:3]]
    colours = dict(zip(best, (BLUE, ORANGE, PURPLE), strict=False))
    behind = [_line(f"trial {t.number}", points, GREY, 1.0, t) for t, points in drawn if t.number not in colours]
    front = [
        _line(f"trial {t.number}", points, colours[t.number], 2.0, t) for t, points in drawn if t.number in colours
    ]
    return behind + front


def _line(
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
        text=[_hover(trial) if trial else ""] * len(points),
        hovertemplate=f"{name} at %{{x}} rows: %{{y:.4f}}<br>%{{text}}<extra></extra>",
    )


def _end_of(trial: TrialRow) -> list[tuple[int, float]]:
    return [(trial.rows_seen, trial.value)] if trial.metrics and trial.value is not None else []


def _bars(name: str, spent: Sequence[tuple[int, float]], colour: str) -> Any:
    return go.Bar(
        name=name,
        x=[number for number, _ in spent],
        y=[seconds / 60 for _, seconds in spent],
        marker=_filled(colour),
        hovertemplate="trial %{x}: %{y:.1f} minutes<extra>" + name + "</extra>",
    )


def _filled(colour: str) -> dict[str, Any]:
    return {"color": colour, "line": {"width": 0}}


def _baseline_lines(figure: Any, report: StatusReport) -> None:
    for dash, (name, found) in zip(BASELINE_DASHES, report.baselines.items(), strict=False):
        value = metrics.objective_value(found, report.objective)
        figure.add_hline(y=value, line={"dash": dash, "color": GREY, "width": 1})
        figure.add_trace(_in_legend(f"{_words(name)} {value:.3f}", dash))


def _in_legend(name: str, dash: str) -> Any:
    """A legend entry for a line across the figure, which has none of its own."""
    return go.Scatter(x=[None], y=[None], mode="lines", name=name, line={"dash": dash, "color": GREY, "width": 1})


def _best_so_far(trials: Sequence[TrialRow], higher: bool) -> tuple[list[int], list[float]]:
    numbers: list[int] = []
    best: list[float] = []
    for trial in trials:
        if trial.state is RunState.COMPLETE and trial.value is not None:
            before = best[-1] if best else trial.value
            numbers.append(trial.number)
            best.append(max(before, trial.value) if higher else min(before, trial.value))
    return numbers, best


def _axis_of(name: str, values: Sequence[Value]) -> dict[str, Any]:
    """Numbers over more than a factor of 30 get a logarithmic axis, choices of words one place each."""
    title = AXIS | {"title": {"text": _words(name)}}
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return title | {"type": "category"}
    wide = min(numbers) > 0 and max(numbers) / min(numbers) > 30
    return title | {"type": "log" if wide else "linear"} | ({"dtick": 1} if wide and _decades(numbers) else {})


def _decades(numbers: Sequence[float]) -> bool:
    return math.log10(max(numbers) / min(numbers)) > 1.5


def _menu(names: Sequence[str], axes: Sequence[dict[str, Any]], per_name: int) -> dict[str, Any]:
    buttons = []
    for place, (name, axis) in enumerate(zip(names, axes, strict=True)):
        visible = [other == place for other in range(len(names)) for _ in range(per_name)]
        dtick = {"xaxis.dtick": axis.get("dtick")}
        change = {
            "xaxis.title.text": axis["title"]["text"],
            "xaxis.type": axis["type"],
            "xaxis.autorange": True,
        } | dtick
        buttons.append({"label": _words(name), "method": "update", "args": [{"visible": visible}, change]})
    return {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"b": 4}}


def _plain(value: Value) -> Value:
    return escape(value) if isinstance(value, str) else str(value) if isinstance(value, bool) else value


def _hover(run: RunRow) -> str:
    """What a mark says beside its value. Plotly reads text as HTML, and names come from people."""
    parts = [f"{run.end_reason or run.state.lower()} after {run.rows_seen:,} rows, {run.seconds / 60:.1f} min"]
    if isinstance(run, TrialRow):
        parts += [f"{_words(name)}: {_short(value)}" for name, value in run.params.items()]
    return "<br>".join(parts)


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _cycle(colours: Sequence[str]) -> Any:
    while True:
        yield from colours
