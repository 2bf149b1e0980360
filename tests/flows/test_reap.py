"""Workers that died with nobody left to notice, and a person who comes by: `mvsweep reap`, on real processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from mathverify_sweep.states import RunState
from tests.flows.commands import SWEEP, Shell, ended

ONE_TRIAL = SWEEP.replace("trials: 4", "trials: 1")


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    shell = Shell.at(tmp_path / "work", database_url, ONE_TRIAL)
    shell.run("create", "flow.yaml")
    return shell


def suspects(shell: Shell, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shell.json("reap", "flow", *options))
    return found


def test_a_killed_worker_is_found_and_what_it_held_goes_on_at_once(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "60")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    worker = shell.start("worker", "flow", "--engine", "rehearsal", "--lease", "600")
    shell.wait_until(lambda report: any(run.rows_seen > 0 for run in report.running))

    (alive,) = suspects(shell)
    assert (alive["life"], alive["worker"]["pid"], alive["worker"]["job_id"]) == ("alive", worker.pid, "slurm 4711")
    assert "nothing to mend" in shell.run("reap", "flow", "--mend")

    worker.send_signal(signal.SIGKILL)
    ended(worker, -signal.SIGKILL)
    listed = shell.run("reap", "flow")
    assert f"pid {worker.pid}, job slurm 4711" in listed.replace("\n", " ")
    assert "its process has ended" in listed

    assert "expired" in shell.run("reap", "flow", "--mend")
    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "0.1")
    ended(shell.start("worker", "flow", "--engine", "rehearsal", "--until-idle"))
    (trial,) = shell.status().trials
    assert (trial.state, trial.attempts) == (RunState.COMPLETE, 2)
    assert suspects(shell) == []
