"""The loop with an engine that rehearses: what becomes of several runs when one of them takes the engine along."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.worker.retry import next_attempt
from tests.flows.commands import SWEEP, Shell, ended


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "1")
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", SWEEP.replace("trials: 4", "trials: 6"))
    shell.run("create", "flow.yaml")
    return shell


def rehearse(shell: Shell, code: int = 0) -> str:
    return ended(shell.worker("--engine", "rehearsal", "--slots", "3", "--until-idle"), code)


def test_several_slots_share_an_engine_and_every_trial_is_run_once(shell: Shell) -> None:
    rehearse(shell)

    trials = shell.status().trials
    assert [(trial.state, trial.attempts) for trial in trials] == [(RunState.COMPLETE, 1)] * 6


def test_a_trial_that_takes_the_engine_along_costs_its_neighbours_an_attempt(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVSWEEP_REHEARSAL_FAULTS", '{"1": "exit"}')
    rehearse(shell)

    trials = shell.status().trials
    assert [trial.state for trial in trials] == [RunState.COMPLETE] * 6
    assert [trial.attempts for trial in trials[:3]] == [2, 2, 2]


def test_runs_that_died_together_are_tried_alone_so_that_a_fault_of_the_code_stops_the_study(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVSWEEP_REHEARSAL_FAULTS", '{"*": "exit"}')
    rehearse(shell, 1)

    report = shell.status()
    assert "3 trials crashed alike" in (report.stopped or "")
    assert {trial.end_reason for trial in report.trials} == {EndReason.CRASHED}
    assert len(report.trials) == 3


def test_sigterm_in_the_middle_of_several_runs_hands_all_of_them_back(shell: Shell) -> None:
    worker = shell.worker("--engine", "rehearsal", "--slots", "3")
    shell.wait_until(lambda report: len(report.running) == 3)

    worker.send_signal(signal.SIGTERM)

    log = ended(worker, 1)
    assert log.count("ended preempted") >= 1
    assert shell.status().running == ()
    rehearse(shell)
    assert [trial.state for trial in shell.status().trials] == [RunState.COMPLETE] * 6


def test_memory_that_was_short_before_the_start_is_asked_for_again_in_smaller_passes(spec: RunSpec) -> None:
    again = next_attempt(spec, RunResult(end_reason=EndReason.OUT_OF_MEMORY), 0)

    assert again is not None
    assert spec.max_length < (again.micro_batch_tokens or 0) < 16 * spec.max_length
