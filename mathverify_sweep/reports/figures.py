"""A study as interactive figures: Plotly, made from rows alone. Colours of text and grid are the page's business.

A figure that has nothing to show is not made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from mathverify_sweep import metrics
from mathverify_sweep.reports import draw
from mathverify_sweep.reports.models import PromotionRow, RunRow, StatusReport, TrialRow
from mathverify_sweep.reports.rows import best_promoted, ranked
from mathverify_sweep.specs import Objective, SliceFigures
from mathverify_sweep.states import RunState

ENDED_FIRST = (RunState.COMPLETE, RunState.PRUNED, RunState.FAIL, RunState.RUNNING)
KINDS = {state.lower(): state for state in ENDED_FIRST} | {"imported": RunState.COMPLETE}
"""How trials that have a value came to it, by `TrialRow.how`."""
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
        forgetting(report),
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
    promoted = {f"trial {number}": stage for number, stage in best_promoted(report).items()}
    after = {name: stage for name, stage in promoted.items() if name in shown}
    traces = [draw.intervals("trial", shown, draw.BLUE, "circle")]
    if after:
        traces.append(draw.intervals("promoted", after, draw.GREEN, "diamond"))
    figure = draw.figure(traces, "accuracy", "", height=160 + 26 * len(shown))
    figure.update_yaxes(categoryorder="array", categoryarray=list(shown), type="category")
    for dash, (name, found) in zip(BASELINE_DASHES, report.baselines.items(), strict=False):
        figure.add_vline(x=found.accuracy, line={"dash": dash, "color": draw.GREY, "width": 1})
        figure.add_trace(draw.in_legend(f"{draw.words(name)} {found.accuracy:.3f}", dash))
    caption = "Bars are 95 % intervals, clustered by question. The best of many trials looks better than it is."
    return Panel("leaderboard", "Leaderboard", caption, figure)


def promotion(report: StatusReport) -> Panel | None:
    """Accuracy of each promotion's stages beside that of the trial they came from, over training rows."""
    trials = {trial.number: trial for trial in report.trials}
    traces = []
    for colour, row in zip(_cycle((draw.GREEN, draw.BLUE, draw.PURPLE, draw.ORANGE)), report.promotions, strict=False):
        traces += _before_and_after(row, trials.get(row.trial_number), colour)
    if not traces:
        return None
    figure = draw.figure(traces, "training rows", "accuracy")
    _baseline_lines(figure, report, "validation_accuracy")
    caption = "The open marker is the trial, the line its promotion, stage by stage; bars are 95 % intervals."
    return Panel("promotion", "Trial against promoted result", caption, figure)


def forgetting(report: StatusReport) -> Panel | None:
    """Accuracy of every stage on each slice of the data up to its own: what falls from left to right is forgotten."""
    traces = []
    colours = _cycle((draw.GREEN, draw.BLUE, draw.PURPLE, draw.ORANGE))
    for dash, row in zip(_cycle(("solid", "dash", "dot", "dashdot")), report.promotions, strict=False):
        known = [(stage.name, found) for stage in row.stages for found in stage.slices if found.met_rows]
        # One look forgets nothing: a slice is drawn when a later stage was read on it too.
        for colour, first in zip(colours, sorted({found.first_row for _, found in known}), strict=False):
            seen = [(name, found) for name, found in known if found.first_row == first]
            if len(seen) > 1:
                traces.append(_slice(f"trial {row.trial_number} {row.plan}", seen, colour, dash))
    if not traces:
        return None
    figure = draw.figure(traces, "stage", "accuracy on rows of the slice")
    figure.update_xaxes(type="category")
    caption = (
        "A line is a slice of the training rows, after each stage from the one that brought it; a sample of them is "
        "read. Point at a mark for the slice's held-back rows, which no stage was trained on."
    )
    return Panel("forgetting", "What is kept of earlier slices", caption, figure)


def history(report: StatusReport) -> Panel | None:
    """The objective of every trial in order, and the best so far of those that ran here."""
    with_value = [trial for trial in report.trials if trial.value is not None]
    if not with_value:
        return None
    traces = []
    for kind, state in KINDS.items():
        of_kind = [trial for trial in with_value if trial.how == kind]
        if of_kind:
            traces.append(draw.marks(kind, of_kind, [trial.number for trial in of_kind], state))
    numbers, best = _best_so_far(with_value, higher=metrics.higher_is_better(report.objective))
    if numbers:
        line = {"color": draw.BLUE, "width": 1.5, "shape": "hv"}
        traces.append(go.Scatter(x=numbers, y=best, mode="lines", name="best so far", line=line, hoverinfo="skip"))
    figure = draw.figure(traces, "trial", draw.words(report.objective))
    _baseline_lines(figure, report, report.objective)
    caption = "Of trials that did not finish, the value at their last rung."
    return Panel("history", "History", caption, figure)


