"""What `mvsweep reap` prints, and with what it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mathverify_sweep.cli import app
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store import leases, runs
from mathverify_sweep.store.database import connect
from mathverify_sweep.study.study import open_study
from tests import example_study
from tests.example_study import NAME, WORKER, Player, example_database

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A study with a run on another host."""
    with example_database(tmp_path) as engine:
        yield engine.url.render_as_string()


def mvsweep(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--storage", url], env={"COLUMNS": "80"})


def test_a_suspect_is_two_lines_however_narrow_the_terminal(url: str) -> None:
    done = mvsweep(url, "reap")
    assert done.exit_code == 0
    first, second, *_ = done.stdout.splitlines()
    assert first.startswith("unknown  running  run ")
    assert first.endswith("it is on another host")
    assert f"worker {WORKER.worker_id} on {WORKER.host}, pid {WORKER.pid}, {WORKER.gpu}, boot not known" in second


def test_to_mend_is_not_done_while_something_is_not_known(url: str, tmp_path: Path) -> None:
    done = mvsweep(url, "reap", "--mend", "--output", str(tmp_path))
    assert done.exit_code == 1
    assert "left alone, not known to be dead: run " in done.stdout
    assert "try --watch" in done.stdout


def test_an_accepted_result_is_shown_with_the_run_that_has_it(url: str, tmp_path: Path) -> None:
    engine = connect(url)
    with open_study(engine, NAME) as study:
        claim = Player(engine, study, tmp_path, NOW).start_a_trial()
    lease = next(lease for lease in leases.running(engine, NAME) if lease.run_id == claim.run_id)
    leases.expire(engine, lease, NOW)
    result = RunResult(end_reason=EndReason.FINISHED, value=0.9, metrics=example_study.metrics(0.9), rows_seen=800)
    runs.keep_late(engine, claim, result)
    engine.dispose()

    assert f"late     run {claim.run_id}" in mvsweep(url, "reap").stdout
    done = mvsweep(url, "reap", "--accept", claim.run_id, "--output", str(tmp_path), "-f", "json")
    assert done.exit_code == 0, done.output
    heir = json.loads(done.stdout)
    assert (heir["attempt"], heir["state"], heir["result"]["value"]) == (2, "COMPLETE", 0.9)
    assert "late     run" not in mvsweep(url, "reap").stdout


def test_a_run_without_a_late_result_is_refused(url: str) -> None:
    engine = connect(url)
    run_id = runs.runs(engine, NAME)[0].run_id
    engine.dispose()
    done = mvsweep(url, "reap", "--accept", run_id)
    assert done.exit_code != 0
    assert "has no late result" in str(done.exception)
