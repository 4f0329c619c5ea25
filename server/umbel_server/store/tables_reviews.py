"""The table of reviews that devices announced; see `umbel_server.store.tables`. Times are Unix seconds."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from umbel_server.store.tables import metadata

reviews = Table(
    "reviews",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, comment="Its number, from 1."
    ),
    Column("device_id", String(63), nullable=False, comment="The device that it waits on."),
    Column("announced_id", LargeBinary(16), nullable=False, comment="The device's random name for it."),
    Column("model", String(63), nullable=False, comment="The model that made the prediction."),
    Column("version", Integer, nullable=False, comment="Its version."),
    Column("label", Integer, comment="Number of the label that it gave; NULL: withdrawn."),
    Column("percent", Integer, comment="How sure it was, 0 to 100, rounded down; NULL: withdrawn."),
    Column("predicted_s", Float, comment="When, device clock, rounded down to a minute; NULL: withdrawn."),
    Column("unsure", Integer, nullable=False, comment="1: it was less sure than it should be."),
    Column("flagged", Integer, nullable=False, comment="1: the data contract flags a value of its input."),
    Column("announced_s", Float, nullable=False, comment="When the opener read of it."),
    Column("expires_s", Float, nullable=False, comment="Until when it may be answered, and told the device."),
    Column(
        "state",
        String(16),
        nullable=False,
        comment="open; answered: on its way; applied; here: decided on the device; gone; withdrawn; refused.",
    ),
    Column("answer", Integer, comment="Number of the label that holds, as somebody said; NULL: nobody did."),
    Column("answered_s", Float, comment="When; NULL: nobody did."),
    Column("answered_by", String(255), comment="Whose account; NULL: nobody did."),
    Column("reason", Text, comment="Why, in their words; NULL: nobody did."),
    Column("signed", LargeBinary, comment="The answer as the authority signed it; NULL: nobody answered."),
    Column("ended_s", Float, comment="When the device said that it waits no more; NULL: it did not."),
    CheckConstraint(
        "state IN ('open', 'answered', 'applied', 'here', 'gone', 'withdrawn', 'refused')",
        name="reviews_state",
    ),
    CheckConstraint("(answer IS NULL) = (signed IS NULL)", name="reviews_answered"),
    UniqueConstraint("device_id", "announced_id", name="reviews_once"),
    Index("reviews_by_state", "state", "id"),
    Index("reviews_by_device", "device_id", "state"),
    Index("reviews_by_age", "announced_s"),
)
