"""Runs in the database: reserve, enqueue, claim, renew, finish. Knows nothing of Optuna or of training.

A run is owned by whoever knows its lease token: every write of a RUNNING row asks for the row, the token and the state
at once, and no row matched is an answer (False), not an error. An ended row is never rewritten. Everything may be said
twice. Database trouble comes out as StorageError.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from mathverify_sweep.errors import StudyError, shown
from mathverify_sweep.specs import RunResult, RunSpec, Split
from mathverify_sweep.states import RunState
from mathverify_sweep.store import endings, studies, tables
from mathverify_sweep.store.database import insert, reading, transaction
from mathverify_sweep.store.device_time import Use, device_seconds
from mathverify_sweep.store.records import (
    Budget,
    Claim,
    Point,
    RunRecord,
    WorkerIdentity,
    held,
    leased,
    new_id,
    run_record,
    waiting,
)

__all__ = [
    "Budget",
    "Claim",
    "Point",
    "RunRecord",
    "WorkerIdentity",
    "attach",
    "claim_waiting",
    "enqueue",
    "finish",
    "get",
    "keep_late",
    "log_odds",
    "points",
    "points_of_study",
    "progress",
    "release",
    "renew",
    "reserve",
    "runs",
    "save_log_odds",
]

_run = tables.runs.c


def reserve(engine: Engine, study_name: str, worker: WorkerIdentity, budget: Budget, now: datetime) -> Claim | None:
    """A place in the study for one more trial, to be asked of Optuna and then `attach`ed.

    None when the study is stopped or its budget spent, counted under a lock: exactly, for any number of workers.
    """
    lease = leased(worker, now)
    run_id = new_id()
    row = {"run_id": run_id, "study_name": study_name, "attempt": 1, "failures": 0, "renewals": 0, "created_at": now}
    with transaction(engine) as connection:
        if not _hands_out(connection, study_name, lock=True) or _is_spent(connection, study_name, budget, now):
            return None
        connection.execute(sa.insert(tables.runs).values(row | lease))
    return Claim(run_id, lease["lease_token"], 1, None, None, None)


def attach(engine: Engine, claim: Claim, trial_number: int, spec: RunSpec) -> bool:
    """Give a reservation its trial; False when the reservation is gone."""
    still_free = _run.trial_number.is_(None) | (_run.trial_number == trial_number)
    return _update_held(engine, claim, still_free, trial_number=trial_number, spec=spec.model_dump_json())


def release(engine: Engine, claim: Claim) -> bool:
    """Drop a reservation that got no trial."""
    with transaction(engine) as connection:
        empty = held(claim.run_id, claim.lease_token) & _run.trial_number.is_(None)
        return connection.execute(sa.delete(tables.runs).where(empty)).rowcount == 1


def enqueue(
    engine: Engine,
    spec: RunSpec,
    now: datetime,
    after: str | None = None,
    attempt: int = 1,
    continues: str | None = None,
) -> str:
    """Let a run wait for a worker, and for the run `after` to end COMPLETE or PRUNED; its run_id."""
    row = waiting(spec, now, after_run=after, attempt=attempt, continues=continues)
    with transaction(engine) as connection:
        connection.execute(sa.insert(tables.runs).values(row))
    run_id: str = row["run_id"]
    return run_id


def claim_waiting(engine: Engine, study_name: str, worker: WorkerIdentity, now: datetime) -> Claim | None:
    """The oldest run of the study that waits and may start, now this worker's; None when there is none."""
    with reading(engine) as connection:
        if not _hands_out(connection, study_name, lock=False):
            return None
        if connection.execute(_next_waiting(study_name)).first() is None:
            return None  # as a rule: new trials are reserved
    lease = leased(worker, now)
    with transaction(engine) as connection:
        if not _hands_out(connection, study_name, lock=False):
            return None
        to_take = _next_waiting(study_name).with_for_update(of=tables.runs, skip_locked=True)
        row = connection.execute(to_take).first()
        if row is None:
            return None
        # `now` was taken before this waited for others: the attempt before may have ended, and queued this one, since.
        times = {name: max(now, row.created_at) for name in ("started_at", "renewed_at")}
        connection.execute(sa.update(tables.runs).where(_run.run_id == row.run_id).values(lease | times))
    spec = RunSpec.model_validate_json(row.spec)
    return Claim(row.run_id, lease["lease_token"], row.attempt, row.trial_number, spec, row.continues, row.failures)


