"""Opening, upgrading and sharing the database; and what is said when that fails."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import Engine

from mathverify_sweep import paths
from mathverify_sweep.errors import StorageError
from mathverify_sweep.store import studies, tables
from mathverify_sweep.store.database import connect, driver_url, prepare_sqlite, safe_url, transaction, upgrade

SECRET = "planted-Secret7"
OUR_TABLES = {
    "mv_studies",
    "mv_promotions",
    "mv_environments",
    "mv_runs",
    "mv_points",
    "mv_predictions",
    "mv_exports",
    "mv_speeds",
    "mvsweep_alembic_version",
}


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def message_of(url: str) -> str:
    """What a user reads when `url` cannot be used, with all that a traceback would print."""
    with pytest.raises(StorageError) as caught:
        upgrade(connect(url))
    printed = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in printed
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_migrations_lead_to_the_tables_in_the_code(engine: Engine) -> None:
    with transaction(engine) as connection:
        options = {"include_name": lambda name, kind, _: kind != "table" or name.startswith("mv_")}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata) == []


def test_the_schema_file_is_what_the_tables_generate() -> None:
    told = (paths.storage_folder() / "schema.sql").read_text(encoding="utf-8")
    assert told == tables.schema_sql(), "run: python -m mathverify_sweep.store.tables > storage/schema.sql"


def test_alembics_own_command_finds_the_database_up_to_date(engine: Engine) -> None:
    command = [str(Path(sys.executable).parent / "alembic"), "-c", str(paths.storage_folder() / "alembic.ini"), "check"]
    environment = os.environ | {"OPTUNA_STORAGE": url_of(engine), "PYTHONPATH": str(paths.storage_folder().parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "No new upgrade operations detected."), done.stderr


def test_a_backup_taken_while_a_worker_writes_is_a_database(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path}/x.sqlite3")
    upgrade(engine)
    backup = sqlite3.connect(tmp_path / "x.sqlite3")
    backup.execute(f"VACUUM INTO '{tmp_path}/backup.sqlite3'")
    backup.close()
    copy = connect(f"sqlite:///{tmp_path}/backup.sqlite3")
    upgrade(copy)
    assert set(sa.inspect(copy).get_table_names()) == OUR_TABLES
    for each in (engine, copy):
        each.dispose()


def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    engine = connect(database_url)
    upgrade(engine)
    upgrade(engine)
    assert set(sa.inspect(engine).get_table_names()) == OUR_TABLES
    engine.dispose()


def test_workers_that_start_at_once_upgrade_once(database_url: str) -> None:
    code = "import sys; from mathverify_sweep.store.database import connect, upgrade; upgrade(connect(sys.argv[1]))"
    started = [
        subprocess.Popen([sys.executable, "-c", code, database_url], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=60)[1] for process in started] == [""] * 4
    engine = connect(database_url)
    with transaction(engine) as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM mvsweep_alembic_version").all() == [
            (tables.REVISION,)
        ]
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.exec_driver_sql("UPDATE mvsweep_alembic_version SET version_num = '9999'")
    with pytest.raises(StorageError, match=r"revision 9999.*up to 0004.*Install that version here, or restore"):
        upgrade(engine)


@pytest.mark.parametrize("ours_first", [True, False])
def test_optuna_and_we_share_one_database_in_either_order(database_url: str, ours_first: bool) -> None:
    engine = connect(database_url)
    if ours_first:
        upgrade(engine)
    storage = optuna.storages.RDBStorage(driver_url(database_url))
    prepare_sqlite(storage.engine)
    optuna.create_study(study_name="shared", storage=storage)
    upgrade(engine)
    again = optuna.storages.RDBStorage(driver_url(database_url))
    assert [study.study_name for study in again.get_all_studies()] == ["shared"]
    assert set(sa.inspect(engine).get_table_names()) > OUR_TABLES | {"studies", "trials", "alembic_version"}
    for each in (engine, storage.engine, again.engine):
        each.dispose()


def test_the_optuna_command_reads_our_database(engine: Engine) -> None:
    url = driver_url(url_of(engine))
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(study_name="shared", storage=storage)
    storage.engine.dispose()
    command = [str(Path(sys.executable).parent / "optuna"), "studies", "--storage", url, "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert [study["name"] for study in json.loads(done.stdout)] == ["shared"]


def test_a_sqlite_transaction_takes_the_write_lock_at_once(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path}/new/folder/x.sqlite3")
    with engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000
        impatient = sa.create_engine(engine.url, connect_args={"timeout": 0})
        with impatient.connect() as other, pytest.raises(sa.exc.OperationalError, match="locked"):
            other.exec_driver_sql("BEGIN IMMEDIATE")
        impatient.dispose()
    engine.dispose()


def test_preparing_an_engine_twice_or_postgresql_is_harmless(engine: Engine) -> None:
    prepare_sqlite(engine)
    prepare_sqlite(engine)
    with transaction(engine) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.runs)) == 0


def test_times_come_back_as_utc(engine: Engine) -> None:
    noon_in_kiritimati = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=14)))
    row = {"name": "s", "config": "{}", "data_fingerprint": "f", "created_at": noon_in_kiritimati}
    with transaction(engine) as connection:
        connection.execute(sa.insert(tables.studies).values(row))
        back = connection.execute(sa.select(tables.studies.c.created_at)).scalar_one()
    assert back == noon_in_kiritimati
    assert back.tzinfo is UTC


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    row = {"name": "s", "config": "{}", "data_fingerprint": "f", "created_at": datetime(2026, 1, 1)}
    with pytest.raises(StorageError, match="times must be aware"), transaction(engine) as connection:
        connection.execute(sa.insert(tables.studies).values(row))


def test_text_that_no_database_takes_is_stored_without_it(engine: Engine) -> None:
    row = {"name": "s", "config": "a\0b\ud800c", "data_fingerprint": "f", "created_at": datetime.now(UTC)}
    with transaction(engine) as connection:
        connection.execute(sa.insert(tables.studies).values(row))
        assert connection.scalar(sa.select(tables.studies.c.config)) == "a\ufffdb?c"


def test_a_refused_statement_does_not_quote_its_values(engine: Engine) -> None:
    row = {"run_id": SECRET, "rows_seen": 1}
    with pytest.raises(StorageError, match="refused") as caught, transaction(engine) as connection:
        connection.execute(sa.insert(tables.predictions).values(run_id=SECRET, split="test", log_odds=None))
    assert "mv_predictions" in str(caught.value)
    with pytest.raises(StorageError) as caught, transaction(engine) as connection:
        connection.execute(sa.insert(tables.points), [row, row])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://bo:%s@127.0.0.1:1/x", "bo:[*]{3}@127.0.0.1:1/x cannot be used: .*refused"),
        ("postgres://bo:%s@127.0.0.1:1/x", "Check its URL, that it runs"),
        ("postgresql://bo:p@%s/w:x@h/d", "a database is named by a URL like .*got postgresql.*://bo:[*]{3}@h/d"),
        ("postgresql://bo:%s@h:port/d", "a database is named by a URL like|cannot be used"),
        ("postgresql://h/d?user=bo&password=%s", "a password goes before the host"),
        ("mysql://bo:%s@h/d", "SQLite or PostgreSQL, got mysql"),
        ("postgresql+psycopg2://bo:%s@h/d", "SQLite or PostgreSQL, got postgresql.psycopg2"),
        ("host=h password=%s", "a database is named by a URL like .*password=[*]{3}"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_in_one_line_without_its_password(url: str, shown: str) -> None:
    message = message_of(url % SECRET)
    assert re.search(shown, message), message


def test_a_sqlite_file_that_cannot_be_opened_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to have a header\n" * 10)
    assert "cannot be used: unable to open" in message_of(f"sqlite:///{tmp_path}")
    assert "not a database" in message_of(f"sqlite:///{tmp_path}/text")
    assert "cannot make the folder" in message_of(f"sqlite:///{tmp_path}/text/x.sqlite3")
    assert "cannot be in memory" in message_of("sqlite://")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://bo:s3cret@h:5432/d", "postgresql://bo:***@h:5432/d"),
        ("postgresql+psycopg://bo:a@b:c/d@h/d?sslmode=require", "postgresql+psycopg://bo:***@h/d?sslmode=require"),
        ("postgresql://bo@h/d", "postgresql://bo@h/d"),
        (
            "postgresql://h/d?user=bo&password=s3cret&sslmode=require",
            "postgresql://h/d?user=bo&password=***&sslmode=require",
        ),
        ("sqlite:////tmp/a:b@c/x.sqlite3", "sqlite:////tmp/a:b@c/x.sqlite3"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_shown_url_has_no_password(url: str, masked: str) -> None:
    assert safe_url(url) == masked


def test_an_engine_does_not_show_its_password() -> None:
    engine = connect(f"postgresql://bo:{SECRET}@127.0.0.1:1/x")
    assert SECRET not in repr(engine) + str(engine.url)
    assert SECRET in driver_url(f"postgres://bo:{SECRET}@127.0.0.1:1/x")


def test_psycopg_is_not_imported_for_sqlite(tmp_path: Path) -> None:
    code = (
        "import sys; from mathverify_sweep.store.database import connect, upgrade; upgrade(connect(sys.argv[1]));"
        "print([name for name in sys.modules if name.startswith(('psycopg', 'torch', 'optuna'))])"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/x.sqlite3"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_on_sqlite_a_reader_waits_for_no_writer_and_sees_what_is_committed(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'r.sqlite3'}")
    upgrade(engine)
    began = time.monotonic()
    with transaction(engine) as writer:
        new = {"name": "s", "config": "{}", "data_fingerprint": "f", "created_at": datetime.now(UTC)}
        writer.execute(sa.insert(tables.studies).values(new))
        assert studies.names(engine) == []
        upgrade(engine)  # has nothing to do, and takes no lock to find out
    assert studies.names(engine) == ["s"]
    assert time.monotonic() - began < 10
    engine.dispose()
