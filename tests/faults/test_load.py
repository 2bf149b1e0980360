"""More workers than a server has connections; a minute of the soak; W&B that does not answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.postgres import Postgres
from mathverify_sweep.chaos.stage import Stage, sweep

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)
def test_a_hundred_and_twenty_workers_share_a_server_of_a_hundred_connections(tmp_path: Path) -> None:
    """Each takes two runs, so that none is done before the last has come; they leave the cores to whom time matters."""
    with (
        Postgres(max_connections="100") as server,
        Stage(tmp_path, server.url, sweep("many", 240), lease_seconds=60.0, run_seconds=30.0) as stage,
    ):
        members = [stage.fleet.start(gpu, "--count", "2") for gpu in range(120)]
        for member in members:
            os.setpriority(os.PRIO_PROCESS, member.process.pid, 19)
        stage.wait_until_done(800)
        assert stage.broken() == []
        worked = {run.worker.pid for run in stage.runs() if run.worker is not None}
        assert worked == {member.process.pid for member in members}, "all of them started, and all got on"
        assert {run.attempt for run in stage.runs()} == {1}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_minute_of_the_soak(database: str) -> None:
    command = [sys.executable, "-m", "benchmarks.faults.soak", "--contestant", "mvsweep", "--database", database]
    command += ["--workers", "6", "--trials", "60", "--seconds", "60", "--every", "2", "--run-seconds", "3"]
    done = subprocess.run([*command, "--lease", "3"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(300)
def test_runs_do_not_wait_for_a_wandb_that_is_down(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # nobody listens there once this is closed
    environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40, "WANDB_MODE": ""}
    config = sweep("untracked", 3, tracking={"wandb": "online"})
    url = f"sqlite:///{tmp_path / 'w.sqlite3'}"
    with Stage(tmp_path, url, config, run_seconds=2.0, environment=environment) as stage:
        worker = stage.fleet.start(0)
        stage.wait_until_done(200)
        assert stage.broken() == []
        ends = [run.ended_at for run in stage.runs() if run.ended_at]
        assert (max(ends) - min(ends)).total_seconds() < 30, "three runs of two seconds"
        assert "W&B is recorded offline" in worker.printed()
