"""A promotion whose workers are killed, sent away and run out of time ends in the bits of one that was left alone."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from mathverify_sweep.reports.models import StatusReport
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.database import connect
from tests.flows.commands import SWEEP, Shell, ended

ROWS = (900, 1_400)
ONE_TRIAL = (
    SWEEP.replace("generated_rows: 1_500, train_rows: 256", "generated_rows: 3_000, train_rows: 128")
    .replace("trials: 4", "trials: 1")
    .replace("stages: [256, 0.5, all]", f"plan: trunk, stages: [{ROWS[0]}, {ROWS[1]}], cooldown_share: 0.4")
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_promotion_that_is_cut_at_random_ends_in_the_same_bits(tmp_path: Path) -> None:
    shells = [promoted(tmp_path / name) for name in ("whole", "cut")]
    ended(shells[0].worker("--until-idle"))
    dice = random.Random(20261125)
    for cut in (signal.SIGKILL, signal.SIGTERM, "time", signal.SIGKILL, signal.SIGTERM):
        cut_short(shells[1], cut, dice)
    ended(shells[1].worker("--until-idle"))

    whole, cut = (adapters(shell) for shell in shells)
    assert whole.keys() == cut.keys() == {1, 2, 3, 4}
    assert all(whole[stage] == cut[stage] for stage in whole)
    reasons = [run.end_reason for run in runs.runs(connect(shells[1].storage), "flow") if run.stage]
    assert reasons.count(EndReason.FINISHED) == 4
    assert {EndReason.LEASE_EXPIRED, EndReason.PREEMPTED} <= set(reasons)


def promoted(folder: Path) -> Shell:
    shell = Shell.at(folder, f"sqlite:///{folder / 'mvsweep.sqlite3'}", ONE_TRIAL)
    shell.run("create", "flow.yaml")
    ended(shell.worker("--until-idle"))
    shell.run("promote", "flow")
    return shell


def cut_short(shell: Shell, how: signal.Signals | str, dice: random.Random) -> None:
    """A worker that gets some way into a stage, and no further."""
    before = progress(shell.status())
    limit = ("--time-limit", "16s") if how == "time" else ()
    worker = shell.worker("--checkpoint-seconds", "1", "--slots", "1", *limit)
    if isinstance(how, signal.Signals):
        further = dice.randint(60, 400)
        shell.wait_until(lambda report: progress(report) >= min(before + further, 2_500))
        worker.send_signal(how)
    ended(worker, -how if how == signal.SIGKILL else 1)


def progress(report: StatusReport) -> int:
    """Rows that the stages have seen together, the running one included."""
    stages = [stage for row in report.promotions for stage in row.stages]
    running = {run.run_id: run.rows_seen for run in report.running}
    return sum(running.get(str(stage.run_id), stage.rows_seen) for stage in stages)


def adapters(shell: Shell) -> dict[int, bytes]:
    """Weights of every stage that has finished."""
    found = {}
    for run in runs.runs(connect(shell.storage), "flow"):
        if run.stage is not None and run.state is RunState.COMPLETE:
            assert run.result is not None
            file = shell.folder / "runs" / str(run.result.adapter) / "adapter_model.safetensors"
            found[run.stage] = file.read_bytes()
    return found
