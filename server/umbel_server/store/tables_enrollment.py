"""The tables of enrollment beside ``tokens`` and ``devices``: who waits, which nodes are gone, what is kept apart."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from umbel_server.store.tables import metadata

applications = Table(
    "applications",
    metadata,
    Column("id", String(16), primary_key=True, comment="What operators call it; random."),
    Column(
        "token_hash",
        LargeBinary(32),
        ForeignKey("tokens.hash"),
        nullable=False,
        comment="The token it spent.",
    ),
    Column("enrolled_key", LargeBinary(32), nullable=False, comment="SHA-256 of the SPKI of its TLS key."),
    Column("identity_key", LargeBinary(32), nullable=False, comment="Ed25519 public key for rounds."),
    Column("node_key", LargeBinary, nullable=False, comment="Flower node key: P-384 SPKI, DER."),
    Column("name", String(63), nullable=False, comment="The name it would like; empty: any."),
    Column("facts", Text, comment="JSON: what the device says it is; NULL: nothing."),
    Column("state", String(16), nullable=False, comment="pending, approved or rejected."),
    Column("reason", Text, nullable=False, comment="Why it was decided so; empty while pending."),
    Column("asked_s", Float, nullable=False, comment="When it asked first."),
    Column("expires_s", Float, nullable=False, comment="From when on it waits, or may come, no more."),
    Column("decided_s", Float, comment="When it was decided; NULL while pending."),
    CheckConstraint("state IN ('pending', 'approved', 'rejected')", name="applications_state"),
    CheckConstraint("(state = 'pending') = (decided_s IS NULL)", name="applications_decided"),
    UniqueConstraint("token_hash", "enrolled_key", name="applications_once"),
    Index("applications_state_asked", "state", "asked_s"),
)

retired_nodes = Table(
    "retired_nodes",
    metadata,
    Column("node_key", LargeBinary, primary_key=True, comment="Its node key: P-384 SPKI, DER."),
    Column("device_id", String(63), ForeignKey("devices.id"), nullable=False, comment="Whose it was."),
    Column(
        "node_id",
        String(20),
        comment="Flower's id of it, unsigned decimal; NULL: Flower never knew it, or has forgotten it.",
    ),
    Column("retired_s", Float, nullable=False, comment="When its device got other keys, or was revoked."),
)

quarantined_batches = Table(
    "quarantined_batches",
    metadata,
    Column("device_id", String(63), ForeignKey("devices.id"), comment="Who sent it."),
    Column("batch_id", LargeBinary(16), comment="The device's random name for it."),
    Column("key_id", String(64), nullable=False, comment="The telemetry key it is sealed to."),
    Column("header", LargeBinary, nullable=False, comment="BatchHeader, the bytes received."),
    Column("ciphertext", LargeBinary, nullable=False, comment="Sealed Batch; the opener never opens it."),
    Column("received_s", Float, nullable=False, comment="When it was stored."),
    PrimaryKeyConstraint("device_id", "batch_id"),
    Index("quarantined_batches_received", "received_s"),
)
