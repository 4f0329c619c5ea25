"""The table of fairness waivers; see `umbel_server.store.tables`."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Float, Index, Integer, String, Table, Text

from umbel_server.store.tables import metadata

fairness_waivers = Table(
    "fairness_waivers",
    metadata,
    Column("id", String(63), primary_key=True, comment="Its name, drawn when it was made."),
    Column("model", String(63), nullable=False, comment="The model."),
    Column("version", Integer, comment="Its version; NULL: every version."),
    Column("label", Integer, nullable=False, comment="Number of the label that the gap's rates are of."),
    Column("cohort", String(63), nullable=False, comment="The tag of the cohort."),
    Column("metric", String(63), nullable=False, comment="The figure, as in true positive rate."),
    Column("reason", Text, nullable=False, comment="Why the gap is lived with, in their own words."),
    Column("created_s", Float, nullable=False, comment="When it was made."),
    Column("created_by", String(255), nullable=False, comment="Who made it."),
    Column("expires_s", Float, nullable=False, comment="When the gap is open again by itself."),
    Column("ended_s", Float, comment="When somebody ended it before that; NULL: nobody did."),
    Column("ended_by", String(255), comment="Who ended it; NULL: nobody did."),
    CheckConstraint("expires_s > created_s", name="fairness_waivers_expires"),
    CheckConstraint("(ended_s IS NULL) = (ended_by IS NULL)", name="fairness_waivers_ended"),
    Index("fairness_waivers_model", "model"),
)
