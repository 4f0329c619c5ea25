"""Runs that begin by themselves.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the table of schedules."""
    op.create_table(
        "schedules",
        sa.Column(
            "name",
            sa.String(63),
            primary_key=True,
            comment="The schedule's name; its runs are NAME-1, NAME-2.",
        ),
        sa.Column("model", sa.String(63), nullable=False, comment="The model its runs train."),
        sa.Column(
            "plan", sa.Text, nullable=False, comment="JSON: the plan's fields as its author wrote them."
        ),
        sa.Column(
            "every_s", sa.Float, nullable=False, comment="Least time between the starts of two runs, seconds."
        ),
        sa.Column("at_s", sa.Integer, comment="Second of the day, UTC, at which runs start; NULL: any."),
        sa.Column(
            "labels", sa.BigInteger, nullable=False, comment="New labels that a run waits for; 0: none."
        ),
        sa.Column("state", sa.String(16), nullable=False, comment="active or paused."),
        sa.Column("next_s", sa.Float, nullable=False, comment="From when on the next run may start."),
        sa.Column("since_s", sa.Float, nullable=False, comment="Labels reported from then on are new."),
        sa.Column("last_run", sa.String(63), comment="The run it began last; NULL: none yet."),
        sa.Column(
            "said",
            sa.Text,
            nullable=False,
            comment="What came of it the last time it was due; empty: never.",
        ),
        sa.Column("created_s", sa.Float, nullable=False, comment="When it was made."),
        sa.CheckConstraint("state IN ('active', 'paused')", name="schedules_state"),
    )
