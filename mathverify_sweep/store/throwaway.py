"""A database to hurt, beside the one that a user has: the same server or file system, and gone afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from mathverify_sweep.store.database import connect, transaction

_POSTGRES_PORT = 5432


@contextmanager
def throwaway(url: str) -> Iterator[str]:
    """The URL of an empty database: a SQLite file in the same folder, or a schema of its own in the same database.

    The URL holds the password. Raises StorageError when the account may not create a schema.
    """
    engine = connect(url)
    name = f"mvsweep_chaos_{secrets.token_hex(4)}"
    try:
        if engine.dialect.name == "sqlite":
            file = Path(engine.url.database or "").with_name(f"{name}.sqlite3")
            yield f"sqlite:///{file}"
            for part in (file, *file.parent.glob(f"{file.name}-*")):
                part.unlink(missing_ok=True)
            return
        with transaction(engine) as connection:
            connection.execute(sa.schema.CreateSchema(name))
        try:
            yield _shown(_with_option(engine.url, f"-csearch_path={name}"))
        finally:
            with transaction(engine) as connection:
                connection.execute(sa.schema.DropSchema(name, cascade=True))
    finally:
        engine.dispose()


def server_address(url: str) -> tuple[str, int] | None:
    """Host (or the folder of its socket) and port of a PostgreSQL server; None for SQLite."""
    parsed = connect(url).url
    if parsed.get_backend_name() == "sqlite":
        return None
    host, port = parsed.host or _said(parsed, "host") or "127.0.0.1", parsed.port or _said(parsed, "port")
    return host, int(port or _POSTGRES_PORT)


def through(url: str, port: int) -> str:
    """`url`, reached at a port of 127.0.0.1; the server's certificate is still held against its own name."""
    parsed = connect(url).url
    host = parsed.host or _said(parsed, "host") or "127.0.0.1"
    named = {} if host.startswith("/") else {"hostaddr": "127.0.0.1"}
    plain = parsed.difference_update_query(["host", "port"]).set(port=port)
    return _shown(plain.set(host=host if named else "127.0.0.1").update_query_dict(named))


def _said(url: URL, key: str) -> str | None:
    value = url.query.get(key)
    return value if isinstance(value, str) else None


def _with_option(url: URL, option: str) -> URL:
    before = _said(url, "options")
    return url.update_query_dict({"options": f"{before} {option}" if before else option})


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=False)
