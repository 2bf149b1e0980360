"""Rows of Optuna's own tables, read and written in plain SQL where its object mapper costs too much.

A worker asks for all trials several times per trial, and of those that run Optuna reads everything each time: of 64
workers' active time a third was spent in it. Knows the columns (Optuna 5.0), not what they mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from mathverify_sweep.store.database import insert, reading, transaction

_MOST_IDS = 5_000
"""Ids in one IN list; SQLite takes no more than 32,766 values, and older ones 999."""


def _table(name: str, *columns: str, **typed: Any) -> sa.TableClause:
    return sa.table(name, *map(sa.column, columns), *(sa.column(column, kind) for column, kind in typed.items()))


_trials = _table(
    "trials", "trial_id", "number", "study_id", "state", datetime_start=sa.DateTime(), datetime_complete=sa.DateTime()
)
_params = _table("trial_params", "param_id", "trial_id", "param_name", "param_value", "distribution_json")
_values = _table("trial_values", "trial_value_id", "trial_id", "objective", "value", "value_type")
_steps = _table(
    "trial_intermediate_values",
    "trial_intermediate_value_id",
    "trial_id",
    "step",
    "intermediate_value",
    "intermediate_value_type",
)
_user_attrs = _table("trial_user_attributes", "trial_user_attribute_id", "trial_id", "key", "value_json")
_system_attrs = _table("trial_system_attributes", "trial_system_attribute_id", "trial_id", "key", "value_json")

AttributeKind = Literal["user", "system"]
_ENDED = ("COMPLETE", "PRUNED", "FAIL")
_SHAPE: Mapping[str, Any] = {
    "number": sa.Integer,
    "name": sa.Text,
    "figure": sa.Float,
    "text": sa.Text,
    "started": sa.DateTime,
    "completed": sa.DateTime,
}
"""The columns that a row of any of the six tables is read as."""


@dataclass
class TrialRow:
    """One trial as it is stored: names of states and kinds of values, JSON as text, times in UTC without a zone."""

    trial_id: int
    number: int
    state: str
    started: datetime | None
    completed: datetime | None
    params: list[tuple[str, float, str]] = field(default_factory=list)
    values: list[tuple[int, float | None, str]] = field(default_factory=list)
    steps: list[tuple[int, float | None, str]] = field(default_factory=list)
    user_attrs: list[tuple[str, str]] = field(default_factory=list)
    system_attrs: list[tuple[str, str]] = field(default_factory=list)


def trial_rows(engine: Engine, study_id: int, newer_than: int, also: Collection[int]) -> list[TrialRow]:
    """The trials of a study whose id is above `newer_than`, and those of the ids `also`, by id."""
    if newer_than < 0 or len(also) > _MOST_IDS:
        found = _read(engine, _of_study(), study=study_id)
        return [row for row in found if row.trial_id > newer_than or row.trial_id in also]
    return _read(engine, _new_and_also(engine.dialect.name), study=study_id, newer=newer_than, also=sorted(also))


def trial_row(engine: Engine, trial_id: int) -> TrialRow | None:
    """One trial; None when there is none of that id."""
    return next(iter(_read(engine, _one(), id=trial_id)), None)


def made_by(engine: Engine, version: str) -> bool:
    """Whether the tables are there, and Optuna `version` itself has made or upgraded them."""
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table("version_info"):
            return False
        info = sa.table("version_info", sa.column("library_version"))
        return connection.scalar(sa.select(info.c.library_version)) == version


def save_attrs(engine: Engine, kind: AttributeKind, trial_id: int, attributes: Mapping[str, str]) -> bool:
    """Set attributes (JSON) of a trial that has not ended, all in one transaction; False when it has."""
    with transaction(engine) as connection:
        state = sa.select(_trials.c.state).where(_trials.c.trial_id == trial_id)
        if connection.scalar(state.with_for_update()) in _ENDED:
            return False
        table = sa.table(f"trial_{kind}_attributes", *map(sa.column, ("trial_id", "key", "value_json")))
        rows = [{"trial_id": trial_id, "key": key, "value_json": value} for key, value in attributes.items()]
        statement = insert(connection, table).values(rows)  # type: ignore[arg-type]  # a table without its types
        new = {"value_json": statement.excluded.value_json}
        connection.execute(statement.on_conflict_do_update(index_elements=["trial_id", "key"], set_=new))
    return True


def _read(engine: Engine, statement: sa.CompoundSelect[Any], **values: Any) -> list[TrialRow]:
    """Whole trials in one statement, six tables at once: one snapshot, and one round trip instead of eight."""
    found: dict[int, TrialRow] = {}
    with reading(engine) as connection:
        rows = connection.execute(statement, values).all()
    for part, trial_id, _id, number, name, figure, text, started, completed in rows:
        if part == 0:
            found[trial_id] = TrialRow(trial_id, number, name, started, completed)
        elif part == 1:
            found[trial_id].params.append((name, figure, text))
        elif part == 2:
            found[trial_id].values.append((number, figure, name))
        elif part == 3:
            found[trial_id].steps.append((number, figure, name))
        elif part == 4:
            found[trial_id].user_attrs.append((name, text))
        else:
            found[trial_id].system_attrs.append((name, text))
    return list(found.values())


@cache
def _one() -> sa.CompoundSelect[Any]:
    return _whole_trials(_trials.c.trial_id == sa.bindparam("id"))


@cache
def _of_study() -> sa.CompoundSelect[Any]:
    return _whole_trials(_trials.c.study_id == sa.bindparam("study"))


@cache
def _new_and_also(dialect: str) -> sa.CompoundSelect[Any]:
    if dialect == "postgresql":  # one value, so the text stays the same, and short enough to be remembered
        also = _trials.c.trial_id == sa.any_(sa.bindparam("also", type_=sa.ARRAY(sa.Integer)))
    else:
        also = _trials.c.trial_id.in_(sa.bindparam("also", expanding=True))
    new = _trials.c.trial_id > sa.bindparam("newer")
    return _whole_trials((_trials.c.study_id == sa.bindparam("study")) & (new | also))


def _whole_trials(wanted: sa.ColumnElement[bool]) -> sa.CompoundSelect[Any]:
    """Rows of all six tables in one shape, the trials first, each table in the order of its ids."""
    parts = [
        _part(0, _trials, number=_trials.c.number, name=_trials.c.state),
        _part(1, _params, name=_params.c.param_name, figure=_params.c.param_value, text=_params.c.distribution_json),
        _part(2, _values, number=_values.c.objective, name=_values.c.value_type, figure=_values.c.value),
        _part(
            3,
            _steps,
            number=_steps.c.step,
            name=_steps.c.intermediate_value_type,
            figure=_steps.c.intermediate_value,
        ),
        _part(4, _user_attrs, name=_user_attrs.c.key, text=_user_attrs.c.value_json),
        _part(5, _system_attrs, name=_system_attrs.c.key, text=_system_attrs.c.value_json),
    ]
    return sa.union_all(*(part.where(wanted) for part in parts)).order_by("part", "id")


def _part(part: int, table: sa.TableClause, **columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    nothing = {name: sa.cast(sa.null(), kind) for name, kind in _SHAPE.items()}
    times = {"started": _trials.c.datetime_start, "completed": _trials.c.datetime_complete} if part == 0 else {}
    # Names of states and kinds of values are enumerations on PostgreSQL.
    given = {name: sa.cast(column, sa.Text) if name == "name" else column for name, column in columns.items()}
    shape = [column.label(name) for name, column in (nothing | given | times).items()]
    source = table if part == 0 else table.join(_trials, _trials.c.trial_id == table.c.trial_id)
    first = sa.literal_column(str(part), sa.Integer).label("part")
    return sa.select(first, table.c.trial_id, next(iter(table.c)).label("id"), *shape).select_from(source)
