"""A run may be paused: it is running still, and says since when it begins no round, and why."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add when a run was paused; SQLite keeps no comments."""
    op.add_column(
        "runs",
        sa.Column(
            "paused_s",
            sa.Float(),
            comment="When it was paused; NULL: it is not. Its state is running still.",
        ),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("runs", "reason", comment="Why it ended, or is paused; empty while it runs.")
