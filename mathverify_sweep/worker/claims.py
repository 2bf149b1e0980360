"""Where a worker's next run comes from: one that waits, or a new trial; and whether none will come."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import environment
from mathverify_sweep.states import RunState
from mathverify_sweep.store import glances, provenance, runs
from mathverify_sweep.store.runs import Budget, Claim, WorkerIdentity
from mathverify_sweep.worker.ancestry import ancestry
from mathverify_sweep.worker.news import Claimed

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle


def claim(database: Database, study: StudyHandle, identity: WorkerIdentity) -> Claim | None:
    """A waiting run, or a new trial if the budget allows one; None when there is neither. Raises StorageError."""
    waiting = runs.claim_waiting(database, study.config.study, identity, datetime.now(UTC))
    return waiting or _new_trial(database, study, identity)


def with_its_past(database: Database, claim: Claim, output: Path) -> Claimed:
    """A claimed run with what it goes on from; what earlier attempts said is this one's too. May be said again.

    With the code that will train it on record, since by now there is something that it trains.
    """
    assert claim.spec is not None
    provenance.record_environment(database, environment.described())
    past = ancestry(database, claim, claim.spec, output)
    if past.points:
        runs.progress(database, claim, past.points)
    return Claimed(claim, claim.spec, past)


def is_idle(database: Database, study: StudyHandle) -> bool:
    """Whether nothing of the study waits or runs."""
    if glances.unfinished(database, study.config.study):
        return False
    # A trial whose worker died between our row and Optuna's: `reconcile` is about to tell it.
    return not any(trial.state is RunState.RUNNING for trial in study.trials())


def _new_trial(database: Database, study: StudyHandle, identity: WorkerIdentity) -> Claim | None:
    config = study.config
    hours = config.budget.gpu_hours
    budget = Budget(config.trials, hours * 3600 if hours else None, config.budget.deadline)
    place = runs.reserve(database, config.study, identity, budget, datetime.now(UTC))
    if place is None:
        return None
    asked = study.ask()
    if asked is None:  # a grid has come to its end
        runs.release(database, place)
        return None
    spec = config.trial_spec(asked.trial_number, asked.params, study.data_fingerprint)
    if not runs.attach(database, place, asked.trial_number, spec):
        return None  # it took so long that somebody expired the reservation; reconcile ends the trial
    return Claim(place.run_id, place.lease_token, place.attempt, asked.trial_number, spec, None)
