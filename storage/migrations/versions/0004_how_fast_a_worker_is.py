"""How fast a worker is, as it was measured before it trained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; of workers from before nothing is known."""
    op.create_table(
        "mv_speeds",
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("rates", sa.Text(), nullable=False, comment="what `mvsweep plan` measured, JSON"),
        sa.PrimaryKeyConstraint("worker_id", name="mv_speeds_pk"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("mv_speeds")
