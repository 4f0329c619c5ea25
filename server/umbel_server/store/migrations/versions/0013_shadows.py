"""Shadows: devices that ask a rollout's candidate beside what answers."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the table of devices that were asked to run a candidate beside what answers there."""
    op.create_table(
        "rollout_shadows",
        sa.Column("rollout_id", sa.String(63), sa.ForeignKey("rollouts.id"), comment="The rollout."),
        sa.Column(
            "device_id",
            sa.String(63),
            sa.ForeignKey("devices.id"),
            comment="A device that was asked to run the candidate beside what answers there.",
        ),
        sa.Column("asked_s", sa.Float, nullable=False, comment="When it first was: the rate counts these."),
        sa.Column(
            "state",
            sa.String(16),
            nullable=False,
            comment="asked, running, unavailable or failed, by its own word.",
        ),
        sa.Column(
            "why", sa.Text, nullable=False, comment="Why it is unavailable, by its own word; empty otherwise."
        ),
        sa.CheckConstraint(
            "state IN ('asked', 'running', 'unavailable', 'failed')", name="rollout_shadows_state"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "device_id"),
    )
    op.create_index("rollout_shadows_asked", "rollout_shadows", ["rollout_id", "asked_s"])
