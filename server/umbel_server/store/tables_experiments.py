"""The tables of experiments; see `umbel_server.store.tables`."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from umbel_server.store.tables import metadata

experiments = Table(
    "experiments",
    metadata,
    Column(
        "id", String(63), ForeignKey("rollouts.id"), primary_key=True, comment="Its name, and its rollout's."
    ),
    Column("plan", Text, nullable=False, comment="JSON: question, metric, shares, levels; never changed."),
    Column("created_s", Float, nullable=False, comment="When it was made."),
    Column("created_by", String(255), nullable=False, comment="Who made it."),
    Column("ends_s", Float, nullable=False, comment="When somebody is to decide; later if extended."),
)

experiment_decisions = Table(
    "experiment_decisions",
    metadata,
    Column("experiment_id", String(63), ForeignKey("experiments.id"), comment="The experiment."),
    Column("number", Integer, comment="Its decisions are counted, from 1."),
    Column("at_s", Float, nullable=False, comment="When."),
    Column("actor", String(255), nullable=False, comment="Who decided."),
    Column("decision", String(16), nullable=False, comment="ship, stop or extend."),
    Column("comment", Text, nullable=False, comment="Why, in their own words."),
    Column("figures", Text, nullable=False, comment="JSON: what was seen when it was decided."),
    PrimaryKeyConstraint("experiment_id", "number"),
    CheckConstraint("decision IN ('ship', 'stop', 'extend')", name="experiment_decisions_decision"),
)
