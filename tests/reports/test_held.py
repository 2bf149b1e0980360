"""What a study has taken is held against what its workers' rates say of the work that they did, and of no other."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy.engine import Engine

from mathverify_sweep.rates import Rates
from mathverify_sweep.reports import html, rows, terminal
from mathverify_sweep.reports.models import Prediction
from mathverify_sweep.states import EndReason
from mathverify_sweep.store import runs, speeds
from tests.example_study import NAME, START, WORKER, example_database

RATES = Rates(slots=1, alone=10.0, together=10.0, judged=500.0, run_seconds=2.0, first_seconds=5.0, validation_rows=900)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    with example_database(tmp_path) as engine:
        yield engine


def prediction(database: Engine) -> Prediction:
    speeds.record(database, WORKER.worker_id, RATES.model_dump_json())
    (found,) = rows.status(database, NAME).predictions
    return found


def test_rows_that_were_trained_are_counted_and_those_of_every_attempt(database: Engine) -> None:
    report, found = rows.status(database, NAME), prediction(database)
    seen = sum(trial.rows_seen for trial in report.trials)
    promoted = 1_000 + 2_000 + 4_000
    lost = 100  # by the first attempt of trial 2
    assert found.rows_trained == seen + promoted + lost
    assert (found.workers, found.device) == (1, "cpu")
    assert found.runs == 13 + 1 + 3


def test_looks_at_rungs_and_at_the_end_are_counted(database: Engine) -> None:
    found = prediction(database)
    every = runs.runs(database, NAME)
    said = runs.points_of_study(database, NAME)
    looks = sum(point.value is not None for points in said.values() for point in points)
    finished = sum(run.end_reason is EndReason.FINISHED for run in every)
    assert found.rows_judged == 900 * (looks + finished), "rung_rows is 1,000, and there are 900"


def test_the_prediction_is_what_the_rates_make_of_it(database: Engine) -> None:
    found = prediction(database)
    seconds = found.rows_trained / 10 + found.rows_judged / 500 + found.runs * 2 + 5
    assert found.predicted_seconds == pytest.approx(seconds)
    assert found.took_seconds == pytest.approx(3_600 * rows.status(database, NAME).budget.gpu_hours_used)
    assert found.ratio == pytest.approx(found.took_seconds / seconds)


def test_rows_that_an_earlier_attempt_trained_are_not_counted_again(database: Engine) -> None:
    before = prediction(database)
    last = next(run for run in runs.runs(database, NAME) if run.end_reason is EndReason.FINISHED)
    assert last.result is not None
    with database.begin() as connection:
        resumed = last.result.model_copy(update={"resumed_from_rows": 300})
        connection.exec_driver_sql(
            "UPDATE mv_runs SET result = ? WHERE run_id = ?", (resumed.model_dump_json(), last.run_id)
        )
    after = prediction(database)
    assert after.rows_trained == before.rows_trained - 300
    assert after.rows_judged == before.rows_judged - 3 * 900, "nor its looks at 100, 200 and 300 rows"


def test_workers_that_were_not_measured_are_held_against_nothing(database: Engine) -> None:
    assert rows.status(database, NAME).predictions == ()
    speeds.record(database, "somebody else", RATES.model_dump_json())
    assert rows.status(database, NAME).predictions == ()


def test_the_page_and_the_terminal_say_it(database: Engine, tmp_path: Path) -> None:
    found = prediction(database)
    said = f"device time over what was predicted for this work: {found.took_seconds:,.0f} s over"
    html.write(database, NAME, tmp_path / "report.html", START)
    page = (tmp_path / "report.html").read_text()
    assert said in page
    assert f"<b>{found.ratio:.2f}</b>" in page
    printed = io.StringIO()
    Console(width=200, file=printed).print(terminal.status(rows.status(database, NAME)))
    assert said in printed.getvalue()
