"""A study as one HTML page: everything inside, nothing fetched, readable on a phone and in the dark.

Whatever a person named is escaped before it reaches the page.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from mathverify_sweep import metrics
from mathverify_sweep.reports import figures, lineage, rows
from mathverify_sweep.reports.figures import Panel
from mathverify_sweep.reports.models import GateLook, GateReport, Leaderboard, RunRow, StatusReport
from mathverify_sweep.specs import Metrics
from mathverify_sweep.store import runs
from mathverify_sweep.study import views

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

_PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and what it is sorted by (nothing: always last)."""

    shown: str
    value: float | str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Story:
    """How what is on the page came to be: what the gate has decided, and the lineage of promoted runs, named."""

    gate: GateReport | None = None
    lineages: tuple[tuple[str, str], ...] = ()


def write(database: Database, study: str, path: Path, now: datetime, gate: GateReport | None = None) -> None:
    """Write the study's page to `path`, whole or not at all. `now` is the date on it."""
    report = rows.status(database, study)
    story = Story(gate, tuple(_lineages(database, report)))
    panels = figures.panels(report, views.parameter_importances(database, study))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(page(report, panels, now, story), encoding="utf-8")
    unfinished.replace(path)


def page(report: StatusReport, panels: Sequence[Panel], now: datetime, story: Story = Story()) -> str:
    """The page's text."""
    from plotly.offline import get_plotlyjs

    board = rows.leaderboard(report)
    tables = [_section("All trials", _trials(report, board)), _section("Promotions", _promotions(report))]
    tables += [_section("Gate", _gate(story.gate)), _section("Lineage", "".join(map(_lineage, story.lineages)))]
    drawn = {panel.key: panel.figure.to_plotly_json() for panel in panels}
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{report.study}: sweep report"),
        study=escape(report.study),
        standing=escape(_standing(report)),
        numbers="".join(_number(name, value) for name, value in _headline(report)),
        panels="".join(_panel(panel) for panel in panels) or _section("Nothing to draw yet", _NOTHING),
        tables="".join(table for table in tables if table),
        footer=escape(_provenance(report, now)),
        plotly=get_plotlyjs(),
        # Within a script element only `<` could end it early.
        figures=json.dumps(drawn).replace("<", "\\u003c"),
    )


_NOTHING = "<p>Plots appear when trials report values. <code>mvsweep worker STUDY</code> starts a worker.</p>"


def _standing(report: StatusReport) -> str:
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(report.counts.items())) or "no trials yet"
    return f"{rows.standing(report)}: {counts}. Ranked by {report.objective.replace('_', ' ')}."


def _headline(report: StatusReport) -> Iterable[tuple[str, str]]:
    best = next((trial for trial in report.trials if trial.number == report.best_trial), None)
    if best is not None and best.value is not None:
        title = f"best {report.objective.replace('_', ' ')}, trial {best.number}"
        yield title + _interval(best.metrics), f"{best.value:.4f}"
    for number, stage in rows.best_promoted(report).items():
        if stage.value is not None:
            title = f"trial {number} promoted to {stage.train_rows:,} rows"
            yield title + _interval(stage.metrics), f"{stage.value:.4f}"
    for name, found in report.baselines.items():
        yield f"accuracy of {name.replace('_', ' ')} (baseline)", f"{found.accuracy:.4f}"
    yield "trials", f"{report.budget.trials_used} of {report.budget.trials}"
    yield "device-hours", f"{report.budget.gpu_hours_used:.2f}"
    for prediction in report.predictions:
        yield rows.held_against(prediction), f"{prediction.ratio:.2f}"


def _trials(report: StatusReport, board: Leaderboard) -> str:
    """All trials, the ranked ones first, and the baselines."""
    ranks = {row.trial_number: row.rank for row in board.rows}
    promoted = {row.trial_number: row.promoted for row in board.rows if row.promoted}
    names = list(dict.fromkeys(name for trial in report.trials for name in trial.params))
    head = ["rank", "trial", "state", "value", "accuracy", "95 %", "log-loss", "AUC", "promoted"]
    head += [*(name.replace("_", " ") for name in names), "rows", "minutes", "attempts", "worker", "W&B"]
    ordered = sorted(report.trials, key=lambda trial: (ranks.get(trial.number) or len(report.trials) + 1, trial.number))
    body: list[tuple[str, list[Cell]]] = []
    for trial in ordered:
        after = promoted.get(trial.number)
        cells = [_count(ranks.get(trial.number)), _count(trial.number), *_ending(trial), *_figures(trial.metrics)]
        cells += [_figure(after.accuracy if after else None), *(_setting(trial.params.get(name)) for name in names)]
        body.append(("", [*cells, *_effort(trial), _where(trial), _wandb(trial.wandb)]))
    for row in board.rows:
        if row.kind == "baseline":
            cells = [_text(""), _text(""), _text(f"{row.name} (baseline)"), _figure(row.value), *_figures(row.metrics)]
            body.append(("baseline", cells + [_text("")] * (len(head) - len(cells))))
    return _table(head, body) if report.trials or report.baselines else ""


def _promotions(report: StatusReport) -> str:
    head = [
        "trial",
        "plan",
        "stage",
        "state",
        "value",
        "accuracy",
        "95 %",
        "log-loss",
        "AUC",
        "rows",
        "minutes",
        "attempts",
        "from",
    ]
    names = {stage.run_id: f"stage {stage.stage}" for row in report.promotions for stage in row.stages}
    body: list[tuple[str, list[Cell]]] = []
    for row in report.promotions:
        for stage in row.stages:
            start = names.get(stage.started_from, stage.started_from) if stage.started_from else ""
            place = [_count(row.trial_number), _text(row.plan), Cell(stage.name, stage.stage)]
            cells = [*place, *_ending(stage), *_figures(stage.metrics)]
            body.append(("", [*cells, *_effort(stage), _text(start)]))
    return _table(head, body) if body else ""


