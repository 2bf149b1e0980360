"""Promotions in the database: the stages of one trial's long run, recorded once, each waiting for what it builds on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import PlannedStage, RunSpec
from mathverify_sweep.states import RunState
from mathverify_sweep.store import endings
from mathverify_sweep.store.database import insert, transaction
from mathverify_sweep.store.records import new_id, waiting
from mathverify_sweep.store.tables import promotions as table
from mathverify_sweep.store.tables import runs


@dataclass(frozen=True, slots=True)
class PromotionRecord:
    """A promotion; `run_ids` are its stages in order, each by its last attempt."""

    promotion_id: str
    study_name: str
    trial_number: int
    plan: str
    created_at: datetime
    run_ids: tuple[str, ...]


def record(
    engine: Engine, study_name: str, trial_number: int, plan: str, stages: Sequence[PlannedStage], now: datetime
) -> tuple[str, bool]:
    """Queue the stages of a promotion, all or none; (promotion_id, True), or (its id, False) when it is there already.

    What a stage builds on becomes run ids, in its row and in its spec.
    """
    promotion_id = new_id()
    values = {
        "promotion_id": promotion_id,
        "study_name": study_name,
        "trial_number": trial_number,
        "plan": plan,
        "created_at": now,
    }
    with transaction(engine) as connection:
        statement = insert(connection, table).values(values).on_conflict_do_nothing()
        if connection.execute(statement.returning(table.c.promotion_id)).first() is not None:
            connection.execute(sa.insert(runs), _rows(stages, now, promotion_id))
            return promotion_id, True
        same = (table.c.study_name == study_name) & (table.c.trial_number == trial_number) & (table.c.plan == plan)
        there: str = connection.execute(sa.select(table.c.promotion_id).where(same)).scalar_one()
        return there, False


def promotions(engine: Engine, study_name: str) -> list[PromotionRecord]:
    """All promotions of a study, the oldest first."""
    with transaction(engine) as connection:
        query = sa.select(table).where(table.c.study_name == study_name)
        rows = connection.execute(query.order_by(table.c.created_at, table.c.promotion_id)).all()
        attempts = connection.execute(
            sa.select(runs.c.promotion_id, runs.c.stage, runs.c.run_id)
            .where(runs.c.study_name == study_name, runs.c.promotion_id.is_not(None))
            .order_by(runs.c.stage, runs.c.attempt)
        ).all()
    stages: dict[str, dict[int, str]] = {row.promotion_id: {} for row in rows}
    for attempt in attempts:
        stages[attempt.promotion_id][attempt.stage] = attempt.run_id
    return [PromotionRecord(**row._mapping, run_ids=tuple(stages[row.promotion_id].values())) for row in rows]


def resume(engine: Engine, promotion_id: str, now: datetime) -> tuple[str, ...]:
    """Queue the stages of a promotion that failed once more, with a clean count of failures; their new run ids.

    Said of a promotion in which nothing failed, or said twice, it does nothing.
    """
    new_ids: list[str] = []
    with transaction(engine) as connection:
        known = sa.select(table).where(table.c.promotion_id == promotion_id)
        if connection.execute(known.with_for_update(key_share=True)).first() is None:
            raise StudyError(f"no promotion has the id {promotion_id!r}. `mvsweep promote` makes one.")
        # The last stage first, so that each finds those behind it waiting, and they follow it.
        for row in reversed(_last_attempts(connection, promotion_id)):
            if row.state == RunState.FAIL:
                new_ids.append(endings.again(connection, row, RunSpec.model_validate_json(row.spec), now, failures=0))
    return tuple(reversed(new_ids))


def _rows(stages: Sequence[PlannedStage], now: datetime, promotion_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for stage in stages:
        run_ids: list[str] = [row["run_id"] for row in rows]
        builds_on = {
            "start_from": tuple(run_ids[number] for number in stage.start_from),
            "goes_on_from": None if stage.goes_on_from is None else run_ids[stage.goes_on_from],
        }
        after = None if stage.after is None else run_ids[stage.after]
        rows.append(waiting(stage.spec.model_copy(update=builds_on), now, promotion_id=promotion_id, after_run=after))
    return rows


def _last_attempts(connection: Connection, promotion_id: str) -> list[sa.Row[Any]]:
    """One row a stage, in order."""
    attempts = connection.execute(
        sa.select(runs).where(runs.c.promotion_id == promotion_id).order_by(runs.c.stage, runs.c.attempt)
    )
    return list({row.stage: row for row in attempts}.values())