def renew(engine: Engine, claim: Claim, now: datetime) -> bool:
    """Say that the run is alive; False when it is no longer this worker's. `now` is for people, the counter decides."""
    return _update_held(engine, claim, sa.true(), renewals=_run.renewals + 1, renewed_at=now)


def progress(engine: Engine, claim: Claim, points: Sequence[Point]) -> bool:
    """Add points, or to points of the same `rows_seen` what they lack; False when the run is not this worker's."""
    with transaction(engine) as connection:
        if endings.locked(connection, claim.run_id, claim.lease_token) is None:
            return False
        statement = insert(connection, tables.points)
        figures = ("value", "loss", "learning_rate")
        new = {name: sa.func.coalesce(statement.excluded[name], tables.points.c[name]) for name in figures}
        statement = statement.on_conflict_do_update(index_elements=["run_id", "rows_seen"], set_=new)
        rows = [
            {
                "run_id": claim.run_id,
                "rows_seen": point.rows_seen,
                "value": point.value,
                "loss": point.loss,
                "learning_rate": point.learning_rate,
            }
            for point in points
        ]
        if rows:
            connection.execute(statement, rows)
        return True


def finish(engine: Engine, claim: Claim, result: RunResult, now: datetime, retry: RunSpec | None = None) -> bool:
    """End the run, keep its log-odds and queue its next attempt, all or nothing; False when it is not this worker's.

    A run that fails without `retry` ends the stages that wait for it; with it they wait for the next attempt.
    """
    with transaction(engine) as connection:
        row = endings.locked(connection, claim.run_id, claim.lease_token)
        if row is None:
            return False
        if result.log_odds:
            _save(connection, claim.run_id, "validation", result.log_odds)
        endings.end(connection, row, result, now, retry)
        return True


def keep_late(engine: Engine, claim: Claim, result: RunResult) -> bool:
    """Keep, for a person to look at, a result that `finish` did not take because the lease was lost before.

    False when there is nothing to keep: the row has a late result, or this very result, or is gone.
    """
    ended = (_run.run_id == claim.run_id) & (_run.lease_token == claim.lease_token) & (_run.state != RunState.RUNNING)
    another = _run.result.is_(None) | (_run.result != endings.without_log_odds(result))
    with transaction(engine) as connection:
        statement = sa.update(tables.runs).where(ended, another, _run.late_result.is_(None))
        return connection.execute(statement.values(late_result=result.model_dump_json())).rowcount == 1


def runs(engine: Engine, study_name: str) -> list[RunRecord]:
    """All runs of a study, in the order in which they were queued."""
    with reading(engine) as connection:
        rows = connection.execute(_with_points().where(_run.study_name == study_name)).all()
    return [run_record(row) for row in rows]


def of_trial(engine: Engine, study_name: str, trial_number: int) -> list[RunRecord]:
    """The runs of one trial, its stages among them, in the order in which they were queued."""
    with reading(engine) as connection:
        mine = (_run.study_name == study_name) & (_run.trial_number == trial_number)
        rows = connection.execute(_with_points().where(mine)).all()
    return [run_record(row) for row in rows]


def get(engine: Engine, run_id: str) -> RunRecord:
    """The run whose id begins with `run_id`. Raises StudyError when there is none, or more than one."""
    with reading(engine) as connection:
        rows = connection.execute(_with_points().where(_run.run_id.startswith(run_id, autoescape=True)).limit(5)).all()
    if len(rows) != 1:
        found = ", ".join(row.run_id for row in rows) or "none"
        raise StudyError(f"a run is named by its id or the beginning of it, got {shown(run_id)}, which fits: {found}.")
    return run_record(rows[0])


def points(engine: Engine, run_id: str) -> list[Point]:
    """What one attempt said while it trained, by rows seen."""
    table = tables.points
    query = sa.select(table.c.rows_seen, table.c.value, table.c.loss, table.c.learning_rate)
    with reading(engine) as connection:
        rows = connection.execute(query.where(table.c.run_id == run_id).order_by(table.c.rows_seen)).all()
    return [Point(*row) for row in rows]


