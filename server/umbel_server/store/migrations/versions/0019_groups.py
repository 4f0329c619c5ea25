"""Groups: filters of devices that are saved under a name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Add the table of groups."""
    op.create_table(
        "device_groups",
        sa.Column("name", sa.String(63), primary_key=True, comment="Its name; no tag is called so."),
        sa.Column(
            "filter",
            sa.Text,
            nullable=False,
            comment="JSON: which devices are in it, as a list is filtered.",
        ),
        sa.Column("saved_s", sa.Float, nullable=False, comment="When it was saved last."),
        sa.Column("saved_by", sa.String(255), nullable=False, comment="Who saved it last."),
    )
