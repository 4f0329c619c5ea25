"""Devices that wait for approval, are kept apart, or replace one that is gone."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add to ``tokens`` and ``devices``; make ``applications``, ``retired_nodes``, ``quarantined_batches``."""
    op.add_column(
        "tokens",
        sa.Column(
            "approval",
            sa.Integer(),
            nullable=False,
            server_default="0",
            comment="1: an operator approves each of its devices by hand.",
        ),
    )
    op.add_column(
        "tokens",
        sa.Column(
            "replaces",
            sa.Integer(),
            nullable=False,
            server_default="0",
            comment="1: its device takes the place of the one that has the name, whose keys are then refused.",
        ),
    )
    op.add_column(
        "devices",
        sa.Column("quarantined_s", sa.Float(), comment="When it was quarantined; NULL: it is not."),
    )
    op.add_column(
        "devices",
        sa.Column("quarantine_reason", sa.Text(), comment="Why it was quarantined; NULL: it is not."),
    )
    op.add_column(
        "devices",
        sa.Column("facts", sa.Text(), comment="JSON: what the device said it is; NULL: nothing."),
    )
    op.create_table(
        "applications",
        sa.Column("id", sa.String(16), primary_key=True, comment="What operators call it; random."),
        sa.Column(
            "token_hash",
            sa.LargeBinary(32),
            sa.ForeignKey("tokens.hash"),
            nullable=False,
            comment="The token it spent.",
        ),
        sa.Column(
            "enrolled_key", sa.LargeBinary(32), nullable=False, comment="SHA-256 of the SPKI of its TLS key."
        ),
        sa.Column(
            "identity_key", sa.LargeBinary(32), nullable=False, comment="Ed25519 public key for rounds."
        ),
        sa.Column("node_key", sa.LargeBinary(), nullable=False, comment="Flower node key: P-384 SPKI, DER."),
        sa.Column("name", sa.String(63), nullable=False, comment="The name it would like; empty: any."),
        sa.Column("facts", sa.Text(), comment="JSON: what the device says it is; NULL: nothing."),
        sa.Column("state", sa.String(16), nullable=False, comment="pending, approved or rejected."),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why it was decided so; empty while pending."),
        sa.Column("asked_s", sa.Float(), nullable=False, comment="When it asked first."),
        sa.Column(
            "expires_s", sa.Float(), nullable=False, comment="From when on it waits, or may come, no more."
        ),
        sa.Column("decided_s", sa.Float(), comment="When it was decided; NULL while pending."),
        sa.CheckConstraint("state IN ('pending', 'approved', 'rejected')", name="applications_state"),
        sa.CheckConstraint("(state = 'pending') = (decided_s IS NULL)", name="applications_decided"),
        sa.UniqueConstraint("token_hash", "enrolled_key", name="applications_once"),
    )
    op.create_index("applications_state_asked", "applications", ["state", "asked_s"])
    op.create_table(
        "retired_nodes",
        sa.Column("node_key", sa.LargeBinary(), primary_key=True, comment="Its node key: P-384 SPKI, DER."),
        sa.Column(
            "device_id",
            sa.String(63),
            sa.ForeignKey("devices.id"),
            nullable=False,
            comment="Whose it was.",
        ),
        sa.Column(
            "node_id",
            sa.String(20),
            comment="Flower's id of it, unsigned decimal; NULL: Flower never knew it, or has forgotten it.",
        ),
        sa.Column(
            "retired_s", sa.Float(), nullable=False, comment="When its device got other keys, or was revoked."
        ),
    )
    op.create_table(
        "quarantined_batches",
        sa.Column("device_id", sa.String(63), sa.ForeignKey("devices.id"), comment="Who sent it."),
        sa.Column("batch_id", sa.LargeBinary(16), comment="The device's random name for it."),
        sa.Column("key_id", sa.String(64), nullable=False, comment="The telemetry key it is sealed to."),
        sa.Column("header", sa.LargeBinary(), nullable=False, comment="BatchHeader, the bytes received."),
        sa.Column(
            "ciphertext", sa.LargeBinary(), nullable=False, comment="Sealed Batch; the opener never opens it."
        ),
        sa.Column("received_s", sa.Float(), nullable=False, comment="When it was stored."),
        sa.PrimaryKeyConstraint("device_id", "batch_id"),
    )
    op.create_index("quarantined_batches_received", "quarantined_batches", ["received_s"])