def points_of_study(engine: Engine, study_name: str) -> dict[str, tuple[Point, ...]]:
    """What every attempt of a study said, by run id and rows seen: one read, however many runs there are."""
    table = tables.points
    query = sa.select(table).join(tables.runs, _run.run_id == table.c.run_id).where(_run.study_name == study_name)
    found: dict[str, list[Point]] = {}
    with reading(engine) as connection:
        for row in connection.execute(query.order_by(table.c.run_id, table.c.rows_seen)):
            found.setdefault(row.run_id, []).append(Point(row.rows_seen, row.value, row.loss, row.learning_rate))
    return {run_id: tuple(said) for run_id, said in found.items()}


def save_log_odds(engine: Engine, run_id: str, split: Split, values: Sequence[float]) -> None:
    """Keep the per-row log-odds of a run on a split, as float32; said again, the newer ones stay."""
    with transaction(engine) as connection:
        _save(connection, run_id, split, values)


def log_odds(engine: Engine, run_id: str, split: Split) -> npt.NDArray[np.float32] | None:
    """The per-row log-odds of a run on a split, in the split's order."""
    table = tables.predictions
    with reading(engine) as connection:
        query = sa.select(table.c.log_odds).where(table.c.run_id == run_id, table.c.split == split)
        blob: bytes | None = connection.scalar(query)
    return None if blob is None else np.frombuffer(blob, dtype="<f4").astype(np.float32)


def _hands_out(connection: Connection, study_name: str, *, lock: bool) -> bool:
    """Whether the study is not stopped; with `lock` nobody else counts its runs until this transaction ends.

    The lock is PostgreSQL's weaker one, which lets runs of the study be inserted and ended meanwhile; on SQLite the
    transaction itself is exclusive.
    """
    query = sa.select(tables.studies.c.stopped).where(tables.studies.c.name == study_name)
    row = connection.execute(query.with_for_update(key_share=True) if lock else query).first()
    if row is None:
        raise studies.unknown_study(study_name, list(connection.scalars(sa.select(tables.studies.c.name))))
    stopped: str | None = row.stopped
    return stopped is None


def _is_spent(connection: Connection, study_name: str, budget: Budget, now: datetime) -> bool:
    """Each count is one statement, so one snapshot: a run that moves on meanwhile is neither missed nor seen twice."""
    if budget.deadline is not None and now >= budget.deadline:
        return True
    of_study = _run.study_name == study_name
    if budget.trials is not None:
        reservations = sa.func.count(sa.case((_run.trial_number.is_(None), 1)))
        trials = sa.func.count(sa.distinct(_run.trial_number)) + reservations
        if (connection.scalar(sa.select(trials).where(of_study, _run.stage.is_(None))) or 0) >= budget.trials:
            return True
    if budget.gpu_seconds is None:
        return False
    used = sa.select(_run.worker_id, _run.started_at, _run.busy_seconds).where(of_study, _run.started_at.is_not(None))
    uses = (
        Use(worker, start, max(0.0, (now - start).total_seconds()) if busy is None else busy)
        for worker, start, busy in connection.execute(used)
    )
    return device_seconds(uses) >= budget.gpu_seconds


def _next_waiting(study_name: str) -> sa.Select[tuple[object, ...]]:
    before = tables.runs.alias("before")
    ended_well = sa.exists().where(
        before.c.run_id == _run.after_run, before.c.state.in_([RunState.COMPLETE, RunState.PRUNED])
    )
    return (
        sa.select(tables.runs)
        .where(_run.study_name == study_name, _run.state == RunState.WAITING, _run.after_run.is_(None) | ended_well)
        .order_by(_run.position)
        .limit(1)
    )


def _update_held(engine: Engine, claim: Claim, also: sa.ColumnElement[bool], **values: object) -> bool:
    with transaction(engine) as connection:
        statement = sa.update(tables.runs).where(held(claim.run_id, claim.lease_token), also).values(values)
        return connection.execute(statement).rowcount == 1


def _save(connection: Connection, run_id: str, split: str, values: Sequence[float]) -> None:
    blob = np.asarray(values, dtype="<f4").tobytes()
    statement = insert(connection, tables.predictions).values(run_id=run_id, split=split, log_odds=blob)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["run_id", "split"], set_={"log_odds": statement.excluded.log_odds}
        )
    )


def _with_points() -> sa.Select[tuple[object, ...]]:
    count = sa.select(sa.func.count()).where(tables.points.c.run_id == _run.run_id).scalar_subquery()
    return sa.select(tables.runs, count.label("points")).order_by(_run.position)
