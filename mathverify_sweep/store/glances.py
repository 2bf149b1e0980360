"""Small reads that every worker makes a few times per lease period: they grow with what runs, not with the study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store.database import reading
from mathverify_sweep.store.tables import runs

_MOST_AT_ONCE = 500
"""Values in one IN list; SQLite takes no more than some thousand."""


@dataclass(frozen=True, slots=True)
class LastAttempt:
    """How the last attempt of a trial stands; without `end_reason` it waits or runs."""

    run_id: str
    end_reason: EndReason | None
    result: RunResult | None


def unfinished(engine: Engine, study_name: str) -> int:
    """How many runs of a study wait or run."""
    query = sa.select(sa.func.count()).where(
        runs.c.study_name == study_name, runs.c.state.in_([RunState.WAITING, RunState.RUNNING])
    )
    with reading(engine) as connection:
        return connection.scalar(query) or 0


def places(engine: Engine, study_name: str) -> frozenset[str]:
    """The runs of a study that are reserved and have no trial yet."""
    reserved = runs.c.trial_number.is_(None) & (runs.c.state == RunState.RUNNING)
    with reading(engine) as connection:
        return frozenset(connection.scalars(sa.select(runs.c.run_id).where(runs.c.study_name == study_name, reserved)))


def last_attempts(engine: Engine, study_name: str, trial_numbers: Iterable[int]) -> dict[int, LastAttempt]:
    """The last attempt of each of these trials that has had one; stages do not count."""
    numbers = sorted(trial_numbers)
    found: dict[int, LastAttempt] = {}
    for start in range(0, len(numbers), _MOST_AT_ONCE):
        some = numbers[start : start + _MOST_AT_ONCE]
        with reading(engine) as connection:
            rows: list[sa.Row[Any]] = list(connection.execute(_attempts(study_name, some)))
        found |= {row.trial_number: _last_attempt(row) for row in rows}  # in the order of the queue: the last one stays
    return found


def _attempts(study_name: str, trial_numbers: list[int]) -> sa.Select[Any]:
    return (
        sa.select(runs.c.trial_number, runs.c.run_id, runs.c.end_reason, runs.c.result)
        .where(runs.c.study_name == study_name, runs.c.stage.is_(None), runs.c.trial_number.in_(trial_numbers))
        .order_by(runs.c.position)
    )


def _last_attempt(row: sa.Row[Any]) -> LastAttempt:
    result = RunResult.model_validate_json(row.result) if row.result else None
    return LastAttempt(row.run_id, EndReason(row.end_reason) if row.end_reason else None, result)
