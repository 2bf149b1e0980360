"""How a run's row ends, and what that means for the rows behind it; always within the caller's transaction.

A run that is tried again gets a new row, and whatever waited for the old row waits for the new one. A run that failed
for good takes those that waited for it along: they could never start.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import ENDINGS, EndReason, RunState
from mathverify_sweep.store.records import held, waiting
from mathverify_sweep.store.tables import runs


def locked(connection: Connection, run_id: str, lease_token: str) -> sa.Row[Any] | None:
    """The run's row, kept from changing until the transaction ends; None when it has ended or is somebody else's."""
    return connection.execute(sa.select(runs).where(held(run_id, lease_token)).with_for_update()).first()


def end(
    connection: Connection, row: sa.Row[Any], result: RunResult, now: datetime, retry: RunSpec | None
) -> str | None:
    """End a `locked` run; the run_id of its next attempt, or None when there is none."""
    ending = ENDINGS[result.end_reason]
    connection.execute(
        sa.update(runs)
        .where(held(row.run_id, row.lease_token))
        .values(
            state=ending.state,
            end_reason=result.end_reason,
            ended_at=now,
            busy_seconds=_busy_seconds(row, result, now),
            result=without_log_odds(result),
        )
    )
    if retry is not None:
        return again(connection, row, retry, now, failures=row.failures + ending.is_failure)
    if ending.state is RunState.FAIL:
        end_those_behind(connection, row.run_id, result, now)
    return None


def again(connection: Connection, row: sa.Row[Any], spec: RunSpec, now: datetime, *, failures: int) -> str:
    """Queue the next attempt of an ended run; whatever waited for the run waits for the attempt."""
    started = row.started_at is not None
    values = waiting(
        spec,
        now,
        promotion_id=row.promotion_id,
        after_run=row.after_run,
        attempt=row.attempt + 1,
        failures=failures,
        continues=row.run_id if started else row.continues,
    )
    connection.execute(sa.insert(runs).values(values))
    new_id: str = values["run_id"]
    _follow(connection, row, new_id)
    return new_id


def end_those_behind(connection: Connection, run_id: str, result: RunResult, now: datetime) -> None:
    """End whatever waits for a run that failed for good, and what waits for those."""
    message = f"not started: run {run_id}, which it builds on, ended {result.end_reason}"
    blocked = RunResult(end_reason=result.end_reason, message=message)
    failed = [run_id]
    while failed:
        waits_for_it = runs.c.after_run.in_(failed) & (runs.c.state == RunState.WAITING)
        failed = list(connection.scalars(sa.select(runs.c.run_id).where(waits_for_it)))
        connection.execute(
            sa.update(runs)
            .where(runs.c.run_id.in_(failed), runs.c.state == RunState.WAITING)
            .values(
                state=RunState.FAIL,
                end_reason=result.end_reason,
                ended_at=now,
                busy_seconds=0.0,
                result=blocked.model_dump_json(),
            )
        )


def without_log_odds(result: RunResult) -> str:
    """The result as its row keeps it; log-odds have a table of their own."""
    return result.model_copy(update={"log_odds": ()}).model_dump_json()


def _busy_seconds(row: sa.Row[Any], result: RunResult, now: datetime) -> float:
    """A lost run counts up to its last renewal: for the time after that nobody knows that its GPU was in use."""
    until = row.renewed_at if result.end_reason is EndReason.LEASE_EXPIRED else now
    busy: float = (until - row.started_at).total_seconds()
    return max(0.0, busy)  # the wall clock may have been set back


def _follow(connection: Connection, row: sa.Row[Any], new_id: str) -> None:
    same_trial = runs.c.trial_number == row.trial_number
    behind = connection.execute(
        sa.select(runs.c.run_id, runs.c.after_run, runs.c.spec)
        .where(runs.c.study_name == row.study_name, runs.c.state == RunState.WAITING, runs.c.run_id != new_id)
        .where(same_trial | (runs.c.after_run == row.run_id))
    ).all()
    for waiter in behind:
        after = new_id if waiter.after_run == row.run_id else waiter.after_run
        spec = RunSpec.model_validate_json(waiter.spec)
        builds_on = {
            "start_from": tuple(new_id if run_id == row.run_id else run_id for run_id in spec.start_from),
            "goes_on_from": new_id if spec.goes_on_from == row.run_id else spec.goes_on_from,
        }
        connection.execute(
            sa.update(runs)
            .where(runs.c.run_id == waiter.run_id, runs.c.state == RunState.WAITING)
            .values(after_run=after, spec=spec.model_copy(update=builds_on).model_dump_json())
        )
