"""Reports as tables for a terminal, clean at 80 columns, and the progress of a study that is being worked on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mathverify_sweep.reports import rows
from mathverify_sweep.reports.models import Leaderboard, RunningRow, RunRow, StatusReport
from mathverify_sweep.search_space import Value
from mathverify_sweep.specs import Metrics
from mathverify_sweep.states import EndReason, RunState

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database


STYLES = {
    RunState.COMPLETE: "green",
    RunState.PRUNED: "yellow",
    RunState.FAIL: "red",
    RunState.RUNNING: "cyan",
    RunState.WAITING: "dim",
}


def status(report: StatusReport) -> RenderableType:
    """Every trial and stage of a study."""
    parts: list[RenderableType] = [_headline(report), _trials(report)]
    if report.promotions:
        parts.append(_promotions(report))
    parts += [_now(run) for run in report.running]
    return Group(*parts)


def leaderboard(board: Leaderboard) -> RenderableType:
    """The best trials with what became of them, the baselines below, and the settings of each trial."""
    table = table_of("rank", "model", "accuracy [95 %]", "log-loss", "AUC", "promoted")
    for row in board.rows:
        if row.kind == "baseline":
            table.add_section()
        rank = "base" if row.rank is None else f"{row.rank}"
        promoted = None if row.promoted is None else row.promoted.metrics
        found = row.metrics
        scores = (f"{found.log_loss:.3f}", f"{found.auc:.3f}") if found.has_classes else ("", "")
        figures = (_accuracy(found), *scores, _accuracy(promoted))
        table.add_row(rank, row.name, *figures)
    how = board.objective.replace("_", " ")
    note = f"{board.study}: {board.complete} complete trials by {how}"
    chosen = [Text(f"{row.name}: {settings(row.params)}") for row in board.rows if row.kind == "trial"]
    return Group(Text(note), table, *chosen)


def table_of(*columns: str) -> Table:
    """An empty table in the style of all of them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        right = column in ("trial", "rank", "rows", "time", "stage", "log-loss", "AUC")
        folds = column in ("worker", "model", "state")
        table.add_column(escape(column), justify="right" if right else "left", overflow="fold", no_wrap=not folds)
    return table


def time_of(seconds: float) -> str:
    """`4:07`, or `1:04:07` with hours."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def watch(
    database: Database, study: str, is_over: Callable[[StatusReport], bool], console: Console, seconds: float = 1.5
) -> StatusReport:
    """Show a study's progress until `is_over`; each run that ends leaves one line."""
    report = rows.status(database, study)
    told = {run.run_id for _, run in _ended(report)}
    with Live(_progress(report), console=console, refresh_per_second=2, transient=True) as live:
        while True:
            for title, run in _ended(report):
                if run.run_id not in told:
                    told.add(run.run_id)
                    console.print(_line(title, run))
            if is_over(report):
                return report
            time.sleep(seconds)
            report = rows.status(database, study)
            live.update(_progress(report))