def importance(importances: Mapping[str, float]) -> Panel | None:
    """Which parameters make trials differ."""
    if not importances:
        return None
    names = [draw.words(name) for name in importances][::-1]
    shares = list(importances.values())[::-1]
    text = [f"{share:.0%}" for share in shares]
    bars = go.Bar(
        x=shares,
        y=names,
        orientation="h",
        marker=draw.filled(draw.BLUE),
        text=text,
        textposition="outside",
        hoverinfo="skip",
    )
    figure = draw.figure([bars], "share", "", height=140 + 28 * len(names))
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
        axes.append(draw.axis_of(name, [trial.params[name] for trial in having]))
        for kind, state in KINDS.items():
            of_kind = [trial for trial in having if trial.how == kind]
            at = [draw.plain(trial.params[name]) for trial in of_kind]
            trace = draw.marks(kind, of_kind, at, state)
            trace.update(visible=name == names[0], showlegend=bool(of_kind))
            traces.append(trace)
    figure = draw.figure(traces, "", draw.words(report.objective))
    figure.update_layout(xaxis=axes[0], margin={"t": 72}, updatemenus=[draw.menu(names, axes, len(KINDS))])
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
    figure = draw.figure(_lines(drawn, report), "rows seen", draw.words(report.objective))
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
                name = f"trial {row.trial_number} {row.plan} {stage.name}"
                traces.append(draw.line(name, points, draw.GREEN, 1.0 + 0.5 * stage.stage))
    if not traces:
        return None
    caption = "Promotion stages in green. Stages see more rows than trials."
    return Panel("losses", "Learning curves: training loss", caption, draw.figure(traces, "rows seen", "training loss"))


def device_time(report: StatusReport) -> Panel | None:
    """Minutes that each trial was in an engine, by how it ended, and its promotion."""
    spent = [trial for trial in report.trials if trial.seconds > 0]
    if not spent:
        return None
    traces = []
    for state in ENDED_FIRST:
        of_state = [trial for trial in spent if trial.state is state]
        if of_state:
            traces.append(
                draw.bars(state.lower(), [(t.number, t.seconds) for t in of_state], draw.STATE_COLOURS[state])
            )
    stages = [(row.trial_number, stage.seconds) for row in report.promotions for stage in row.stages if stage.seconds]
    if stages:
        traces.append(draw.bars("promotion", stages, draw.PURPLE))
    figure = draw.figure(traces, "trial", "minutes")
    figure.update_layout(barmode="stack")
    hours = report.budget.gpu_hours_used
    caption = f"All attempts counted, runs that share a device beside each other; it was held for {hours:.2f} hours."
    return Panel("device_time", "Time by trial", caption, figure)


def _slice(name: str, seen: Sequence[tuple[str, SliceFigures]], colour: str, dash: str) -> Any:
    first = seen[0][1]
    held_back = [found.held_back_accuracy for _, found in seen]
    return go.Scatter(
        name=f"{name}, rows {first.first_row:,} to {first.end_row:,}",
        x=[stage for stage, _ in seen],
        y=[found.met_accuracy for _, found in seen],
        mode="lines+markers",
        line={"color": colour, "dash": dash},
        text=["held back: none" if value is None else f"held back: {value:.4f}" for value in held_back],
        hovertemplate="after stage %{x}: %{y:.4f}<br>%{text}<extra></extra>",
    )


def _before_and_after(row: PromotionRow, trial: TrialRow | None, colour: str) -> list[Any]:
    runs: list[RunRow] = [run for run in ((trial,) if trial else ()) if run.metrics]
    stages = [stage for stage in row.stages if stage.metrics and stage.part != "trunk"]
    if not stages:
        return []
    runs += stages
    return [
        go.Scatter(
            name=f"trial {row.trial_number} {row.plan}",
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
            text=[draw.hover(run) for run in runs],
            hovertemplate="%{x} rows: %{y:.4f}<br>%{text}<extra></extra>",
        )
    ]


def _lines(drawn: Sequence[tuple[TrialRow, list[tuple[int, float]]]], report: StatusReport) -> list[Any]:
    """A line a trial: the best three in colour and in the legend, in front of the others."""
    best = [trial.number for trial in ranked(report.trials, report.objective)[:3]]
    colours = dict(zip(best, (draw.BLUE, draw.ORANGE, draw.PURPLE), strict=False))
    behind = [
        draw.line(f"trial {t.number}", points, draw.GREY, 1.0, t) for t, points in drawn if t.number not in colours
    ]
    front = [
        draw.line(f"trial {t.number}", points, colours[t.number], 2.0, t) for t, points in drawn if t.number in colours
    ]
    return behind + front


def _end_of(trial: TrialRow) -> list[tuple[int, float]]:
    return [(trial.rows_seen, trial.value)] if trial.metrics and trial.value is not None else []


def _baseline_lines(figure: Any, report: StatusReport, of: Objective) -> None:
    """What the baselines reach in the figure's own terms."""
    for dash, (name, found) in zip(BASELINE_DASHES, report.baselines.items(), strict=False):
        value = metrics.objective_value(found, of)
        figure.add_hline(y=value, line={"dash": dash, "color": draw.GREY, "width": 1})
        figure.add_trace(draw.in_legend(f"{draw.words(name)} {value:.3f}", dash))


def _best_so_far(trials: Sequence[TrialRow], higher: bool) -> tuple[list[int], list[float]]:
    numbers: list[int] = []
    best: list[float] = []
    for trial in trials:
        if trial.how == "complete" and trial.value is not None:
            before = best[-1] if best else trial.value
            numbers.append(trial.number)
            best.append(max(before, trial.value) if higher else min(before, trial.value))
    return numbers, best


def _cycle(colours: Sequence[str]) -> Any:
    while True:
        yield from colours
