"""Who is dead: leases that were not renewed, and what becomes of their runs.

The clocks of two hosts are never compared. An observer says so after it has read the same renewal counter for two lease
periods of its own monotonic clock, every read in between having succeeded: an outage of the database expires nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from mathverify_sweep.errors import StorageError
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import MAX_FAILURES, EndReason, RunState
from mathverify_sweep.store import endings
from mathverify_sweep.store.database import transaction
from mathverify_sweep.store.records import WorkerIdentity
from mathverify_sweep.store.tables import runs


@dataclass(frozen=True, slots=True)
class Observed:
    """A lease as an observer last read it."""

    run_id: str
    lease_token: str
    renewals: int
    trial_number: int | None
    worker: WorkerIdentity
    renewed_at: datetime


@dataclass(frozen=True, slots=True)
class Expired:
    """What became of a run whose lease expired. Without `next_run_id` that was its last attempt."""

    run_id: str
    trial_number: int | None
    stage: int | None
    next_run_id: str | None


class Watch:
    """One observer of one study's leases. It has to look about once per lease period, or it starts over."""

    def __init__(self, period_seconds: float, monotonic: Callable[[], float]) -> None:
        self._period = period_seconds
        self._monotonic = monotonic
        self._last_look: float | None = None
        self._first_seen: dict[tuple[str, str, int], float] = {}

    def look(self, engine: Engine, study_name: str) -> list[Observed]:
        """The leases that have expired, each to be given to `expire`. Raises StorageError, and starts over."""
        # Before the read: what it returns is at least this new, so a slow read makes nobody look older.
        now = self._monotonic()
        try:
            observed = running(engine, study_name)
        except StorageError:
            self._first_seen = {}
            raise
        # A gap (a suspended laptop, a stopped process) may have hidden an outage in which nobody could renew; half a
        # period is for observers that look once a period, and come late.
        if self._last_look is not None and now - self._last_look > 1.5 * self._period:
            self._first_seen = {}
        self._last_look = now
        keys = [(lease.run_id, lease.lease_token, lease.renewals) for lease in observed]
        self._first_seen = {key: self._first_seen.get(key, now) for key in keys}
        return [
            lease
            for lease, key in zip(observed, keys, strict=True)
            if now - self._first_seen[key] >= 2 * self._period_of(lease)
        ]

    def _period_of(self, lease: Observed) -> float:
        """The longer of its worker's and this observer's, who sees no more than its own looks."""
        return max(self._period, lease.worker.lease_seconds or 0.0)


def running(engine: Engine, study_name: str) -> list[Observed]:
    """All leases of a study, the oldest run first.

    With SQLite's write lock, unlike other reads: one that succeeds says that renewals could be written meanwhile.
    """
    query = sa.select(runs).where(runs.c.study_name == study_name, runs.c.state == RunState.RUNNING)
    with transaction(engine) as connection:
        rows = connection.execute(query.order_by(runs.c.position)).all()
    return [_observed(row) for row in rows]


def expire(engine: Engine, observed: Observed, now: datetime) -> Expired | None:
    """End a run as lease_expired and queue its next attempt, if its failures leave it one.

    None when it was renewed or ended since it was observed. A reservation that has no trial yet is dropped.
    """
    with transaction(engine) as connection:
        row = endings.locked(connection, observed.run_id, observed.lease_token)
        if row is None or row.renewals != observed.renewals:
            return None
        if row.trial_number is None:
            connection.execute(sa.delete(runs).where(runs.c.run_id == row.run_id))
            return Expired(row.run_id, None, None, None)
        retry = RunSpec.model_validate_json(row.spec) if row.failures + 1 < MAX_FAILURES else None
        next_run_id = endings.end(connection, row, _lost(observed), now, retry)
    return Expired(row.run_id, row.trial_number, row.stage, next_run_id)


def _observed(row: sa.Row[Any]) -> Observed:
    worker = WorkerIdentity.of(row)
    assert worker is not None, "a RUNNING run has a worker"
    return Observed(row.run_id, row.lease_token, row.renewals, row.trial_number, worker, row.renewed_at)


def _lost(observed: Observed) -> RunResult:
    worker = observed.worker
    heard = observed.renewed_at.isoformat(timespec="seconds")
    message = (
        f"worker {worker.worker_id} (host {worker.host}, pid {worker.pid}, {worker.gpu}) was last heard of at {heard}"
    )
    return RunResult(end_reason=EndReason.LEASE_EXPIRED, message=message)
