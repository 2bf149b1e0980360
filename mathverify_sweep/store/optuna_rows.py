"""Rows of Optuna's own tables, read and written in plain SQL where its object mapper costs too much.

A worker asks for all trials several times per trial, and of those that run Optuna reads everything each time: of 64
workers' active time a third was spent in it. Knows the columns (Optuna 5.0), not what they mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

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

_ENDED = ("COMPLETE", "PRUNED", "FAIL")


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
    wanted = _trials.c.study_id == study_id
    if newer_than >= 0 and len(also) <= _MOST_IDS:
        wanted &= (_trials.c.trial_id > newer_than) | _trials.c.trial_id.in_(sorted(also))
    with reading(engine) as connection:
        query = sa.select(_trials).where(wanted).order_by(_trials.c.trial_id)
        found = {
            row.trial_id: TrialRow(row.trial_id, row.number, row.state, row.datetime_start, row.datetime_complete)
            for row in connection.execute(query)
            if row.trial_id > newer_than or row.trial_id in also
        }
        if found:
            _fill(connection, found, wanted)
    return list(found.values())


def save_user_attrs(engine: Engine, trial_id: int, attributes: Mapping[str, str]) -> bool:
    """Set user attributes (JSON) of a trial that has not ended, all in one transaction; False when it has."""
    with transaction(engine) as connection:
        state = sa.select(_trials.c.state).where(_trials.c.trial_id == trial_id)
        if connection.scalar(state.with_for_update()) in _ENDED:
            return False
        table = sa.table("trial_user_attributes", *map(sa.column, ("trial_id", "key", "value_json")))
        rows = [{"trial_id": trial_id, "key": key, "value_json": value} for key, value in attributes.items()]
        statement = insert(connection, table).values(rows)  # type: ignore[arg-type]  # a table without its types
        new = {"value_json": statement.excluded.value_json}
        connection.execute(statement.on_conflict_do_update(index_elements=["trial_id", "key"], set_=new))
    return True


def _fill(connection: Connection, found: Mapping[int, TrialRow], wanted: sa.ColumnElement[bool]) -> None:
    parts = (
        (_params, "params", ("param_name", "param_value", "distribution_json")),
        (_values, "values", ("objective", "value", "value_type")),
        (_steps, "steps", ("step", "intermediate_value", "intermediate_value_type")),
        (_user_attrs, "user_attrs", ("key", "value_json")),
        (_system_attrs, "system_attrs", ("key", "value_json")),
    )
    for table, name, columns in parts:
        key = next(iter(table.c))
        joined = table.join(_trials, _trials.c.trial_id == table.c.trial_id)
        query = sa.select(table.c.trial_id, *(table.c[column] for column in columns)).select_from(joined)
        for trial_id, *figures in connection.execute(query.where(wanted).order_by(key)):
            if trial_id in found:
                getattr(found[trial_id], name).append(tuple(figures))
