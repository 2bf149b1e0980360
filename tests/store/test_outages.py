"""Claims about a database that goes away: what that is called, and that nothing broken outlives it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Engine

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import StorageError, StorageUnavailable
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, RunState, Verdict
from mathverify_sweep.store import studies
from mathverify_sweep.store.database import connect, rest, transaction, upgrade
from mathverify_sweep.store.outages import is_away
from mathverify_sweep.store.studies import StudyRecord
from mathverify_sweep.study.study import StudyHandle, create, open_study
from tests.own_server import OwnServer, own_server

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POSTGRES = sa.make_url("postgresql+psycopg://bo@h/d")
RECORD = StudyRecord("s", "{}", "f", None, None, NOW)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with own_server() as server:
        yield server


@pytest.fixture
def handle(server: OwnServer) -> Iterator[StudyHandle]:
    """An open study on a server that may be stopped."""
    config = SweepConfig.model_validate(
        {
            "study": f"s{server.scalar('SELECT count(*) FROM mv_studies')}",
            "search_space": {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}},
            "data": {"train_rows": 800},
        }
    )
    engine = connect(server.url)
    create(engine, config, "f", NOW)
    with open_study(engine, config.study) as handle:
        yield handle
    engine.dispose()


def trouble(original: Exception, kind: type[exc.DBAPIError] = exc.OperationalError) -> exc.DBAPIError:
    """An error as SQLAlchemy raises it."""
    return kind("SELECT 1", {}, original)


@pytest.mark.parametrize(
    ("state", "away"),
    [
        ("53300", True),  # too many connections
        ("53100", True),  # disk full
        ("53200", True),  # out of memory
        ("57P01", True),  # the administrator ends the connection
        ("57P03", True),  # starting up
        ("57014", True),  # statement_timeout
        ("08006", True),  # connection failure
        ("40P01", True),  # deadlock
        ("40001", True),  # cannot serialise
        ("55P03", True),  # lock_timeout
        ("25006", True),  # read only: failing over, or its disk is full
        ("58030", True),  # input/output error
        ("57P04", False),  # the database was dropped
        ("28P01", False),  # wrong password
        ("42P01", False),  # no such table
        ("42501", False),  # no right to
        ("23505", False),  # unique violation
        ("22021", False),  # a character that it does not take
    ],
)
def test_postgresqls_state_says_whether_later_may_help(state: str, away: bool) -> None:
    original = psycopg.errors.lookup(state)("…")
    assert is_away(POSTGRES, trouble(original, exc.DBAPIError)) is away


@pytest.mark.parametrize(
    ("said", "away"),
    [
        ("connection refused\n\tIs the server running on that host and accepting TCP/IP connections?", True),
        ('connection to socket "/x/.s.PGSQL.5432" failed: No such file or directory', True),
        ("FATAL:  sorry, too many clients already", True),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", True),
        ("FATAL:  the database system is starting up", True),
        ("could not translate host name: Temporary failure in name resolution", True),
        ("server closed the connection unexpectedly", True),
        ("the connection is lost", True),
        ('FATAL:  password authentication failed for user "bo"', False),
        ("fe_sendauth: no password supplied", False),
        ('FATAL:  database "d" does not exist', False),
        ('FATAL:  role "bo" does not exist', False),
        ("FATAL:  no pg_hba.conf entry for host", False),
        ("SSL error: certificate verify failed", False),
    ],
)
def test_before_there_is_a_connection_the_text_says_it(said: str, away: bool) -> None:
    assert is_away(POSTGRES, trouble(psycopg.OperationalError(said))) is away


def test_a_pool_that_is_used_up_is_away_and_a_mistake_of_ours_is_not() -> None:
    assert is_away(POSTGRES, exc.TimeoutError())
    assert not is_away(POSTGRES, exc.ArgumentError("…"))


def test_a_locked_sqlite_file_is_away_until_it_is_free(sqlite: Engine) -> None:
    with transaction(sqlite) as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 10")  # of the one connection of the pool
    with closing(sqlite3.connect(sqlite.url.database or "", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable, match="cannot be used: database is locked"):
            studies.create(sqlite, RECORD)
    assert studies.create(sqlite, RECORD)


def test_a_full_disk_under_sqlite_is_away_until_there_is_room(sqlite: Engine) -> None:
    with transaction(sqlite) as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")  # what a full disk does, said by SQLite itself
    large = StudyRecord("s", "x" * 1_000_000, "f", None, None, NOW)
    with pytest.raises(StorageUnavailable, match="disk is full"):
        studies.create(sqlite, large)
    with transaction(sqlite) as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    assert studies.create(sqlite, large)


def test_a_file_that_is_no_database_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to have a header\n" * 10)
    with pytest.raises(StorageError) as caught:
        upgrade(connect(f"sqlite:///{tmp_path}/text"))
    assert not isinstance(caught.value, StorageUnavailable)


def test_a_missing_database_and_a_missing_role_are_refusals(server: OwnServer) -> None:
    for url in (sa.make_url(server.url).set(database="nowhere"), sa.make_url(server.url).set(username="nobody")):
        with pytest.raises(StorageError) as caught:
            upgrade(connect(url.render_as_string(hide_password=False)))
        assert not isinstance(caught.value, StorageUnavailable), caught.value


def test_an_open_study_outlives_a_server_that_is_stopped_and_started(server: OwnServer, handle: StudyHandle) -> None:
    engine = connect(server.url)
    asked = handle.ask()
    assert asked is not None
    calls = (
        handle.ask,
        lambda: handle.report(asked.trial_number, 100, 0.5),
        lambda: handle.tell(asked.trial_number, RunResult(end_reason=EndReason.FINISHED, value=0.5)),
        handle.trials,
        lambda: handle.reconcile(0.0, 60.0),
        lambda: studies.names(engine),
    )
    server.stop()
    for _ in range(2):
        for call in calls:
            with pytest.raises(StorageUnavailable):
                call()
    server.start()
    assert handle.report(asked.trial_number, 100, 0.5) is Verdict.CONTINUE
    assert handle.config.study in studies.names(engine)
    handle.tell(asked.trial_number, RunResult(end_reason=EndReason.FINISHED, value=0.5))
    assert handle.trials()[asked.trial_number].state is RunState.COMPLETE
    engine.dispose()


def test_a_connection_that_was_cut_between_two_calls_is_not_noticed(server: OwnServer, handle: StudyHandle) -> None:
    for _ in range(3):
        asked = handle.ask()
        server.cut()
        assert asked is not None
        assert handle.report(asked.trial_number, 100, 0.5) is Verdict.CONTINUE
        server.cut()
        assert handle.reconcile(0.0, 60.0) == []


def test_a_connection_that_is_cut_within_a_transaction_is_unavailable_once(server: OwnServer) -> None:
    engine = connect(server.url)

    def work() -> None:
        with transaction(engine) as connection:
            connection.exec_driver_sql("SELECT 1")
            server.cut()
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(StorageUnavailable):
        work()
    assert studies.names(engine) is not None
    engine.dispose()


def test_a_row_that_another_transaction_holds_is_waited_for_in_bounds(server: OwnServer) -> None:
    ours, other = connect(server.url), connect(server.url)
    with transaction(ours) as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "30s"
        assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "1min"
    impatient = sa.text("SET LOCAL lock_timeout = 10; SELECT * FROM mv_studies")
    with transaction(other) as holder:
        holder.exec_driver_sql("LOCK TABLE mv_studies")
        with pytest.raises(StorageUnavailable, match="lock timeout"), transaction(ours) as connection:
            connection.execute(impatient)
    for engine in (ours, other):
        engine.dispose()


def test_one_connection_serves_us_and_optuna_and_none_while_at_rest(server: OwnServer, handle: StudyHandle) -> None:
    engine = handle._engine
    rest(engine)
    assert server.connections() == 0
    handle.ask()
    studies.names(engine)
    handle.trials()
    assert server.connections() == 1
    handle.rest()
    rest(engine)
    assert server.connections() == 0
    assert handle.ask() is not None


def test_resting_leaves_a_transaction_of_another_thread_alone(server: OwnServer) -> None:
    engine = connect(server.url)
    with transaction(engine) as connection:
        rest(engine)
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    assert server.connections() == 1
    rest(engine)
    assert server.connections() == 0


@pytest.fixture
def sqlite(tmp_path: Path, migrated_sqlite: bytes) -> Iterator[Engine]:
    """A SQLite file with our tables."""
    (tmp_path / "x.sqlite3").write_bytes(migrated_sqlite)
    engine = connect(f"sqlite:///{tmp_path}/x.sqlite3")
    yield engine
    engine.dispose()
