"""The database is away for long: ten minutes without a server, a minute and a half of a locked file, a full disk.

No trial is lost, no attempt is wasted, and training never waits.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.faults.places import Disk
from benchmarks.faults.postgres import Postgres
from mathverify_sweep.chaos.doors import door
from mathverify_sweep.chaos.proxy import Proxy
from mathverify_sweep.chaos.stage import Stage, sweep
from mathverify_sweep.states import RunState
from mathverify_sweep.store.throwaway import server_address, through

pytestmark = pytest.mark.faults

TEN_MINUTES = 600.0


def all_train(stage: Stage, count: int) -> bool:
    return sum(stage.rows_seen(run.run_id) > 0 for run in stage.running()) == count


def assert_nothing_was_lost_and_nobody_waited(stage: Stage) -> None:
    assert stage.broken() == []
    records = stage.runs()
    assert [run.attempt for run in records] == [1] * stage.config.trials
    assert [run.state for run in records] == [RunState.COMPLETE] * stage.config.trials
    seconds = [run.result.train_seconds for run in records if run.result]
    assert max(seconds) < stage.run_seconds + 15, "a report waits a few seconds at most before training goes on"
    assert {tuple(trial.intermediate) for trial in stage.trials()} == {stage.config.rungs}, "every report arrived"


@pytest.mark.timeout(900)
def test_ten_minutes_without_postgresql_cost_no_trial_and_no_training(tmp_path: Path) -> None:
    """Runs outlast the outage; the four workers reach the server again one after the other."""
    with ExitStack() as stack:
        server = stack.enter_context(Postgres())
        long_runs = {"lease_seconds": 20.0, "run_seconds": TEN_MINUTES + 40, "checkpoint_seconds": 60.0}
        stage = stack.enter_context(Stage(tmp_path, server.url, sweep("outage", 4), **long_runs))
        address = server_address(server.url)
        assert address is not None
        ways = [Proxy(*address) for _ in range(4)]
        for gpu, way in enumerate(ways):
            stack.callback(way.close)
            stage.fleet.start(gpu, environment={"OPTUNA_STORAGE": through(server.url, way.port)})
        stage.wait_until("four runs are trained", lambda: all_train(stage, 4), 120)
        for way in ways:
            way.shut()
        server.stop()
        time.sleep(TEN_MINUTES)
        server.start()
        for way in ways:
            way.open()
            time.sleep(3)
        stage.wait_until_done(200)
        assert_nothing_was_lost_and_nobody_waited(stage)


@pytest.mark.timeout(600)
def test_a_sqlite_file_that_is_locked_for_ninety_seconds_costs_no_trial(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'locked.sqlite3'}"
    with door(url) as way, Stage(tmp_path, url, sweep("locked", 4), run_seconds=60.0, lease_seconds=5.0) as stage:
        for gpu in range(4):
            stage.fleet.start(gpu)
        stage.wait_until("four runs are trained", lambda: all_train(stage, 4))
        way.shut()
        time.sleep(90)
        way.open()
        stage.wait_until_done(200)
        assert_nothing_was_lost_and_nobody_waited(stage)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", ["database", "output"])
def test_a_full_disk_costs_no_trial(where: str, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk", 64)
    if not disk.is_real:
        pytest.skip("a small disk takes root to mount")
    try:
        folder = disk.folder if where == "output" else tmp_path / "elsewhere"
        url = f"sqlite:///{(disk.folder if where == 'database' else tmp_path) / 'full.sqlite3'}"
        with Stage(folder, url, sweep("full", 8), run_seconds=6.0, lease_seconds=4.0) as stage:
            for gpu in range(4):
                stage.fleet.start(gpu)
            stage.wait_until("four runs are trained", lambda: all_train(stage, 4))
            disk.fill()
            time.sleep(20)
            disk.free()
            stage.wait_until_done(200)
            assert stage.broken() == []
    finally:
        disk.close()
