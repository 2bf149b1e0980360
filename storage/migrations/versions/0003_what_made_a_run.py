"""Where a run comes from and what it became: the code of its worker, and its exports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; runs from before name no environment."""
    op.create_table(
        "mv_environments",
        sa.Column("environment_id", sa.Text(), nullable=False),
        sa.Column("described", sa.Text(), nullable=False, comment="commit, Python and packages, JSON"),
        sa.PrimaryKeyConstraint("environment_id", name="mv_environments_pk"),
    )
    op.create_table(
        "mv_exports",
        sa.Column("export_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("merged", sa.Boolean(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=True, comment="validation rows that a merged model was held against"),
        sa.Column("flipped", sa.Integer(), nullable=True, comment="of these, with another verdict than the adapter's"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["mv_runs.run_id"], name="mv_exports_run_id_fk"),
        sa.PrimaryKeyConstraint("export_id", name="mv_exports_pk"),
    )
    op.create_index("mv_exports_run_id_idx", "mv_exports", ["run_id"])
    op.add_column("mv_runs", sa.Column("environment_id", sa.Text(), nullable=True, comment="the code of its worker"))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("mv_runs", "environment_id")
    op.drop_index("mv_exports_run_id_idx", table_name="mv_exports")
    op.drop_table("mv_exports")
    op.drop_table("mv_environments")
