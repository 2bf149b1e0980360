"""The audit finds what it is there to find: each rule is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import optuna
import pytest
import sqlalchemy as sa

from mathverify_sweep.chaos.stage import Stage, sweep
from mathverify_sweep.store.database import transaction
from mathverify_sweep.store.tables import points, predictions
from mathverify_sweep.store.tables import runs as table


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A study of two trials, one of which was run twice."""
    folder = tmp_path_factory.mktemp("audited")
    with Stage(folder, f"sqlite:///{folder}/a.sqlite3", sweep("audited", 2), run_seconds=0.4) as stage:
        stage.fleet.start(0, faults={"0": "oom"})
        stage.wait_until_done()
        assert stage.broken() == []
        yield stage


@pytest.fixture
def stage(played: Stage) -> Iterator[Stage]:
    """As it was, before and after."""
    with transaction(played.database) as connection:
        kept = {
            t: [dict(row._mapping) for row in connection.execute(sa.select(t))] for t in (table, points, predictions)
        }
    logs = {log: log.read_text() for log in played.fleet.logs}
    yield played
    with transaction(played.database) as connection:
        for t in (predictions, points, table):
            connection.execute(sa.delete(t))
        for t, rows in kept.items():
            connection.execute(sa.insert(t), rows)
    for log, text in logs.items():
        log.write_text(text)
    for file in (played.output / "audited").glob("outbox-*"):
        file.unlink()


def change(stage: Stage, where: sa.ColumnElement[bool], **values: object) -> None:
    with transaction(stage.database) as connection:
        assert connection.execute(sa.update(table).where(where).values(values)).rowcount > 0


LAST = (table.c.trial_number == 0) & (table.c.attempt == 2)
FIRST = (table.c.trial_number == 0) & (table.c.attempt == 1)


def left_running(stage: Stage) -> None:
    change(stage, LAST, state="RUNNING", end_reason=None)


def began_too_early(stage: Stage) -> None:
    change(stage, LAST, started_at=min(r.created_at for r in stage.runs()))


def run_again_though_done(stage: Stage) -> None:
    change(stage, FIRST, state="COMPLETE", end_reason="finished")


def forgotten(stage: Stage) -> None:
    with transaction(stage.database) as connection:
        gone = sa.select(table.c.run_id).where(table.c.trial_number == 1)
        for t in (points, predictions, table):
            connection.execute(sa.delete(t).where(t.c.run_id.in_(gone)))


def another_value(stage: Stage) -> None:
    run = next(run for run in stage.runs() if run.trial_number == 1)
    assert run.result is not None
    change(stage, table.c.run_id == run.run_id, result=run.result.model_copy(update={"value": 0.1}).model_dump_json())


def failed_too_soon(stage: Stage) -> None:
    change(stage, LAST, state="FAIL", end_reason="lease_expired")


def left_in_an_outbox(stage: Stage) -> None:
    (stage.output / "audited" / "outbox-x.jsonl").write_text("whose it is\nsomething\n")


def said_and_not_kept(stage: Stage) -> None:
    log = stage.fleet.logs[0]
    log.write_text(log.read_text() + "12:00:00 I run 0123abcd trial 7 ended finished with 0.9 after 400 rows\n")


@pytest.mark.parametrize(
    ("sabotage", "rule"),
    [
        (left_running, "no run is left running"),
        (began_too_early, "run by two at once"),
        (run_again_though_done, "ended exactly once"),
        (forgotten, "no trial was lost"),
        (another_value, "Optuna and our rows agree"),
        (failed_too_soon, "only what may fail failed"),
        (left_in_an_outbox, "no result was lost"),
        (said_and_not_kept, "no result was lost"),
    ],
)
def test_a_broken_rule_is_found(stage: Stage, sabotage: Callable[[Stage], None], rule: str) -> None:
    sabotage(stage)
    assert any(rule in sentence for sentence in stage.broken()), stage.broken()


def test_a_late_result_is_a_kept_one(stage: Stage) -> None:
    run = next(run for run in stage.runs() if run.trial_number == 1)
    assert run.result is not None
    late = run.result.model_dump_json()
    change(stage, table.c.run_id == run.run_id, state="FAIL", end_reason="crashed", result=None, late_result=late)
    assert not any("no result was lost" in sentence for sentence in stage.broken())


def test_a_trial_that_optuna_left_running_is_found(stage: Stage) -> None:
    storage = optuna.storages.RDBStorage(stage.database.url.render_as_string(hide_password=False))
    optuna.load_study(study_name="audited", storage=storage).ask()
    storage.engine.dispose()
    assert any("no run is left running" in sentence for sentence in stage.broken())
