"""Ten minutes without a server. By name the first of its folder: the others run beside it while it waits."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.faults.postgres import Postgres
from mathverify_sweep.chaos.proxy import Proxy
from mathverify_sweep.chaos.stage import Stage, sweep
from mathverify_sweep.store.throwaway import server_address, through
from tests.faults.long_runs import all_train, assert_nothing_was_lost_and_nobody_waited

pytestmark = pytest.mark.faults

TEN_MINUTES = 600.0


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
