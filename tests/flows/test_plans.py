"""Every plan from the command line, trained by a worker that packs the stages of all of them into one engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mathverify_sweep.reports.models import PromotionRow
from mathverify_sweep.states import RunState
from tests.flows.commands import SWEEP, Shell, ended

ONE_TRIAL = SWEEP.replace("trials: 4", "trials: 1").replace("stages: [256, 0.5, all]", "stages: [128, 192, 256]")
ROUNDS = "promotion.rounds=[{steps: 4, learning_rate: 1e-3}, {rows: 96, effective_batch_size: 8, quantization: none}]"


@pytest.mark.slow
def test_every_plan_is_trained_beside_the_others_as_it_says(tmp_path: Path) -> None:
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", ONE_TRIAL)
    shell.run("create", "flow.yaml")
    ended(shell.worker("--until-idle"))
    for plan in ("cumulative", "sequential", "replay", "scratch", "trunk"):
        assert f"promoted: {plan}" in shell.run("promote", "flow", "--set", f"promotion.plan={plan}")
    shell.run("promote", "flow", "--set", "promotion.plan=rounds", "--set", ROUNDS)
    shell.run("promote", "flow", "--set", "promotion.least_gain=0.9")
    assert "got 'data.seed=1'" in shell.run("promote", "flow", "--set", "data.seed=1", code=2)

    ended(shell.worker("--until-idle", "--slots", "3"))

    report = shell.status()
    *promotions, stopped = report.promotions
    found = {row.plan: row for row in promotions}
    assert {row.state for row in promotions} == {RunState.COMPLETE}
    assert [stage.state for stage in stopped.stages] == [RunState.COMPLETE, RunState.COMPLETE, RunState.PRUNED]
    assert "stage 2 brought" in stopped.stages[2].message
    assert rows_seen(found["cumulative"]) == [128, 192, 256]
    assert rows_seen(found["sequential"]) == [128, 64, 64]
    assert rows_seen(found["replay"]) == [128, 64 + 32, 64 + 48]
    assert rows_seen(found["scratch"]) == [256]
    assert rows_seen(found["rounds"]) == [64, 96]
    assert [stage.name for stage in found["trunk"].stages] == [
        f"{number} {'trunk' if number % 2 else 'cooldown'}" for number in range(1, 7)
    ]
    assert rows_seen(found["trunk"]) == [96, 128, 160, 192, 208, 256]
    cooldown, piece = found["trunk"].stages[1], found["trunk"].stages[0]
    assert cooldown.started_from == piece.run_id
    assert cooldown.curve == (), "JSON has no curves"
    spent = sum(stage.seconds for stage in found["trunk"].stages)
    assert spent < 2 * sum(stage.seconds for stage in found["cumulative"].stages)


def rows_seen(row: PromotionRow) -> list[int]:
    return [stage.rows_seen for stage in row.stages]
