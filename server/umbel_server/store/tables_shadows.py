"""The table of shadows: devices that ask a candidate beside what answers; see `umbel_server.store.tables`."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from umbel_server.store.tables import metadata

rollout_shadows = Table(
    "rollout_shadows",
    metadata,
    Column("rollout_id", String(63), ForeignKey("rollouts.id"), comment="The rollout."),
    Column(
        "device_id",
        String(63),
        ForeignKey("devices.id"),
        comment="A device that was asked to run the candidate beside what answers there.",
    ),
    Column("asked_s", Float, nullable=False, comment="When it first was: the rate counts these."),
    Column(
        "state", String(16), nullable=False, comment="asked, running, unavailable or failed, by its own word."
    ),
    Column("why", Text, nullable=False, comment="Why it is unavailable, by its own word; empty otherwise."),
    CheckConstraint("state IN ('asked', 'running', 'unavailable', 'failed')", name="rollout_shadows_state"),
    PrimaryKeyConstraint("rollout_id", "device_id"),
    Index("rollout_shadows_asked", "rollout_id", "asked_s"),
)
