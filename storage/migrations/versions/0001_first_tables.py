"""The first tables: studies, promotions, runs, points, predictions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "mv_studies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False, comment="the sweep file with its defaults, JSON"),
        sa.Column("data_fingerprint", sa.Text(), nullable=False),
        sa.Column("baselines", sa.Text(), nullable=True, comment="JSON, computed once"),
        sa.Column("stopped", sa.Text(), nullable=True, comment="why it hands out no more runs; NULL while it does"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="mv_studies_pk"),
    )
    op.create_table(
        "mv_promotions",
        sa.Column("promotion_id", sa.Text(), nullable=False),
        sa.Column("study_name", sa.Text(), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["study_name"], ["mv_studies.name"], name="mv_promotions_study_name_fk"),
        sa.PrimaryKeyConstraint("promotion_id", name="mv_promotions_pk"),
        sa.UniqueConstraint(
            "study_name", "trial_number", "plan", name="mv_promotions_study_name_trial_number_plan_key"
        ),
    )
    op.create_table(
        "mv_runs",
        sa.Column("position", sa.Integer(), nullable=False, comment="the order of the queue"),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("study_name", sa.Text(), nullable=False),
        sa.Column("promotion_id", sa.Text(), nullable=True),
        sa.Column("trial_number", sa.Integer(), nullable=True, comment="NULL: reserved, Optuna was not asked yet"),
        sa.Column("stage", sa.Integer(), nullable=True, comment="NULL: a trial"),
        sa.Column("spec", sa.Text(), nullable=True, comment="RunSpec, JSON"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False, comment="failures of earlier attempts"),
        sa.Column("continues", sa.Text(), nullable=True, comment="the run_id of the attempt before"),
        sa.Column("after_run", sa.Text(), nullable=True, comment="the run_id that must have ended well"),
        sa.Column("lease_token", sa.Text(), nullable=True, comment="whoever writes must know it"),
        sa.Column("renewals", sa.Integer(), nullable=False, comment="counts up while the worker lives"),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("gpu", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "renewed_at", sa.DateTime(timezone=True), nullable=True, comment="for people; expiry reads the counter"
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("busy_seconds", sa.Double(), nullable=True, comment="time on a GPU, once ended"),
        sa.Column("result", sa.Text(), nullable=True, comment="RunResult without log-odds, JSON"),
        sa.Column(
            "late_result", sa.Text(), nullable=True, comment="RunResult that came after the lease was lost, JSON"
        ),
        sa.ForeignKeyConstraint(["promotion_id"], ["mv_promotions.promotion_id"], name="mv_runs_promotion_id_fk"),
        sa.ForeignKeyConstraint(["study_name"], ["mv_studies.name"], name="mv_runs_study_name_fk"),
        sa.PrimaryKeyConstraint("position", name="mv_runs_pk"),
        sa.UniqueConstraint("run_id", name="mv_runs_run_id_key"),
    )
    op.create_index("mv_runs_study_name_state_idx", "mv_runs", ["study_name", "state"])
    op.create_index("mv_runs_study_name_trial_number_idx", "mv_runs", ["study_name", "trial_number"])

    op.create_table(
        "mv_points",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("rows_seen", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=True, comment="the objective at a rung"),
        sa.Column("loss", sa.Double(), nullable=True),
        sa.Column("learning_rate", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["mv_runs.run_id"], name="mv_points_run_id_fk"),
        sa.PrimaryKeyConstraint("run_id", "rows_seen", name="mv_points_pk"),
    )
    op.create_table(
        "mv_predictions",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column(
            "log_odds",
            sa.LargeBinary(),
            nullable=False,
            comment="float32, little-endian, one per row in the split's order",
        ),
        sa.ForeignKeyConstraint(["run_id"], ["mv_runs.run_id"], name="mv_predictions_run_id_fk"),
        sa.PrimaryKeyConstraint("run_id", "split", name="mv_predictions_pk"),
    )


def downgrade() -> None:
    """Drop them, and all that is in them."""
    op.drop_table("mv_predictions")
    op.drop_table("mv_points")
    op.drop_table("mv_runs")
    op.drop_table("mv_promotions")
    op.drop_table("mv_studies")
