"""Workers that are killed or sent away: nothing is lost, nothing stays RUNNING."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mathverify_sweep.states import RunState
from tests.flows.commands import SWEEP, Shell, ended

ONE_LONG_TRIAL = SWEEP.replace("train_rows: 256", "train_rows: 1_000").replace("trials: 4", "trials: 1")


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    shell = Shell.at(tmp_path / "work", database_url, ONE_LONG_TRIAL)
    shell.run("create", "flow.yaml")
    return shell


def test_a_trial_whose_worker_was_killed_is_run_again_by_the_next_one(shell: Shell) -> None:
    worker = shell.worker()
    shell.wait_until(lambda report: any(run.rows_seen > 0 for run in report.running))

    worker.send_signal(signal.SIGKILL)
    ended(worker, -signal.SIGKILL)
    log = ended(shell.worker("--until-idle"))

    assert "expired" in log
    (trial,) = shell.status().trials
    assert (trial.state, trial.attempts) == (RunState.COMPLETE, 2)


def test_sigterm_hands_the_trial_back_at_once(shell: Shell) -> None:
    worker = shell.worker()
    shell.wait_until(lambda report: any(run.rows_seen > 0 for run in report.running))

    worker.send_signal(signal.SIGTERM)

    ended(worker, 1)
    report = shell.status()
    assert report.running == ()
    assert report.state == "waiting"
    ended(shell.worker("--until-idle"))
    (trial,) = shell.status().trials
    assert (trial.state, trial.attempts) == (RunState.COMPLETE, 2)
