"""A worker that died with nobody left to notice, and a person who comes by: `mvsweep reap`, on real processes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from mathverify_sweep.states import RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.database import connect, upgrade
from mathverify_sweep.store.runs import RunRecord
from tests.flows.commands import SWEEP, Shell, ended

pytestmark = pytest.mark.parametrize("backend", ["sqlite"])  # tests/operations/test_reap.py has both


def until_it_trains(storage: str) -> RunRecord:
    engine = connect(storage)
    upgrade(engine)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for run in runs.runs(engine, "flow"):
            if run.points:
                engine.dispose()
                return run
        time.sleep(0.1)
    raise AssertionError("no run has said anything")


def test_a_killed_worker_is_found_and_what_it_held_goes_on_at_once(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell.at(tmp_path / "work", database_url, SWEEP.replace("trials: 4", "trials: 1"))
    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "60")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    worker = shell.start("worker", "flow.yaml", "--engine", "rehearsal", "--lease", "600")
    lost = until_it_trains(database_url)

    listed = shell.run("reap", "flow")
    assert f"run {lost.run_id} attempt 1 trial 0: its process lives" in listed
    assert f"pid {worker.pid}, job slurm 4711" in listed

    worker.send_signal(signal.SIGKILL)
    ended(worker, -signal.SIGKILL)
    assert f"run {lost.run_id} of trial 0 expired" in shell.run("reap", "flow", "--mend")

    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "0.1")
    ended(shell.start("worker", "flow", "--engine", "rehearsal", "--until-idle"))
    engine = connect(database_url)
    assert [run.state for run in runs.runs(engine, "flow")] == [RunState.FAIL, RunState.COMPLETE]
    engine.dispose()
