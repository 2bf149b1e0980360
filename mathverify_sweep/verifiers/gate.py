"""The gate: which of the best trials are promoted, when validation cannot tell them apart.

The best of many trials looks better than it is, and validation has been read for every one of them. So those within its
noise are trained again with fresh seeds, and judged on the gate split, which nobody has looked at. There are planned
looks: the n-th reads n of all `looks` shares of the gate's questions, by n runs of each finalist, and drops whoever is
worse. The chance of dropping an equal is spent over the looks by the O'Brien-Fleming-like function of Lan and DeMets
(Biometrika 70, 1983), and shared by the finalists of a look.

The state of a gate is what the database has of its runs: the command is said again until it has chosen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from mathverify_sweep import metrics
from mathverify_sweep.config import PromotionConfig
from mathverify_sweep.data.rows import Row, groups
from mathverify_sweep.errors import StudyError
from mathverify_sweep.metrics import Floats
from mathverify_sweep.reports.models import Finalist, GateLook, GateReport
from mathverify_sweep.resampling import mean_gain, total_p_value
from mathverify_sweep.states import RunState
from mathverify_sweep.store import promotions, runs
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.study import plans, promotion
from mathverify_sweep.study.study import StudyHandle
from mathverify_sweep.verifiers import verifier as verifiers
from mathverify_sweep.verifiers.verifier import Model, Place

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

FRESH_SEED = 1_000
"""Seeds of the runs begin here, on top of the study's: no trial has them."""


@dataclass
class _Runner:
    """A finalist on its way through the gate."""

    number: int
    value: float
    verdict: str = "open"
    why: str = ""
    accuracy: float | None = None
    again: list[RunRecord] = field(default_factory=list)


def spent(alpha: float, share: float) -> float:
    """Of `alpha`, what may have been spent at this share of the information: 2 - 2 Phi(z / sqrt(share)), with z the
    two-sided quantile of alpha. Lan and DeMets 1983, their alpha 1.
    """
    from scipy.special import ndtr, ndtri

    return float(2 * ndtr(-ndtri(1 - alpha / 2) / np.sqrt(share)))


def gate(place: Place, study: StudyHandle, top: int, now: datetime) -> GateReport:
    """As far as the finalists' runs have come; those that are missing are queued. Raises StudyError.

    Each look tests at what is newly spent, divided by the finalists that may be dropped: by the union bound the chance
    of one wrong drop in all looks is at most `gate.alpha`.
    """
    settings = study.config.gate
    found = finalists(place.database, study, top)
    looks: list[GateLook] = []
    waiting = 0
    for number in range(1, settings.looks + 1):
        open_ones = [one for one in found if one.verdict == "open"]
        if len(open_ones) <= top:
            break
        waiting = sum(not _trained_again(place.database, study, one, number, now) for one in open_ones)
        if waiting:
            break
        _drop_failed(open_ones)
        looks.append(_look(place, study, [one for one in open_ones if one.verdict == "open"], number, top))
    if not waiting:
        _choose([one for one in found if one.verdict == "open"], top, bool(looks))
    told = tuple(_told(one) for one in found)
    return GateReport(study=study.config.study, top=top, waiting=waiting, looks=tuple(looks), finalists=told)


