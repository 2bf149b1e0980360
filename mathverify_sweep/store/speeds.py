"""How fast each worker is, as it was measured before it trained: what its work is held against. Knows no arithmetic."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from mathverify_sweep.store.database import insert, reading, transaction
from mathverify_sweep.store.tables import runs, speeds


def record(engine: Engine, worker_id: str, rates: str) -> None:
    """Keep a worker's `Rates` (JSON); said again, it changes nothing."""
    with transaction(engine) as connection:
        statement = insert(connection, speeds).values(worker_id=worker_id, rates=rates)
        connection.execute(statement.on_conflict_do_nothing())


def of_study(engine: Engine, study_name: str) -> dict[str, str]:
    """`Rates` (JSON) of the study's workers, by worker id, as far as they were measured."""
    workers = sa.select(runs.c.worker_id).where(runs.c.study_name == study_name)
    with reading(engine) as connection:
        found = connection.execute(sa.select(speeds).where(speeds.c.worker_id.in_(workers))).all()
    return {row.worker_id: row.rates for row in found}
