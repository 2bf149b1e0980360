"""Workers that are killed or sent away: nothing is lost, nothing stays RUNNING."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.database import connect
from mathverify_sweep.store.runs import Point, WorkerIdentity
from tests.flows.commands import FIRST_ON_POSTGRESQL, SWEEP, Shell, ended

pytestmark = FIRST_ON_POSTGRESQL

ONE_LONG_TRIAL = SWEEP.replace(
    "generated_rows: 1_500, train_rows: 256", "generated_rows: 2_000, train_rows: 1_000"
).replace("trials: 4", "trials: 1")


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    shell = Shell.at(tmp_path / "work", database_url, ONE_LONG_TRIAL)
    shell.run("create", "flow.yaml")
    return shell


def test_a_killed_workers_trial_goes_on_from_its_checkpoint_with_the_next_one(shell: Shell) -> None:
    worker = shell.worker("--checkpoint-seconds", "1")
    shell.wait_until(lambda report: any(run.rows_seen > 200 for run in report.running))

    worker.send_signal(signal.SIGKILL)
    ended(worker, -signal.SIGKILL)
    log = ended(shell.worker("--until-idle"))

    assert "expired" in log
    first, second = attempts(shell)
    assert (first.end_reason, second.end_reason) == (EndReason.LEASE_EXPIRED, EndReason.FINISHED)
    assert second.result is not None
    assert second.result.resumed_from_rows > 0
    assert second.result.rows_seen == 1_000
    rows = [point.rows_seen for point in second.points]
    assert min(rows) < second.result.resumed_from_rows, "what the first attempt said is kept"
    (trial,) = shell.status().trials
    assert (trial.state, trial.attempts) == (RunState.COMPLETE, 2)


def test_sigterm_leaves_a_checkpoint_and_hands_the_trial_back_at_once(shell: Shell) -> None:
    worker = shell.worker()
    shell.wait_until(lambda report: any(run.rows_seen > 0 for run in report.running))

    worker.send_signal(signal.SIGTERM)

    ended(worker, 1)
    report = shell.status()
    assert report.running == ()
    assert report.state == "waiting"
    ended(shell.worker("--until-idle"))
    first, second = attempts(shell)
    assert first.result is not None
    assert second.result is not None
    assert second.result.resumed_from_rows == first.result.rows_seen > 0
    assert (first.end_reason, second.failures) == (EndReason.PREEMPTED, 0)
    (trial,) = shell.status().trials
    assert (trial.state, trial.attempts) == (RunState.COMPLETE, 2)


def test_the_loss_of_the_engine_alone_is_another_attempt_of_the_same_worker(shell: Shell) -> None:
    worker = shell.worker("--until-idle")
    shell.wait_until(lambda report: any(run.rows_seen > 0 for run in report.running))

    (engine,) = (
        child for child in psutil.Process(worker.pid).children() if "worker.child" in " ".join(child.cmdline())
    )
    engine.kill()

    ended(worker)
    first, second = attempts(shell)
    assert (first.end_reason, second.end_reason) == (EndReason.KILLED, EndReason.FINISHED)
    assert first.worker == second.worker


@dataclass(frozen=True)
class Seen:
    """An attempt and what it said."""

    end_reason: EndReason | None
    result: RunResult | None
    failures: int
    worker: WorkerIdentity | None
    points: tuple[Point, ...]


def attempts(shell: Shell) -> list[Seen]:
    engine = connect(shell.storage)
    try:
        return [
            Seen(run.end_reason, run.result, run.failures, run.worker, tuple(runs.points(engine, run.run_id)))
            for run in runs.runs(engine, "flow")
        ]
    finally:
        engine.dispose()
