"""The table of queries; see `umbel_server.store.tables`."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Float, ForeignKey, LargeBinary, String, Table, Text

from umbel_server.store.tables import metadata

queries = Table(
    "queries",
    metadata,
    Column(
        "id",
        String(63),
        ForeignKey("runs.id"),
        primary_key=True,
        comment="Its name: it is a run whose one round sums answers instead of updates.",
    ),
    Column("kind", String(16), nullable=False, comment="histogram, mean, quantile or fairness."),
    Column("asked_by", String(255), nullable=False, comment="Who asked."),
    Column("why", Text, nullable=False, comment="What for, as devices' users read it."),
    Column("signed", LargeBinary, nullable=False, comment="The query as the fleet's authority signed it."),
    Column("result", Text, comment="JSON: the answer with its intervals; NULL: there is none."),
    Column("answered_s", Float, comment="When its sum was opened; NULL: it was not."),
    CheckConstraint("kind IN ('histogram', 'mean', 'quantile', 'fairness')", name="queries_kind"),
    CheckConstraint("(result IS NULL) = (answered_s IS NULL)", name="queries_answered"),
)
