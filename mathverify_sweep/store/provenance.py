"""What made a run and what was made from it: the code of its worker, and the folders that it was exported to."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from mathverify_sweep.store.database import insert, reading, transaction
from mathverify_sweep.store.records import new_id
from mathverify_sweep.store.tables import environments, exports


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """A model that a run was exported to. `flipped` of `rows` verdicts changed by merging; both None for an adapter."""

    run_id: str
    folder: str
    merged: bool
    dtype: str
    rows: int | None
    flipped: int | None
    created_at: datetime


def environment_id(described: str) -> str:
    """The name of an environment: the same for the same code, on every host."""
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def record_environment(engine: Engine, described: str) -> None:
    """Keep what `environment.described` says, under its id; said again, it changes nothing."""
    values = {"environment_id": environment_id(described), "described": described}
    with transaction(engine) as connection:
        connection.execute(insert(connection, environments).values(values).on_conflict_do_nothing())


def environment(engine: Engine, name: str | None) -> str | None:
    """What `environment.described` said; None for runs of an earlier version."""
    with reading(engine) as connection:
        found: str | None = connection.scalar(
            sa.select(environments.c.described).where(environments.c.environment_id == name)
        )
    return found


def record_export(engine: Engine, record: ExportRecord) -> None:
    """Keep that a run was exported."""
    with transaction(engine) as connection:
        connection.execute(sa.insert(exports).values(export_id=new_id(), **asdict(record)))


def exports_of(engine: Engine, run_id: str) -> list[ExportRecord]:
    """What a run was exported to, the oldest first."""
    with reading(engine) as connection:
        query = sa.select(exports).where(exports.c.run_id == run_id).order_by(exports.c.created_at)
        rows = connection.execute(query).all()
    return [ExportRecord(**{name: getattr(row, name) for name in ExportRecord.__slots__}) for row in rows]