def _gate(found: GateReport | None) -> str:
    """Every finalist with what became of it and why, and the looks that decided."""
    if found is None:
        return ""
    body = []
    for one in found.finalists:
        cells = [_count(one.trial_number), _text(one.verdict), _figure(one.value), _figure(one.accuracy)]
        body.append(("", [*cells, _count(len(one.run_ids)), _text(one.why)]))
    table = _table(["trial", "verdict", "validation", "gate", "runs", "why"], body)
    looks = "".join(
        f"<p>Look {look.number}: {look.rows:,} rows of {look.questions:,} questions, dropped up to p = {look.level:.2g}"
        f"{_p_values(look)}.</p>"
        for look in found.looks
    )
    waiting = f"<p>{found.waiting} run(s) are to be trained before the next look.</p>" if found.waiting else ""
    return f"{table}{looks}{waiting}"


def _p_values(look: GateLook) -> str:
    told = ", ".join(f"trial {number} {p_value:.2g}" for number, p_value in sorted(look.p_values.items()))
    return f"; p-values: {told}" if told else ""


def _lineages(database: Database, report: StatusReport) -> Iterable[tuple[str, str]]:
    """Of the best stage of every promotion, which is the one that people use."""
    sign = 1 if metrics.higher_is_better(report.objective) else -1
    for row in report.promotions:
        known = [(sign * stage.value, stage) for stage in row.stages if stage.metrics and stage.value is not None]
        if known:
            best = max(known, key=lambda found: found[0])[1]
            told = lineage.told(lineage.of(database, runs.get(database, str(best.run_id))))
            yield f"trial {row.trial_number} {row.plan}, stage {best.name}: run {best.run_id}", told


def _lineage(found: tuple[str, str]) -> str:
    name, told = found
    return f"<details><summary>{escape(name)}</summary><pre>{escape(told)}</pre></details>"


def _ending(run: RunRow) -> list[Cell]:
    why = str(run.end_reason).replace("_", " ") if run.end_reason else run.how
    return [_text(why), _figure(run.value)]


def _figures(found: Metrics | None) -> list[Cell]:
    if found is None:
        return [_text("")] * 4
    interval = f"{found.accuracy_low:.3f} – {found.accuracy_high:.3f}"
    scores = (found.log_loss, found.auc) if found.has_classes else (None, None)
    return [_figure(found.accuracy), Cell(interval, found.accuracy_low), *map(_figure, scores)]


def _effort(run: RunRow) -> list[Cell]:
    return [
        Cell(f"{run.rows_seen:,}", run.rows_seen),
        Cell(f"{run.seconds / 60:.1f}", run.seconds),
        _count(run.attempts),
    ]


def _where(run: RunRow) -> Cell:
    return _text(f"{run.worker} ({run.gpu})" if run.worker else "")


def _wandb(link: str | None) -> Cell:
    if link is not None and link.startswith(("https://", "http://")):
        return Cell("open", link, link)
    return _text(link or "")


def _setting(value: object) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _text("" if value is None else str(value))
    return Cell(f"{value:.4g}" if isinstance(value, float) else str(value), value)


def _count(value: int | None) -> Cell:
    return Cell("" if value is None else str(value), value)


def _figure(value: float | None) -> Cell:
    return Cell("" if value is None else f"{value:.4f}", value)


def _text(value: str) -> Cell:
    return Cell(value, value)


def _interval(found: Metrics | None) -> str:
    return "" if found is None else f"; accuracy {found.accuracy_low:.3f} to {found.accuracy_high:.3f} (95 %)"


def _number(name: str, value: str) -> str:
    return f'<div class="number"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def _panel(panel: Panel) -> str:
    plot = f'<p>{escape(panel.caption)}</p><div id="figure-{panel.key}" class="figure"></div>'
    return _section(panel.title, plot)


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def _table(head: Sequence[str], body: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    titles = "".join(_title(title, [cells[place] for _, cells in body]) for place, title in enumerate(head))
    lines = "".join(f'<tr class="{kind}">{"".join(_cell(cell) for cell in cells)}</tr>' for kind, cells in body)
    return f'<div class="table"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def _title(title: str, column: Sequence[Cell]) -> str:
    right = ' class="right"' if any(isinstance(cell.value, int | float) for cell in column) else ""
    return f'<th scope="col"{right}><button type="button">{escape(title)}</button></th>'


def _cell(cell: Cell) -> str:
    shown = escape(cell.shown)
    if cell.link:
        shown = f'<a href="{escape(cell.link)}" rel="noreferrer">{shown}</a>'
    value = "" if cell.value is None else escape(str(cell.value))
    right = ' class="right"' if isinstance(cell.value, int | float) else ""
    return f'<td data-value="{value}"{right}>{shown}</td>'


def _provenance(report: StatusReport, now: datetime) -> str:
    parts = [f"Written {now:%Y-%m-%d %H:%M %Z}", f"study created {report.created_at:%Y-%m-%d %H:%M %Z}"]
    parts.append(f"data fingerprint {report.data_fingerprint}")
    parts += [f"{name} {_version(name)}" for name in ("mathverify-sweep", "optuna", "plotly")]
    parts.append(f"Python {platform.python_version()}")
    commit = _commit()
    return " · ".join(parts + ([f"commit {commit}"] if commit else []))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """The commit of this code when it runs from its own checkout; `-dirty` when files differ from it."""
    git = ["git", "-C", str(_PAGE.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", _PAGE.name], check=True, capture_output=True, timeout=5)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(describe, check=True, capture_output=True, timeout=5, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or installed from a wheel
