"""Alembic's entry. mvsweep hands over its connection; from the command line the URL is OPTUNA_STORAGE.

The version table has a name of its own, since Optuna keeps its version in `alembic_version` of the same database.
"""

from __future__ import annotations

import os
from typing import Literal

import sqlalchemy as sa
from alembic import context
from sqlalchemy.engine import Connection

from mathverify_sweep.errors import StorageError
from mathverify_sweep.store.database import connect, transaction
from mathverify_sweep.store.tables import VERSION_TABLE, metadata


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=lambda name, kind, _parents: kind != "table" or (name or "").startswith("mv_"),
        render_item=_render,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


def _render(kind: str, item: object, _context: object) -> str | Literal[False]:
    """Write a type of ours as what it is in the database: a migration does not change with our code."""
    return f"sa.{item.impl!r}" if kind == "type" and isinstance(item, sa.TypeDecorator) else False


def _migrate_from_command_line() -> None:
    url = os.environ.get("OPTUNA_STORAGE")
    if not url:
        raise StorageError("set OPTUNA_STORAGE to the database's URL, e.g. sqlite:///mvsweep.sqlite3")
    with transaction(connect(url)) as connection:
        _migrate(connection)


_given = context.config.attributes.get("connection")
if _given is None:
    _migrate_from_command_line()
else:
    _migrate(_given)
