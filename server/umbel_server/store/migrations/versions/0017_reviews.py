"""Reviews that devices announce: what waits for a person, and what somebody answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add the table of announced reviews."""
    op.create_table(
        "reviews",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            comment="Its number, from 1.",
        ),
        sa.Column("device_id", sa.String(63), nullable=False, comment="The device that it waits on."),
        sa.Column(
            "announced_id", sa.LargeBinary(16), nullable=False, comment="The device's random name for it."
        ),
        sa.Column("model", sa.String(63), nullable=False, comment="The model that made the prediction."),
        sa.Column("version", sa.Integer, nullable=False, comment="Its version."),
        sa.Column("label", sa.Integer, comment="Number of the label that it gave; NULL: withdrawn."),
        sa.Column("percent", sa.Integer, comment="How sure it was, 0 to 100, rounded down; NULL: withdrawn."),
        sa.Column(
            "predicted_s", sa.Float, comment="When, device clock, rounded down to a minute; NULL: withdrawn."
        ),
        sa.Column("unsure", sa.Integer, nullable=False, comment="1: it was less sure than it should be."),
        sa.Column(
            "flagged", sa.Integer, nullable=False, comment="1: the data contract flags a value of its input."
        ),
        sa.Column("announced_s", sa.Float, nullable=False, comment="When the opener read of it."),
        sa.Column(
            "expires_s",
            sa.Float,
            nullable=False,
            comment="Until when it may be answered, and told the device.",
        ),
        sa.Column(
            "state",
            sa.String(16),
            nullable=False,
            comment="open; answered: on its way; applied; here: decided on the device; gone; withdrawn; refused.",
        ),
        sa.Column(
            "answer",
            sa.Integer,
            comment="Number of the label that holds, as somebody said; NULL: nobody did.",
        ),
        sa.Column("answered_s", sa.Float, comment="When; NULL: nobody did."),
        sa.Column("answered_by", sa.String(255), comment="Whose account; NULL: nobody did."),
        sa.Column("reason", sa.Text, comment="Why, in their words; NULL: nobody did."),
        sa.Column(
            "signed", sa.LargeBinary, comment="The answer as the authority signed it; NULL: nobody answered."
        ),
        sa.Column(
            "ended_s", sa.Float, comment="When the device said that it waits no more; NULL: it did not."
        ),
        sa.CheckConstraint(
            "state IN ('open', 'answered', 'applied', 'here', 'gone', 'withdrawn', 'refused')",
            name="reviews_state",
        ),
        sa.CheckConstraint("(answer IS NULL) = (signed IS NULL)", name="reviews_answered"),
        sa.UniqueConstraint("device_id", "announced_id", name="reviews_once"),
    )
    op.create_index("reviews_by_state", "reviews", ["state", "id"])
    op.create_index("reviews_by_device", "reviews", ["device_id", "state"])
    op.create_index("reviews_by_age", "reviews", ["announced_s"])
