"""Rows of the store as values: what a worker holds of a run (Claim), and what a reader sees of it (RunRecord)."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mathverify_sweep import processes
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store.tables import runs


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who runs something, in words that a person can act on; the fields are columns of `mv_runs`.

    `boot_id` and `process_start` tell whether its process lives (see `processes`), `job_id` names it to a scheduler,
    `lease_seconds` is the period that it keeps to, `environment_id` the code that it runs (see `provenance`). All five
    are None in rows of an older version.
    """

    worker_id: str
    host: str
    pid: int
    gpu: str
    boot_id: str | None = None
    process_start: int | None = None
    job_id: str | None = None
    lease_seconds: float | None = None
    environment_id: str | None = None

    @classmethod
    def of_this_process(cls, gpu_label: str, lease_seconds: float, environment_id: str | None = None) -> WorkerIdentity:
        """A new worker in this process."""
        pid = os.getpid()
        boot_id, start, job_id = processes.boot_id(), processes.start_of(pid), processes.job_id(os.environ)
        host = socket.gethostname()
        return cls(secrets.token_hex(4), host, pid, gpu_label, boot_id, start, job_id, lease_seconds, environment_id)

    @classmethod
    def of(cls, row: sa.Row[Any]) -> WorkerIdentity | None:
        """The worker of a row of `mv_runs`; None while none has taken it."""
        if row.worker_id is None:
            return None
        return cls(**{name: getattr(row, name) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Budget:
    """What a study may spend; None is no bound. Retries and stages are no trials, but their GPU time counts."""

    trials: int | None
    gpu_seconds: float | None
    deadline: datetime | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this worker owns while the token matches. Without `spec` it is a reservation that waits for its trial.

    `failures` counts those of earlier attempts, `continues` is the run_id of the attempt before.
    """

    run_id: str
    lease_token: str
    attempt: int
    trial_number: int | None
    spec: RunSpec | None
    continues: str | None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """What a run said after `rows_seen` rows: `value` at a rung, loss and learning rate as it goes."""

    rows_seen: int
    value: float | None = None
    loss: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """All that the database knows of one attempt. The log-odds of its result are read with `runs.log_odds`.

    `busy_seconds` is set when it has ended; an attempt that was lost is counted up to its last renewal.
    """

    run_id: str
    study_name: str
    promotion_id: str | None
    trial_number: int | None
    stage: int | None
    spec: RunSpec | None
    state: RunState
    end_reason: EndReason | None
    attempt: int
    failures: int
    continues: str | None
    after: str | None
    lease_token: str | None
    renewals: int
    worker: WorkerIdentity | None
    created_at: datetime
    started_at: datetime | None
    renewed_at: datetime | None
    ended_at: datetime | None
    busy_seconds: float | None
    result: RunResult | None
    late_result: RunResult | None
    points: int


def new_id() -> str:
    """The name of a run, promotion or lease: short, and unique for any number of runs that one could pay for."""
    return secrets.token_hex(8)


def waiting(spec: RunSpec, now: datetime, **others: Any) -> dict[str, Any]:
    """The columns of a new WAITING row; `others` are those that differ from a first attempt's."""
    return {
        "run_id": new_id(),
        "study_name": spec.study_name,
        "trial_number": spec.trial_number,
        "stage": spec.stage,
        "spec": spec.model_dump_json(),
        "state": RunState.WAITING,
        "attempt": 1,
        "failures": 0,
        "renewals": 0,
        "created_at": now,
    } | others


def leased(worker: WorkerIdentity, now: datetime) -> dict[str, Any]:
    """The columns that make a row RUNNING, under a new token."""
    return {
        "state": RunState.RUNNING,
        "lease_token": new_id(),
        "started_at": now,
        "renewed_at": now,
    } | asdict(worker)


def held(run_id: str, lease_token: str) -> sa.ColumnElement[bool]:
    """The guard of every write of a run: this run, under this token, not ended."""
    return (runs.c.run_id == run_id) & (runs.c.lease_token == lease_token) & (runs.c.state == RunState.RUNNING)


def run_record(row: sa.Row[Any]) -> RunRecord:
    """A row of `mv_runs` with its number of points as `points`."""
    return RunRecord(
        run_id=row.run_id,
        study_name=row.study_name,
        promotion_id=row.promotion_id,
        trial_number=row.trial_number,
        stage=row.stage,
        spec=RunSpec.model_validate_json(row.spec) if row.spec else None,
        state=RunState(row.state),
        end_reason=EndReason(row.end_reason) if row.end_reason else None,
        attempt=row.attempt,
        failures=row.failures,
        continues=row.continues,
        after=row.after_run,
        lease_token=row.lease_token,
        renewals=row.renewals,
        worker=WorkerIdentity.of(row),
        created_at=row.created_at,
        started_at=row.started_at,
        renewed_at=row.renewed_at,
        ended_at=row.ended_at,
        busy_seconds=row.busy_seconds,
        result=RunResult.model_validate_json(row.result) if row.result else None,
        late_result=RunResult.model_validate_json(row.late_result) if row.late_result else None,
        points=row.points or 0,
    )
