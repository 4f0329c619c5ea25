"""Fairness waivers: which gaps somebody lives with, why, and until when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the table of fairness waivers."""
    op.create_table(
        "fairness_waivers",
        sa.Column("id", sa.String(63), primary_key=True, comment="Its name, drawn when it was made."),
        sa.Column("model", sa.String(63), nullable=False, comment="The model."),
        sa.Column("version", sa.Integer, comment="Its version; NULL: every version."),
        sa.Column(
            "label", sa.Integer, nullable=False, comment="Number of the label that the gap's rates are of."
        ),
        sa.Column("cohort", sa.String(63), nullable=False, comment="The tag of the cohort."),
        sa.Column("metric", sa.String(63), nullable=False, comment="The figure, as in true positive rate."),
        sa.Column(
            "reason", sa.Text, nullable=False, comment="Why the gap is lived with, in their own words."
        ),
        sa.Column("created_s", sa.Float, nullable=False, comment="When it was made."),
        sa.Column("created_by", sa.String(255), nullable=False, comment="Who made it."),
        sa.Column("expires_s", sa.Float, nullable=False, comment="When the gap is open again by itself."),
        sa.Column("ended_s", sa.Float, comment="When somebody ended it before that; NULL: nobody did."),
        sa.Column("ended_by", sa.String(255), comment="Who ended it; NULL: nobody did."),
        sa.CheckConstraint("expires_s > created_s", name="fairness_waivers_expires"),
        sa.CheckConstraint("(ended_s IS NULL) = (ended_by IS NULL)", name="fairness_waivers_ended"),
    )
    op.create_index("fairness_waivers_model", "fairness_waivers", ["model"])
