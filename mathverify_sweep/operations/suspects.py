"""Who may be dead: runs that are RUNNING, runs and trials that nobody will end, results that came too late.

A worker on this host and boot is looked up by its pid and the start of its process. Of one on another host nothing is
known here but its renewals, which `reap` watches: the clocks of two hosts are never compared.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from mathverify_sweep import processes
from mathverify_sweep.specs import Frozen
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import blocked, late, runs
from mathverify_sweep.store.runs import RunRecord, WorkerIdentity

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle


class Kind(StrEnum):
    """What a suspect is."""

    RUNNING = "running"
    BLOCKED = "blocked"
    UNTOLD = "untold"
    UNTAKEN = "untaken"
    LATE = "late"


class Life(StrEnum):
    """What is known of whoever should end it."""

    DEAD = "dead"
    ALIVE = "alive"
    UNKNOWN = "unknown"


class Worker(Frozen):
    """Where to look: the fields of `WorkerIdentity`, and the last renewal."""

    worker_id: str
    host: str
    pid: int
    gpu: str
    boot_id: str | None
    process_start: int | None
    job_id: str | None
    lease_seconds: float | None
    environment_id: str | None
    renewals: int
    renewed_at: datetime | None


class Suspect(Frozen):
    """A run or a trial, what is known of whoever holds it or should tell Optuna of it, and why."""

    kind: Kind
    life: Life
    why: str
    run_id: str | None
    lease_token: str | None = None
    trial_number: int | None
    stage: int | None = None
    attempt: int | None = None
    worker: Worker | None = None


def suspects(database: Database, study: StudyHandle) -> list[Suspect]:
    """All of them, as they look now. Raises StorageError."""
    # Trials first: a run that is attached between the two reads is then seen.
    open_trials = [trial.number for trial in study.trials() if trial.state is RunState.RUNNING]
    every = runs.runs(database, study.config.study)
    found = [_running(run) for run in every if run.state is RunState.RUNNING]
    found += _blocked(database, study, every)
    found += _trials(open_trials, every)
    found += [_late(run) for run in every if _is_late(database, run)]
    return found


def by_process(worker: WorkerIdentity) -> tuple[Life, str]:
    """Whether a worker's process lives, as far as this host can tell."""
    if worker.host != socket.gethostname():
        return Life.UNKNOWN, "it is on another host"
    if worker.boot_id is None or worker.process_start is None:
        return Life.UNKNOWN, "its row does not say which process it is"
    if worker.boot_id != processes.boot_id():
        return Life.UNKNOWN, "it is of another boot or container of a host of this name"
    lives = processes.lives(worker.pid, worker.process_start)
    if lives is None:
        return Life.UNKNOWN, "its process cannot be looked at"
    return (Life.ALIVE, "its process lives") if lives else (Life.DEAD, "its process has ended")


def _running(run: RunRecord) -> Suspect:
    assert run.worker is not None
    life, why = by_process(run.worker)
    return _suspect(Kind.RUNNING, life, why, run)


def _blocked(database: Database, study: StudyHandle, every: Sequence[RunRecord]) -> Iterator[Suspect]:
    by_id = {run.run_id: run for run in every}
    for found in blocked.blocked(database, study.config.study):
        if found.run_id in by_id:
            why = f"it waits for run {found.after}, which ended {found.end_reason or 'and is gone'}"
            yield _suspect(Kind.BLOCKED, Life.DEAD, why, by_id[found.run_id])


def _trials(open_trials: Sequence[int], every: Sequence[RunRecord]) -> Iterator[Suspect]:
    last = {run.trial_number: run for run in every if run.stage is None}  # in the order of the queue
    reserved = any(run.state is RunState.RUNNING and run.trial_number is None for run in every)
    for number in open_trials:
        run = last.get(number)
        if run is None:
            yield _untaken(number, reserved)
        elif run.end_reason is not None:
            life, why = _who_tells(run)
            yield _suspect(Kind.UNTOLD, life, f"its last run ended {run.end_reason}; {why}", run)


def _untaken(number: int, reserved: bool) -> Suspect:
    """Who asks for a trial has a place for it before: without any place, nobody is about to take it."""
    life, why = (Life.UNKNOWN, "a worker may be about to take it") if reserved else (Life.DEAD, "no run took it")
    return Suspect(kind=Kind.UNTAKEN, life=life, why=why, run_id=None, trial_number=number)


def _who_tells(run: RunRecord) -> tuple[Life, str]:
    """Whether the run's worker is about to tell Optuna."""
    if run.worker is None or run.end_reason in (EndReason.LEASE_EXPIRED, EndReason.STOPPED_BY_USER):
        return Life.DEAD, "nobody is about to tell Optuna"
    life, why = by_process(run.worker)
    return life, "its worker is about to tell Optuna" if life is Life.ALIVE else f"its worker should tell Optuna: {why}"


def _is_late(database: Database, run: RunRecord) -> bool:
    is_finished = run.late_result is not None and run.late_result.end_reason is EndReason.FINISHED
    return is_finished and late.accepted_as(database, run.run_id) is None


def _late(run: RunRecord) -> Suspect:
    assert run.late_result is not None
    assert run.late_result.value is not None
    life = by_process(run.worker)[0] if run.worker else Life.UNKNOWN
    why = f"finished with {run.late_result.value:.4f} after its lease was lost (it ended {run.end_reason})"
    return _suspect(Kind.LATE, life, why, run)


def _suspect(kind: Kind, life: Life, why: str, run: RunRecord) -> Suspect:
    return Suspect(
        kind=kind,
        life=life,
        why=why,
        run_id=run.run_id,
        lease_token=run.lease_token,
        trial_number=run.trial_number,
        stage=run.stage,
        attempt=run.attempt,
        worker=_worker(run),
    )


def _worker(run: RunRecord) -> Worker | None:
    if run.worker is None:
        return None
    fields = {name: getattr(run.worker, name) for name in run.worker.__slots__}
    return Worker(**fields, renewals=run.renewals, renewed_at=run.renewed_at)
