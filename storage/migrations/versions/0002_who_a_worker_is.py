"""Runs say more of their worker: which boot, which process, which job, and how often it renews its lease."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; runs from before have NULL in them."""
    for column in (
        sa.Column("boot_id", sa.Text(), nullable=True, comment="where `pid` means something"),
        sa.Column(
            "process_start", sa.BigInteger(), nullable=True, comment="clock ticks since boot: a pid is given again"
        ),
        sa.Column("job_id", sa.Text(), nullable=True, comment="the scheduler's"),
        sa.Column("lease_seconds", sa.Double(), nullable=True, comment="the lease period that its worker keeps to"),
    ):
        op.add_column("mv_runs", column)


def downgrade() -> None:
    """Drop them."""
    for name in ("lease_seconds", "job_id", "process_start", "boot_id"):
        op.drop_column("mv_runs", name)
