"""Experiments: what they ask, whom they keep as they are, and what was decided."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the tables of experiments."""
    op.create_table(
        "rollout_controls",
        sa.Column(
            "rollout_id",
            sa.String(63),
            sa.ForeignKey("rollouts.id"),
            comment="A rollout that is an experiment.",
        ),
        sa.Column(
            "device_id",
            sa.String(63),
            sa.ForeignKey("devices.id"),
            comment="A device that it keeps as it is, to be compared with.",
        ),
        sa.Column(
            "since_s",
            sa.Float,
            nullable=False,
            comment="When it first asked: from then on it is compared.",
        ),
        sa.PrimaryKeyConstraint("rollout_id", "device_id"),
    )
    op.create_table(
        "experiments",
        sa.Column(
            "id",
            sa.String(63),
            sa.ForeignKey("rollouts.id"),
            primary_key=True,
            comment="Its name, and its rollout's.",
        ),
        sa.Column(
            "plan",
            sa.Text,
            nullable=False,
            comment="JSON: question, metric, shares, levels; never changed.",
        ),
        sa.Column("created_s", sa.Float, nullable=False, comment="When it was made."),
        sa.Column("created_by", sa.String(255), nullable=False, comment="Who made it."),
        sa.Column(
            "ends_s", sa.Float, nullable=False, comment="When somebody is to decide; later if extended."
        ),
    )
    op.create_table(
        "experiment_decisions",
        sa.Column("experiment_id", sa.String(63), sa.ForeignKey("experiments.id"), comment="The experiment."),
        sa.Column("number", sa.Integer, comment="Its decisions are counted, from 1."),
        sa.Column("at_s", sa.Float, nullable=False, comment="When."),
        sa.Column("actor", sa.String(255), nullable=False, comment="Who decided."),
        sa.Column("decision", sa.String(16), nullable=False, comment="ship, stop or extend."),
        sa.Column("comment", sa.Text, nullable=False, comment="Why, in their own words."),
        sa.Column("figures", sa.Text, nullable=False, comment="JSON: what was seen when it was decided."),
        sa.PrimaryKeyConstraint("experiment_id", "number"),
        sa.CheckConstraint("decision IN ('ship', 'stop', 'extend')", name="experiment_decisions_decision"),
    )
