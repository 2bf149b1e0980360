"""The database is away for long: a minute and a half of a locked file, a full disk; test_a_long_outage.py has more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.faults.places import Disk
from mathverify_sweep.chaos.doors import door
from mathverify_sweep.chaos.stage import Stage, sweep
from tests.faults.long_runs import all_train, assert_nothing_was_lost_and_nobody_waited

pytestmark = pytest.mark.faults


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
