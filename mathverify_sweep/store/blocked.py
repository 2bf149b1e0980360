"""Runs that wait for a run which will never end well: they could never start, and keep their study from its end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import endings
from mathverify_sweep.store.database import reading, transaction
from mathverify_sweep.store.tables import runs


@dataclass(frozen=True, slots=True)
class Blocked:
    """A WAITING run, and what it waits for in vain. `end_reason` is None when that run is not there at all."""

    run_id: str
    after: str
    end_reason: EndReason | None


def blocked(engine: Engine, study_name: str) -> list[Blocked]:
    """Those that wait for a failed run themselves; whatever waits for them is ended with them."""
    with reading(engine) as connection:
        return [_blocked(row) for row in connection.execute(_in_vain(study_name))]


def end_blocked(engine: Engine, study_name: str, now: datetime) -> int:
    """End them, for the reason for which what they wait for ended; how many there were."""
    with transaction(engine) as connection:
        found = [_blocked(row) for row in connection.execute(_in_vain(study_name))]
        for run in found:
            _end(connection, run, now)
        return len(found)


def _end(connection: Connection, run: Blocked, now: datetime) -> None:
    reason = run.end_reason or EndReason.CRASHED
    endings.end_those_behind(connection, run.after, RunResult(end_reason=reason), now)


def _in_vain(study_name: str) -> sa.Select[Any]:
    before = runs.alias("before")
    failed = before.c.run_id.is_(None) | (before.c.state == RunState.FAIL)
    return (
        sa.select(runs.c.run_id, runs.c.after_run, before.c.end_reason)
        .select_from(runs.outerjoin(before, before.c.run_id == runs.c.after_run))
        .where(runs.c.study_name == study_name, runs.c.state == RunState.WAITING, runs.c.after_run.is_not(None), failed)
        .order_by(runs.c.position)
    )


def _blocked(row: sa.Row[Any]) -> Blocked:
    return Blocked(row.run_id, row.after_run, EndReason(row.end_reason) if row.end_reason else None)
