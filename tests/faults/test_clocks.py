"""Wall clocks that jump, of a host or of what is written in the database: nobody's lease expires by them."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from mathverify_sweep.chaos.stage import Stage, sweep
from mathverify_sweep.store.database import transaction
from mathverify_sweep.store.tables import runs as table

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@pytest.mark.parametrize("jump", [timedelta(days=-3), timedelta(days=3)], ids=["backwards", "forwards"])
def test_times_in_the_database_that_jump_expire_nobody(jump: timedelta, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.sqlite3'}"
    with Stage(tmp_path, url, sweep("clocks", 2), lease_seconds=2.0, run_seconds=8.0) as stage:
        for gpu in range(2):
            stage.fleet.start(gpu)
        stage.wait_until("two runs are trained", lambda: sum(bool(r.points) for r in stage.running()) == 2)
        running = stage.running()
        with transaction(stage.database) as connection:
            for run in running:
                assert run.renewed_at is not None
                jumped = sa.update(table).where(table.c.run_id == run.run_id)
                connection.execute(jumped.values(renewed_at=run.renewed_at + jump))
        stage.wait_until_done()
        assert [run.attempt for run in stage.runs()] == [1, 1]


@pytest.mark.faults
@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed: apt-get install libfaketime")
def test_a_hosts_clock_that_jumps_expires_nobody(tmp_path: Path) -> None:
    """The clock of one worker of two jumps a day ahead, then two days back; monotonic time goes on."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    url = f"sqlite:///{tmp_path / 'c.sqlite3'}"
    with Stage(tmp_path, url, sweep("clocks", 4), lease_seconds=2.0, run_seconds=8.0) as stage:
        stage.fleet.start(0, environment=faked)
        stage.fleet.start(1)
        stage.wait_until("two runs are trained", lambda: sum(bool(r.points) for r in stage.running()) == 2)
        for shift in ("+1d", "-1d"):
            clock.write_text(shift)
            time.sleep(5)  # two lease periods and some, in which somebody might be taken for dead
        stage.wait_until_done()
        assert {run.attempt for run in stage.runs()} == {1}
        assert len(stage.runs()) == 4
