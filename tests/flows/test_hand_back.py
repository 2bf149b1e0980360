"""A worker that is sent away leaves a checkpoint and hands its run back before a scheduler would kill it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from mathverify_sweep import paths
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.database import connect
from tests.flows.commands import SWEEP, Shell, ended

NOTICE_SECONDS = 30.0
"""Between the notice of a scheduler and its kill."""
# More rows than a core trains within the limit: one of today does 8,000 of them in 40 s.
LONG = SWEEP.replace("generated_rows: 1_500, train_rows: 256", "generated_rows: 24_000, train_rows: 17_000")


@pytest.mark.slow
@pytest.mark.parametrize("notice", ["SIGTERM", "--time-limit"])
def test_a_checkpoint_is_written_and_the_run_handed_back_in_under_30_seconds(tmp_path: Path, notice: str) -> None:
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", LONG)
    shell.run("create", "flow.yaml")
    limit = 60.0
    began = time.monotonic()
    worker = shell.worker(*(("--time-limit", f"{limit:g}s") if notice == "--time-limit" else ()))
    shell.wait_until(lambda report: any(run.rows_seen > 0 for run in report.running))
    if notice == "SIGTERM":
        began, limit = time.monotonic(), NOTICE_SECONDS
        worker.send_signal(signal.SIGTERM)
    ended(worker, 1)
    assert time.monotonic() - began < limit

    first, again = runs.runs(connect(shell.storage), "flow")
    assert (first.state, first.end_reason) == (RunState.FAIL, EndReason.PREEMPTED)
    assert (again.state, again.continues, again.failures) == (RunState.WAITING, first.run_id, 0)
    assert first.lease_token is not None
    assert first.result is not None
    (kept,) = paths.checkpoints(paths.run_folder(tmp_path / "runs", "flow", first.run_id, first.lease_token))
    assert int(kept.name) == first.result.rows_seen > 0
    assert not list(tmp_path.rglob("outbox-*")), "all is said"
