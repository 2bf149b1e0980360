"""Results that came after their run's lease was lost, accepted at a person's word.

The run's own row stays as it ended. The result becomes that of the run's next attempt, which is ended with it whether
it waits, runs or is yet to be made; or that of a new trial, when the run's own has ended meanwhile.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import endings
from mathverify_sweep.store.database import insert, transaction
from mathverify_sweep.store.records import waiting
from mathverify_sweep.store.tables import points, runs

UNENDED = (RunState.WAITING, RunState.RUNNING)


def accepted_as(engine: Engine, run_id: str) -> str | None:
    """The run that has the late result of `run_id`; None while nobody has accepted it."""
    with transaction(engine) as connection:
        return _accepted_as(connection, run_id)


def accept(engine: Engine, run_id: str, trial_number: int, now: datetime) -> str:
    """Make the late result of a run that of its next attempt, or of another trial `trial_number`; the run that has it.

    Said twice, it changes nothing. The run has a late result, and it is a finished one.
    """
    with transaction(engine) as connection:
        there = _accepted_as(connection, run_id)
        if there is not None:
            return there
        row = connection.execute(sa.select(runs).where(runs.c.run_id == run_id).with_for_update()).one()
        result = RunResult.model_validate_json(row.late_result)
        heir = _next_attempt(connection, row, now) if row.trial_number == trial_number else None
        new_id: str = heir.run_id if heir is not None else _new_trial(connection, row, trial_number, now)
        _end(connection, new_id, result.model_copy(update={"message": _message(run_id)}), now)
        _copy_points(connection, run_id, new_id)
        return new_id


def _next_attempt(connection: Connection, row: sa.Row[Any], now: datetime) -> sa.Row[Any]:
    """The last attempt of the run, not ended; one is made when all have."""
    same = (runs.c.study_name == row.study_name) & (runs.c.trial_number == row.trial_number)
    same &= runs.c.stage.is_not_distinct_from(row.stage) & runs.c.promotion_id.is_not_distinct_from(row.promotion_id)
    query = sa.select(runs).where(same).order_by(runs.c.attempt.desc()).limit(1)
    last = connection.execute(query.with_for_update()).one()
    if last.state in UNENDED:
        return last
    spec = RunSpec.model_validate_json(last.spec)
    new_id = endings.again(connection, last, spec, now, failures=last.failures)
    return connection.execute(sa.select(runs).where(runs.c.run_id == new_id)).one()


def _new_trial(connection: Connection, row: sa.Row[Any], trial_number: int, now: datetime) -> str:
    spec = RunSpec.model_validate_json(row.spec).model_copy(update={"trial_number": trial_number})
    values = waiting(spec, now, continues=row.run_id)
    connection.execute(sa.insert(runs).values(values))
    new_id: str = values["run_id"]
    return new_id


def _end(connection: Connection, run_id: str, result: RunResult, now: datetime) -> None:
    """A worker that trains this attempt loses its lease by it. The time it spent counts, as that of a lost run."""
    row = connection.execute(sa.select(runs).where(runs.c.run_id == run_id)).one()
    busy = (row.renewed_at - row.started_at).total_seconds() if row.started_at else 0.0
    connection.execute(
        sa.update(runs)
        .where(runs.c.run_id == run_id, runs.c.state.in_(UNENDED))
        .values(
            state=RunState.COMPLETE,
            end_reason=EndReason.FINISHED,
            ended_at=now,
            busy_seconds=max(0.0, busy),
            result=endings.without_log_odds(result),
        )
    )


def _copy_points(connection: Connection, run_id: str, new_id: str) -> None:
    columns = ["run_id", "rows_seen", "value", "loss", "learning_rate"]
    said = sa.select(sa.literal(new_id), *(points.c[name] for name in columns[1:])).where(points.c.run_id == run_id)
    # `WHERE true`: without it SQLite reads ON CONFLICT as the condition of a join.
    connection.execute(insert(connection, points).from_select(columns, said.where(sa.true())).on_conflict_do_nothing())


def _accepted_as(connection: Connection, run_id: str) -> str | None:
    with_message = runs.c.result.contains(_message(run_id), autoescape=True)
    found: str | None = connection.scalar(
        sa.select(runs.c.run_id).where(runs.c.state == RunState.COMPLETE, with_message).limit(1)
    )
    return found


def _message(run_id: str) -> str:
    return f"the late result of run {run_id}, accepted"
