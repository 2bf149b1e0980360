"""Rows say what happened: every trial, every attempt, every stage, and what must be beaten."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.errors import StudyError
from mathverify_sweep.reports import rows
from mathverify_sweep.reports.models import StatusReport
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import studies
from tests.example_study import NAME, empty, example_database


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with example_database(tmp_path_factory.mktemp("rows")) as engine:
        yield engine


@pytest.fixture(scope="module")
def report(database: Engine) -> StatusReport:
    return rows.status(database, NAME)


def test_every_trial_is_told_with_its_state_reason_and_value(report: StatusReport) -> None:
    assert [trial.number for trial in report.trials] == list(range(14))
    assert sum(report.counts.values()) == 14
    assert (report.trials[5].state, report.trials[5].end_reason) == (RunState.PRUNED, EndReason.DIVERGED)
    assert report.trials[12].state is RunState.RUNNING
    assert (report.trials[13].state, report.trials[13].run_id) == (RunState.WAITING, None)
    pruned = next(trial for trial in report.trials if trial.end_reason is EndReason.PRUNED)
    assert pruned.metrics is None
    assert pruned.value == pruned.curve[-1].value, "the last rung speaks for a trial that was pruned"
    finished = report.trials[0]
    assert finished.value == finished.accuracy
    assert finished.accuracy_low is not None
    assert finished.accuracy_low < finished.accuracy < (finished.accuracy_high or 0)


def test_a_retried_trial_is_one_row_with_the_time_of_both_attempts(report: StatusReport) -> None:
    trial = report.trials[2]
    assert trial.attempts == 2
    assert trial.state in (RunState.COMPLETE, RunState.PRUNED)
    assert trial.seconds == 90


def test_only_tuned_parameters_are_shown_and_conditional_ones_where_they_apply(report: StatusReport) -> None:
    for trial in report.trials[:13]:
        assert {"learning_rate", "lora_r", "lr_scheduler_type"} <= set(trial.params)
        assert ("lr_decay_share" in trial.params) == (trial.params["lr_scheduler_type"] == "warmup_stable_decay")


def test_a_promotion_has_its_stages_in_order_each_from_the_one_before(report: StatusReport) -> None:
    (row,) = report.promotions
    assert (row.plan, row.trial_number, row.state) == ("cumulative", 0, RunState.COMPLETE)
    assert [stage.train_rows for stage in row.stages] == [1_000, 2_000, 4_000]
    assert [stage.started_from for stage in row.stages] == [None, row.stages[0].run_id, row.stages[1].run_id]
    assert row.trial_value == report.trials[0].value


def test_what_runs_now_says_who_and_how_far(report: StatusReport) -> None:
    (running,) = report.running
    assert (running.trial_number, running.rows_seen, running.rows_to_meet, running.value) == (12, 150, 800, 0.7)
    assert running.worker == "w0rker01@node-1"
    assert (report.state, report.budget.trials_used, report.budget.trials) == ("running", 13, 14)


def test_the_leaderboard_ranks_complete_trials_and_puts_baselines_last(report: StatusReport) -> None:
    board = rows.leaderboard(report, top=3)
    assert [row.rank for row in board.rows] == [1, 2, 3, None, None]
    values = [row.value for row in board.rows[:3]]
    assert values == sorted(values, reverse=True)
    assert [row.name for row in board.rows[3:]] == ["bag of words", "majority"]
    promoted = next(row for row in rows.leaderboard(report).rows if row.trial_number == 0).promoted
    assert promoted is not None
    assert promoted.stage == 3


def test_the_report_is_json(report: StatusReport) -> None:
    loaded = json.loads(report.model_dump_json())
    assert loaded["best_value"] == max(t["value"] for t in loaded["trials"] if t["state"] == "COMPLETE")
    assert [stage["state"] for stage in loaded["promotions"][0]["stages"]] == ["COMPLETE"] * 3
    assert json.loads(rows.leaderboard(report).model_dump_json())["rows"][0]["rank"] == 1


def test_a_study_without_runs_is_new_on_either_database(engine: Engine) -> None:
    empty(engine).close()
    report = rows.status(engine, NAME)
    assert (report.state, report.trials, report.best_trial, report.running) == ("new", (), None, ())
    assert set(report.baselines) == {"majority", "bag_of_words"}
    assert [row.kind for row in rows.leaderboard(report).rows] == ["baseline", "baseline"]
    studies.stop(engine, NAME, "three trials crashed alike")
    assert (rows.status(engine, NAME).state, rows.status(engine, NAME).stopped) == (
        "stopped",
        "three trials crashed alike",
    )


def test_a_study_that_minimises_ranks_the_smallest_first(database: Engine) -> None:
    report = rows.status(database, NAME)
    by_loss = report.model_copy(
        update={
            "objective": "validation_log_loss",
            "trials": tuple(
                trial.model_copy(update={"value": trial.metrics.log_loss if trial.metrics else trial.value})
                for trial in report.trials
            ),
        }
    )
    losses = [row.value for row in rows.leaderboard(by_loss, top=4).rows if row.kind == "trial"]
    assert losses == sorted(losses)


def test_an_unknown_study_is_named_with_the_nearest(database: Engine) -> None:
    with pytest.raises(StudyError, match="fractions"):
        rows.status(database, "fraction")


def test_reading_changes_nothing(database: Engine) -> None:
    before = rows.status(database, NAME)
    assert rows.status(database, NAME) == before
