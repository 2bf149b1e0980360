"""The tables, as SQLAlchemy Core sees them, and the DDL that people read.

`python -m mathverify_sweep.store.tables > storage/schema.sql` writes that DDL; the migrations lead to the same tables
(a test compares). Everything is prefixed `mv_`, because Optuna keeps its tables in the same database.
"""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement, SetColumnComment

VERSION_TABLE = "mvsweep_alembic_version"
REVISION = "0004"
"""The last migration, which leads to the tables below; a test holds it to the folder of migrations."""


class UtcTime(sa.TypeDecorator[datetime]):
    """An aware datetime, kept as UTC; SQLite has no time zones, so there it is put back on reading."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time that does not say its zone: two hosts would read it differently."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"times must be aware, got {value!r}. Use datetime.now(UTC).")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """UTC, whatever the session's time zone is."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class CleanText(sa.TypeDecorator[str]):
    """Text that both databases take: PostgreSQL refuses NUL, and neither takes half of a surrogate pair."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        """Replace what cannot be stored, rather than lose the row around it."""
        return None if value is None else value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


class Finite(sa.TypeDecorator[float]):
    """A float that is a number: NaN and infinity become NULL (SQLite does so with NaN, PostgreSQL never)."""

    impl = sa.Double
    cache_ok = True

    def process_bind_param(self, value: float | None, _dialect: Dialect) -> float | None:
        """See the class."""
        return None if value is None or not math.isfinite(value) else float(value)


metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)


def _column(name: str, kind: Any, *more: Any, null: bool = False, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, nullable=null, **options)


studies = sa.Table(
    "mv_studies",
    metadata,
    _column("name", CleanText, primary_key=True),
    _column("config", CleanText, comment="the sweep file with its defaults, JSON"),
    _column("data_fingerprint", CleanText),
    _column("baselines", CleanText, null=True, comment="JSON, computed once"),
    _column("stopped", CleanText, null=True, comment="why it hands out no more runs; NULL while it does"),
    _column("created_at", UtcTime),
)

promotions = sa.Table(
    "mv_promotions",
    metadata,
    _column("promotion_id", CleanText, primary_key=True),
    _column("study_name", CleanText, sa.ForeignKey("mv_studies.name")),
    _column("trial_number", sa.Integer),
    _column("plan", CleanText),
    _column("created_at", UtcTime),
    sa.UniqueConstraint("study_name", "trial_number", "plan"),
)

runs = sa.Table(
    "mv_runs",
    metadata,
    _column("position", sa.Integer, primary_key=True, comment="the order of the queue"),
    _column("run_id", CleanText, unique=True),
    _column("study_name", CleanText, sa.ForeignKey("mv_studies.name")),
    _column("promotion_id", CleanText, sa.ForeignKey("mv_promotions.promotion_id"), null=True),
    _column("trial_number", sa.Integer, null=True, comment="NULL: reserved, Optuna was not asked yet"),
    _column("stage", sa.Integer, null=True, comment="NULL: a trial"),
    _column("spec", CleanText, null=True, comment="RunSpec, JSON"),
    _column("state", CleanText),
    _column("end_reason", CleanText, null=True),
    _column("attempt", sa.Integer),
    _column("failures", sa.Integer, comment="failures of earlier attempts"),
    _column("continues", CleanText, null=True, comment="the run_id of the attempt before"),
    _column("after_run", CleanText, null=True, comment="the run_id that must have ended well"),
    _column("lease_token", CleanText, null=True, comment="whoever writes must know it"),
    _column("renewals", sa.Integer, comment="counts up while the worker lives"),
    _column("worker_id", CleanText, null=True),
    _column("host", CleanText, null=True),
    _column("pid", sa.Integer, null=True),
    _column("gpu", CleanText, null=True),
    _column("boot_id", CleanText, null=True, comment="where `pid` means something"),
    _column("process_start", sa.BigInteger, null=True, comment="clock ticks since boot: a pid is given again"),
    _column("job_id", CleanText, null=True, comment="the scheduler's"),
    _column("lease_seconds", Finite, null=True, comment="the lease period that its worker keeps to"),
    _column("environment_id", CleanText, null=True, comment="the code of its worker"),
    _column("created_at", UtcTime),
    _column("started_at", UtcTime, null=True),
    _column("renewed_at", UtcTime, null=True, comment="for people; expiry reads the counter"),
    _column("ended_at", UtcTime, null=True),
    _column("busy_seconds", Finite, null=True, comment="time on a GPU, once ended"),
    _column("result", CleanText, null=True, comment="RunResult without log-odds, JSON"),
    _column("late_result", CleanText, null=True, comment="RunResult that came after the lease was lost, JSON"),
    sa.Index(None, "study_name", "state"),
    sa.Index(None, "study_name", "trial_number"),
)

points = sa.Table(
    "mv_points",
    metadata,
    _column("run_id", CleanText, sa.ForeignKey("mv_runs.run_id"), primary_key=True),
    _column("rows_seen", sa.Integer, primary_key=True, autoincrement=False),
    _column("value", Finite, null=True, comment="the objective at a rung"),
    _column("loss", Finite, null=True),
    _column("learning_rate", Finite, null=True),
)

predictions = sa.Table(
    "mv_predictions",
    metadata,
    _column("run_id", CleanText, sa.ForeignKey("mv_runs.run_id"), primary_key=True),
    _column("split", CleanText, primary_key=True),
    _column("log_odds", sa.LargeBinary, comment="float32, little-endian, one per row in the split's order"),
)

environments = sa.Table(
    "mv_environments",
    metadata,
    _column("environment_id", CleanText, primary_key=True),
    _column("described", CleanText, comment="commit, Python and packages, JSON"),
)

speeds = sa.Table(
    "mv_speeds",
    metadata,
    _column("worker_id", CleanText, primary_key=True),
    _column("rates", CleanText, comment="what `mvsweep plan` measured, JSON"),
)

exports = sa.Table(
    "mv_exports",
    metadata,
    _column("export_id", CleanText, primary_key=True),
    _column("run_id", CleanText, sa.ForeignKey("mv_runs.run_id")),
    _column("folder", CleanText),
    _column("merged", sa.Boolean),
    _column("dtype", CleanText),
    _column("rows", sa.Integer, null=True, comment="validation rows that a merged model was held against"),
    _column("flipped", sa.Integer, null=True, comment="of these, with another verdict than the adapter's"),
    _column("created_at", UtcTime),
    sa.Index(None, "run_id"),
)


def schema_sql() -> str:
    """The DDL of all tables, in PostgreSQL's dialect."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # untyped in SQLAlchemy
    blocks = [
        "-- Generated by `python -m mathverify_sweep.store.tables`; a test holds it to them and to the migrations.\n"
        "-- PostgreSQL's dialect; SQLite has the same tables. Optuna's and mvsweep_alembic_version live beside them."
    ]
    for table in metadata.sorted_tables:
        statements: list[ExecutableDDLElement] = [CreateTable(table)]
        statements += [CreateIndex(index) for index in sorted(table.indexes, key=lambda index: str(index.name))]
        statements += [SetColumnComment(column) for column in table.columns if column.comment]
        blocks.append("\n".join(_one_statement(statement, dialect) for statement in statements))
    return "\n\n".join(blocks) + "\n"


def _one_statement(statement: ExecutableDDLElement, dialect: Dialect) -> str:
    lines = str(statement.compile(dialect=dialect)).strip().expandtabs(4).splitlines()
    return "\n".join(line.rstrip() for line in lines) + ";"


if __name__ == "__main__":
    sys.stdout.write(schema_sql())
