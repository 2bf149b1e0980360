"""Studies in the database: what each was created with, its baselines, and whether it still hands out runs.

Refuses to create a study again with another configuration or other data: its trials could not be compared.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection, Engine

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import DataDrift, StudyError, shown
from mathverify_sweep.store.database import insert, reading, transaction
from mathverify_sweep.store.tables import studies

# Optuna's limit for the same name.
MAX_NAME_LENGTH = 512


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study. `config` and `baselines` are JSON; `stopped` says why it hands out no more runs, None while it does."""

    name: str
    config: str
    data_fingerprint: str
    baselines: str | None
    stopped: str | None
    created_at: datetime


def create(engine: Engine, record: StudyRecord) -> bool:
    """Store a new study; False when it is there already, the same.

    Raises StudyError when it is there with another configuration, DataDrift when it was created from other data.
    """
    if not 0 < len(record.name) <= MAX_NAME_LENGTH:
        raise StudyError(f"a study's name has 1 to {MAX_NAME_LENGTH} characters, got {len(record.name)}. Shorten it.")
    with transaction(engine) as connection:
        statement = insert(connection, studies).values(asdict(record)).on_conflict_do_nothing()
        if connection.execute(statement.returning(studies.c.name)).first() is not None:
            return True
    _refuse_another(record, get(engine, record.name))
    return False


def get(engine: Engine, name: str) -> StudyRecord:
    """The study of that name. Raises StudyError naming the nearest known one."""
    with reading(engine) as connection:
        row = connection.execute(sa.select(studies).where(studies.c.name == name)).first()
        known = [] if row else _names(connection)
    if row is None:
        raise unknown_study(name, known)
    return StudyRecord(**row._mapping)


def names(engine: Engine) -> list[str]:
    """All studies, the oldest first."""
    with reading(engine) as connection:
        return _names(connection)


def save_baselines(engine: Engine, name: str, baselines: str) -> bool:
    """Keep the study's baselines (JSON); False when it has some, which then stay."""
    with transaction(engine) as connection:
        missing = (studies.c.name == name) & studies.c.baselines.is_(None)
        return connection.execute(sa.update(studies).where(missing).values(baselines=baselines)).rowcount == 1


def stop(engine: Engine, name: str, reason: str) -> None:
    """Hand out no more runs. Those that run go on, those that wait keep waiting."""
    _set_stopped(engine, name, reason)


def resume(engine: Engine, name: str) -> None:
    """Hand out runs again."""
    _set_stopped(engine, name, None)


def unknown_study(name: str, known: list[str]) -> StudyError:
    """The error for a study that is not there."""
    nearest = difflib.get_close_matches(name, known, n=1)
    if nearest:
        return StudyError(f"no study is named {shown(name)} in this database. Did you mean {nearest[0]!r}?")
    there = f"It has: {', '.join(known[:10])}." if known else "It has none; `mvsweep create FILE` makes one."
    return StudyError(f"no study is named {shown(name)} in this database. {there}")


def _names(connection: Connection) -> list[str]:
    return list(connection.scalars(sa.select(studies.c.name).order_by(studies.c.created_at, studies.c.name)))


def _set_stopped(engine: Engine, name: str, reason: str | None) -> None:
    with transaction(engine) as connection:
        statement = sa.update(studies).where(studies.c.name == name).values(stopped=reason)
        known = None if connection.execute(statement).rowcount == 1 else _names(connection)
    if known is not None:
        raise unknown_study(name, known)


def _refuse_another(asked: StudyRecord, there: StudyRecord) -> None:
    changed = sorted(set(_differences(_full(asked.config), _full(there.config))))
    if changed:
        raise StudyError(
            f"study {asked.name!r} exists with another configuration (differs in {', '.join(changed[:5])}), and trials "
            "of two configurations cannot be compared. Give the file another name, or undo the change."
        )
    if asked.data_fingerprint != there.data_fingerprint:
        raise DataDrift(
            f"study {asked.name!r} was created from data with fingerprint {there.data_fingerprint[:12]}, this machine "
            f"reads {asked.data_fingerprint[:12]}. Restore the data, or give the file another name."
        )


def _full(config: str) -> object:
    """A stored sweep file with the defaults of keys that it does not have: those that came with a newer version."""
    try:
        return SweepConfig.model_validate_json(config).model_dump(mode="json")
    except ValidationError:  # of a version whose keys are not ours: compared as it is
        return json.loads(config)


def _differences(a: object, b: object, key: str = "") -> Iterator[str]:
    """The dotted keys under which two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in a.keys() | b.keys():
            yield from _differences(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif a != b:
        yield key or "all of it"
