"""Wall clocks that jump, as other hosts see it in the database: nobody's lease expires by them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from mathverify_sweep.chaos.stage import Stage, sweep
from mathverify_sweep.store.database import transaction
from mathverify_sweep.store.tables import runs as table


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