def keep(found: GateReport, file: Path) -> None:
    """For the study's page: it does not ask the gate, which would queue runs and read models."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(found.model_dump_json(indent=1), encoding="utf-8")
    partial.replace(file)


def kept(file: Path) -> GateReport | None:
    """What was kept last; None when nothing was, or by another version."""
    try:
        return GateReport.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def finalists(database: Database, study: StudyHandle, top: int) -> list[_Runner]:
    """The `top` best trials on validation, and those behind them that are not worse beyond its noise: whose paired
    interval against the last of the top includes 0. At most `gate.finalists`, the best first.
    """
    most = study.config.gate.finalists
    if most < top:
        raise StudyError(f"gate.finalists must be at least the {top} trials to choose, got {most}. Raise it.")
    best = promotion.select(study, max(top, len(promotion.complete(study))))
    models = {number: verifiers.model(verifiers.named(database, f"{study.config.study}:{number}")) for number in best}
    rows = verifiers.rows_of(models[best[0]], "validation")
    right = {number: _right(verifiers.kept_log_odds(database, models[number], "validation"), rows) for number in best}
    bar, questions = right[best[top - 1]], groups(rows)
    near = [n for n in best[top:] if mean_gain(bar - right[n], questions).low <= 0]
    return [_Runner(number, _value(models[number])) for number in [*best[:top], *near][:most]]


def _trained_again(database: Database, study: StudyHandle, one: _Runner, look: int, now: datetime) -> bool:
    """Whether the run of this look has ended; it is queued when it is not there."""
    spec = promotion.spec_of(study, one.number)
    seed = study.config.training.seed + FRESH_SEED + look
    settings = PromotionConfig(plan="scratch", stages=(spec.train_rows,), seed=seed)
    stages = plans.plan(spec, spec.train_rows, settings)
    name = study.config.study
    promotion_id, _ = promotions.record(database, name, one.number, settings.key, stages, now)
    (record,) = (each for each in promotions.promotions(database, name) if each.promotion_id == promotion_id)
    run = runs.get(database, record.run_ids[-1])
    if run.state in (RunState.WAITING, RunState.RUNNING):
        return False
    one.again.append(run)
    return True


def _drop_failed(open_ones: Sequence[_Runner]) -> None:
    for one in open_ones:
        if one.again[-1].state is not RunState.COMPLETE:
            one.verdict = "dropped"
            one.why = f"trained again with another seed it ended {one.again[-1].end_reason}"


def _look(place: Place, study: StudyHandle, open_ones: list[_Runner], number: int, top: int) -> GateLook:
    """Drops whoever is worse than the last one that would be chosen."""
    settings = study.config.gate
    models = {one.number: [verifiers.model(run) for run in one.again] for one in open_ones}
    rows = verifiers.rows_of(next(iter(models.values()))[0], "gate")
    if not rows:
        raise StudyError("the study's data has no gate split, so finalists cannot be told apart. Set data.gate_share.")
    read = rows[: round(len(rows) * number / settings.looks)]
    unread = verifiers.unread(place.database, [model for several in models.values() for model in several], "gate")
    verifiers.have_read(unread, "gate", place)
    right = {each: _share_right(place.database, said, rows)[: len(read)] for each, said in models.items()}
    questions = groups(read)
    for one in open_ones:
        one.accuracy = float(right[one.number].mean())
    ranked = sorted(open_ones, key=lambda one: (-(one.accuracy or 0.0), one.number))
    behind = ranked[top:]
    before = spent(settings.alpha, (number - 1) / settings.looks) if number > 1 else 0.0
    level = (spent(settings.alpha, number / settings.looks) - before) / max(1, len(behind))
    bar = ranked[min(top, len(ranked)) - 1]
    p_values = {one.number: total_p_value(right[bar.number] - right[one.number], questions) for one in behind}
    for one in behind:
        if p_values[one.number] <= level:
            one.verdict = "dropped"
            gap = mean_gain(right[bar.number] - right[one.number], questions)
            one.why = (
                f"look {number}: {100 * gap.estimate:.2f} points [{100 * gap.low:.2f}, {100 * gap.high:.2f}] behind "
                f"trial {bar.number} on {len(read):,} gate rows, p = {p_values[one.number]:.2g} <= {level:.2g}"
            )
    return GateLook(number=number, rows=len(read), questions=len(set(questions)), level=level, p_values=p_values)


def _choose(open_ones: list[_Runner], top: int, has_looked: bool) -> None:
    ranked = sorted(open_ones, key=lambda one: -(one.accuracy or 0.0)) if has_looked else open_ones
    clear = len(ranked) <= top
    for place, one in enumerate(ranked):
        one.verdict = "chosen" if place < top else "dropped"
        if clear:
            one.why = "ahead of all others beyond the noise of " + ("the gate" if has_looked else "validation")
        elif place < top:
            one.why = "not told apart from those behind it by the last look; the higher accuracy on the gate"
        else:
            one.why = "not told apart from those before it by the last look; the lower accuracy on the gate"


def _share_right(database: Database, models: Sequence[Model], rows: Sequence[Row]) -> Floats:
    """Of each row the share of the models that are right, at log-odds 0."""
    said = [verifiers.kept_log_odds(database, model, "gate") for model in models]
    share: Floats = np.mean([_right(odds, rows) for odds in said], axis=0)
    return share


def _right(odds: Floats, rows: Sequence[Row]) -> Floats:
    truth = np.array([row.is_correct for row in rows])
    right: Floats = np.equal(odds >= 0, truth).astype(np.float64)
    return right


def _value(model: Model) -> float:
    return metrics.objective_value(model.metrics, model.spec.objective)


def _told(one: _Runner) -> Finalist:
    known: Mapping[str, object] = {"trial_number": one.number, "value": one.value, "verdict": one.verdict}
    run_ids = tuple(run.run_id for run in one.again)
    return Finalist.model_validate({**known, "why": one.why, "accuracy": one.accuracy, "run_ids": run_ids})
