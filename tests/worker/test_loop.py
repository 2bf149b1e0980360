"""The loop with an engine that rehearses: what becomes of several runs when one of them takes the engine along."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.worker.devices import pretended
from mathverify_sweep.worker.loop import LOADS, Worker
from mathverify_sweep.worker.messages import Room
from mathverify_sweep.worker.options import WorkerOptions
from mathverify_sweep.worker.retry import next_attempt
from tests import example_study
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


def test_sigterm_in_the_middle_of_several_runs_hands_all_of_them_back(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as long:
        long.setenv("MVSWEEP_REHEARSAL_SECONDS", "60")  # none is over before the signal, however slow this machine
        worker = shell.worker("--engine", "rehearsal", "--slots", "3")
    shell.wait_until(lambda report: len(report.running) == 3)

    worker.send_signal(signal.SIGTERM)

    log = ended(worker, 1)
    assert log.count("ended preempted") >= 1
    assert shell.status().running == ()
    rehearse(shell)
    assert [trial.state for trial in shell.status().trials] == [RunState.COMPLETE] * 6


@pytest.mark.parametrize(("kills", "code"), [(1, 0), (LOADS, 2)], ids=["once", "again and again"])
def test_an_engine_that_is_killed_while_it_loads_is_started_again(shell: Shell, kills: int, code: int) -> None:
    worker = shell.worker("--engine", "rehearsal", "--count", "1")
    seen: set[int] = set()
    while len(seen) < kills:
        with suppress(psutil.NoSuchProcess):  # what was killed a moment ago
            for process in psutil.Process(worker.pid).children():
                if process.pid not in seen and any("worker.child" in word for word in process.cmdline()):
                    process.kill()
                    seen.add(process.pid)

    log = ended(worker, code)

    assert "killed by signal 9" in log
    assert [trial.attempts for trial in shell.status().trials] == [1] * (code == 0)


def test_a_run_that_is_taken_back_for_good_leaves_no_checkpoints(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "600")
    worker = shell.worker("--engine", "rehearsal", "--checkpoint-seconds", "1")
    left = shell.wait_until(lambda _report: any(shell.folder.rglob("checkpoints/*")))
    assert len(left.running) == 1

    shell.run("stop", "flow", "--now")

    assert "ended lease_expired" in ended(worker, 1)
    assert not any(shell.folder.rglob("checkpoints"))


def test_room_that_an_engine_had_before_it_heard_of_the_latest_run_is_out_of_date(
    engine: Engine, tmp_path: Path
) -> None:
    with example_study.empty(engine) as study:
        worker = Worker(engine, study, WorkerOptions(tmp_path, pretended(0)))
        worker._started = 2
        worker._hear_engine(Room(free_slots=2, begun=1))
        assert worker._room == 0
        worker._hear_engine(Room(free_slots=1, begun=2))
        assert worker._room == 1
        worker._clerk._outbox.close()


def test_memory_that_was_short_before_the_start_is_asked_for_again_in_smaller_passes(spec: RunSpec) -> None:
    again = next_attempt(spec, RunResult(end_reason=EndReason.OUT_OF_MEMORY), 0)

    assert again is not None
    assert spec.max_length < (again.micro_batch_tokens or 0) < 16 * spec.max_length
