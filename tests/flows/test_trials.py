"""Trials from the command line: real workers, real engines, real NF4, both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.database import connect
from tests.flows.commands import FIRST_ON_POSTGRESQL, SWEEP, Shell, ended


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    return Shell.at(tmp_path / "work", database_url)


@FIRST_ON_POSTGRESQL
def test_two_workers_at_once_split_the_trials_and_run_none_twice(shell: Shell) -> None:
    shell.run("create", "flow.yaml")

    workers = [shell.worker("--until-idle") for _ in range(2)]
    for worker in workers:
        ended(worker)

    report = shell.status()
    assert [trial.state for trial in report.trials] == [RunState.COMPLETE] * 4
    assert [trial.attempts for trial in report.trials] == [1] * 4
    engine = connect(shell.storage)
    records = runs.runs(engine, "flow")
    engine.dispose()
    assert sorted(run.trial_number or 0 for run in records) == [0, 1, 2, 3]
    assert len({run.worker.pid for run in records if run.worker}) == 2
    assert report.baselines["majority"].accuracy < 0.7


def test_a_study_is_created_once_and_never_changed(shell: Shell) -> None:
    assert "created" in shell.run("create", "flow.yaml")
    assert "already" in shell.run("create", "flow.yaml")

    refused = shell.run("create", "flow.yaml", "--set", "search_space.lora_r=16", code=2)

    assert "search_space.lora_r" in refused
    assert "Traceback" not in refused


def test_settings_are_enqueued_by_hand_and_from_a_table(shell: Shell) -> None:
    shell.run("create", "flow.yaml")
    (shell.folder / "good.csv").write_text("learning_rate,lora_r\n2e-3,8\n1e-3,\n")

    assert "1 trial" in shell.run("enqueue", "flow", "--set", "learning_rate=5e-3", "--set", "lora_r=4")
    assert "2 trial" in shell.run("enqueue", "flow", "--table", "good.csv")
    refused = shell.run("enqueue", "flow", "--set", "lora_rank=4", code=2)

    assert "lora_r" in refused
    waiting = [trial for trial in shell.status().trials if trial.state is RunState.WAITING]
    assert len(waiting) == 3


def test_a_worker_whose_data_differs_refuses_to_run_and_says_why(tmp_path: Path) -> None:
    rows = [
        f'{{"question": "q{i}", "answer": "{i}", "solution": "s", "is_correct": {str(i % 2 == 0).lower()}}}'
        for i in range(900)
    ]
    sweep = SWEEP.replace("source: generated, generated_rows: 1_500", "source: rows.jsonl").replace("100}", "20}", 1)
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", sweep)
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    shell.run("create", "flow.yaml")
    (tmp_path / "rows.jsonl").write_text("\n".join(reversed(rows)).replace('"q7"', '"another"'))

    refused = ended(shell.worker("--until-idle"), 2)

    assert "the study was created with data" in refused
    assert shell.status().trials == ()


def test_stop_now_takes_the_running_trial_back_and_resume_goes_on(tmp_path: Path) -> None:
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", SWEEP.replace("256, v", "1_000, v"))
    shell.run("create", "flow.yaml")
    worker = shell.worker("--until-idle")
    shell.wait_until(lambda report: bool(report.running))

    shell.run("stop", "flow", "--now")

    ended(worker, 1)  # the asked work, until idle, is not done
    report = shell.status()
    assert [trial.end_reason for trial in report.trials] == [EndReason.STOPPED_BY_USER]
    assert [trial.state for trial in report.trials] == [RunState.FAIL]
    shell.run("resume", "flow")
    assert shell.status().stopped is None