def settings(params: Mapping[str, Value]) -> str:
    """Parameters in few characters: `learning_rate=0.0003 lora_r=16`."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items()
    )


def _headline(report: StatusReport) -> Text:
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(report.counts.items())) or "no trials yet"
    budget = report.budget
    hours = f"{budget.gpu_hours_used:.2f}" + (f" of {budget.gpu_hours:g}" if budget.gpu_hours else "")
    lines = [
        f"{report.study}: {rows.standing(report)}",
        f"{budget.trials_used} of {budget.trials} trials ({counts}), {hours} device-hours",
    ]
    lines += [rows.held_against(prediction) for prediction in report.predictions]
    if report.best_value is not None:
        lines.append(f"best {report.objective.replace('_', ' ')} {report.best_value:.4f}, trial {report.best_trial}")
    if report.baselines:
        known = (f"{name.replace('_', ' ')} {found.accuracy:.4f}" for name, found in report.baselines.items())
        lines.append(f"baselines (accuracy): {', '.join(known)}")
    return Text("\n".join(lines))


def _trials(report: StatusReport) -> Table:
    table = table_of("trial", "state", "value [95 %]", "rows", "time", "worker")
    for trial in report.trials:
        seen = f"{trial.rows_seen:,}/{trial.rows_to_meet:,}"
        where = f"{trial.worker} {trial.gpu}" if trial.worker else ""
        table.add_row(f"{trial.number}", _state(trial), _value(trial), seen, _time(trial), where)
    return table


def _promotions(report: StatusReport) -> Table:
    table = table_of("promoted", "stage", "state", "value [95 %]", "rows", "time", "from")
    names = {stage.run_id: f"{stage.stage}" for row in report.promotions for stage in row.stages}
    for row in report.promotions:
        for stage in row.stages:
            start = names.get(stage.started_from, "") if stage.started_from else ""
            seen = f"{stage.rows_seen:,}/{stage.rows_to_meet:,}"
            state = (_state(stage), _value(stage), seen, _time(stage), start)
            table.add_row(f"{row.trial_number} {row.plan}", stage.name, *state)
    return table


def _now(run: RunningRow) -> Text:
    what = f"trial {run.trial_number}" + (f" stage {run.stage}" if run.stage else "")
    value = "" if run.value is None else f", value {run.value:.4f}"
    loss = "" if run.loss is None else f", loss {run.loss:.3f}"
    return Text(f"now: {what} on {run.worker} ({run.gpu}): {run.rows_seen:,} of {run.rows_to_meet:,} rows{value}{loss}")


def _progress(report: StatusReport) -> Table:
    """Bars: one for the study's trials, one for each run that is trained now."""
    table = Table.grid(padding=(0, 1))
    ended = sum(trial.state in (RunState.COMPLETE, RunState.PRUNED, RunState.FAIL) for trial in report.trials)
    best = "" if report.best_value is None else f"best {report.best_value:.4f} (trial {report.best_trial})"
    table.add_row("trials", ProgressBar(report.budget.trials, ended, width=24), f"{ended}/{report.budget.trials}", best)
    for run in report.running:
        what = f"trial {run.trial_number}" + (f" stage {run.stage}" if run.stage else "")
        said = f"loss {run.loss:.3f}" if run.loss is not None else "starting"
        seen = f"{run.rows_seen:,}/{run.rows_to_meet:,}"
        table.add_row(what, ProgressBar(run.rows_to_meet, run.rows_seen, width=24), seen, said)
    return table


def _ended(report: StatusReport) -> list[tuple[str, RunRow]]:
    """Trials and stages that have ended, with their titles."""
    found: list[tuple[str, RunRow]] = [(f"trial {trial.number}", trial) for trial in report.trials]
    for row in report.promotions:
        found += [(f"trial {row.trial_number} stage {stage.name}", stage) for stage in row.stages]
    return [(title, run) for title, run in found if run.state not in (RunState.RUNNING, RunState.WAITING)]


def _line(title: str, run: RunRow) -> Text:
    text = Text(f"{title} ")
    text.append_text(_state(run))
    return text.append(f" {_value(run)} after {run.rows_seen:,} of {run.rows_to_meet:,} rows, {_time(run)}")


def _state(run: RunRow) -> Text:
    """Why it ended says more than how, unless it just finished."""
    plain = run.end_reason in (None, EndReason.FINISHED, EndReason.PRUNED)
    text = run.how if plain or run.end_reason is None else str(run.end_reason).replace("_", " ")
    tries = f", try {run.attempts}" if run.attempts > 1 else ""
    return Text(text + tries, style=STYLES[run.state])


def _value(run: RunRow) -> str:
    if run.value is None:
        return ""
    if run.accuracy == run.value:
        return f"{run.value:.4f} [{run.accuracy_low:.3f}, {run.accuracy_high:.3f}]"
    return f"{run.value:.4f}"


def _accuracy(found: Metrics | None) -> str:
    return "" if found is None else f"{found.accuracy:.4f} [{found.accuracy_low:.3f}, {found.accuracy_high:.3f}]"


def _time(run: RunRow) -> str:
    return time_of(run.seconds)
