"""Several adapters over one base as one verifier: the mean of their log-odds, members chosen greedily on validation.

Forward selection without replacement (Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004): the best
run first, then whichever lowers the mean's log-loss most, until none does. Choosing reads no model, only what the runs
have said on validation; the figures there flatter the choice, so they are to be read again on another split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mathverify_sweep import metrics, resampling
from mathverify_sweep.data.rows import groups
from mathverify_sweep.errors import StudyError
from mathverify_sweep.metrics import Floats
from mathverify_sweep.reports.models import Ensemble, Member
from mathverify_sweep.states import RunState
from mathverify_sweep.store import runs
from mathverify_sweep.verifiers import verifier as verifiers
from mathverify_sweep.verifiers.verifier import Model

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database


def candidates(database: Database, study: str) -> list[Model]:
    """The finished runs of a study. Raises StudyError when none has finished with an adapter."""
    models = [verifiers.model(run) for run in runs.runs(database, study) if _is_candidate(run)]
    if not models:
        raise StudyError(f"study {study!r} has no finished run with an adapter. Let a worker finish one.")
    verifiers.require_judging(models[0], "averaged")
    return models


def choose(database: Database, study: str, models: Sequence[Model], top: int) -> Ensemble:
    """At most `top` of the models, all of which have read validation."""
    rows = verifiers.rows_of(models[0], "validation")
    labels, questions = np.array([row.is_correct for row in rows]), groups(rows)
    left = [(model, verifiers.kept_log_odds(database, model, "validation")) for model in models]
    chosen: list[tuple[Model, Floats]] = []
    members: list[Member] = []
    while left and len(chosen) < top:
        said = [odds for _, odds in chosen]
        best = min(range(len(left)), key=lambda at: metrics.log_loss(np.mean([*said, left[at][1]], axis=0), labels))
        mean: Floats = np.mean([*said, left[best][1]], axis=0)
        found = metrics.judge(mean, labels, questions)
        if members and found.log_loss >= members[-1].metrics.log_loss:
            break
        chosen.append(left.pop(best))
        run = chosen[-1][0].run
        members.append(Member(run_id=run.run_id, trial_number=run.trial_number, stage=run.stage, metrics=found))
    together: Floats = np.mean([odds for _, odds in chosen], axis=0)
    gain = resampling.paired_comparison(together, chosen[0][1], labels, questions)
    return Ensemble(study=study, candidates=len(models), members=tuple(members), against_the_first=gain)


def _is_candidate(run: runs.RunRecord) -> bool:
    return run.state is RunState.COMPLETE and run.result is not None and run.result.adapter is not None
