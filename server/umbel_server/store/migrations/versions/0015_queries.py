"""Queries: what the fleet was asked, by whom and what for, and what it answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the table of queries. Each is a run, too: its one round and who was charged stand where a run's do."""
    op.create_table(
        "queries",
        sa.Column(
            "id",
            sa.String(63),
            sa.ForeignKey("runs.id"),
            primary_key=True,
            comment="Its name: it is a run whose one round sums answers instead of updates.",
        ),
        sa.Column("kind", sa.String(16), nullable=False, comment="histogram, mean, quantile or fairness."),
        sa.Column("asked_by", sa.String(255), nullable=False, comment="Who asked."),
        sa.Column("why", sa.Text, nullable=False, comment="What for, as devices' users read it."),
        sa.Column(
            "signed", sa.LargeBinary, nullable=False, comment="The query as the fleet's authority signed it."
        ),
        sa.Column("result", sa.Text, comment="JSON: the answer with its intervals; NULL: there is none."),
        sa.Column("answered_s", sa.Float, comment="When its sum was opened; NULL: it was not."),
        sa.CheckConstraint("kind IN ('histogram', 'mean', 'quantile', 'fairness')", name="queries_kind"),
        sa.CheckConstraint("(result IS NULL) = (answered_s IS NULL)", name="queries_answered"),
    )
