"""A hundred enqueued trials, sixteen processes that ask at once: each is run once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mathverify_sweep.chaos.stage import Stage, sweep
from mathverify_sweep.states import RunState
from tests.at_once import answers_of

ENQUEUED = 100
PROCESSES = 16
SCRIPT = Path(__file__).with_name("claiming_worker.py")


def test_sixteen_processes_that_ask_at_once_claim_each_of_a_hundred_trials_once(
    database_url: str, tmp_path: Path
) -> None:
    with Stage(tmp_path, database_url, sweep("once", ENQUEUED)) as stage:
        stage.enqueue(ENQUEUED)
        answers = answers_of(PROCESSES, SCRIPT, database_url, stage.name)
        got = [claimed for each in answers for claimed in each]
        trials = stage.trials()
    assert sorted(number for _run_id, number, _rate in got) == list(range(ENQUEUED))
    assert len({run_id for run_id, _number, _rate in got}) == ENQUEUED
    assert len({rate for _run_id, _number, rate in got}) == ENQUEUED, "each was another of the enqueued settings"
    assert [trial.state for trial in trials] == [RunState.RUNNING] * ENQUEUED


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_sixteen_workers_run_each_of_a_hundred_trials_once(database_url: str, tmp_path: Path) -> None:
    with Stage(tmp_path, database_url, sweep("once", ENQUEUED), run_seconds=0.5, lease_seconds=20.0) as stage:
        stage.enqueue(ENQUEUED)
        for gpu in range(PROCESSES):
            stage.fleet.start(gpu)
        stage.wait_until_done(500)
        assert stage.broken() == []
        assert Counter(run.attempt for run in stage.runs()) == {1: ENQUEUED}
        rates = [trial.params["learning_rate"] for trial in stage.trials()]
    assert len(set(rates)) == ENQUEUED
