"""The first tables: devices and their tokens, telemetry, releases, runs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "tokens",
        sa.Column(
            "hash", sa.LargeBinary(32), primary_key=True, comment="SHA-256 of the secret, which is not kept."
        ),
        sa.Column("device_name", sa.String(63), comment="The only name its device may take; NULL: any."),
        sa.Column("created_s", sa.Float(), nullable=False, comment="When it was issued."),
        sa.Column("expires_s", sa.Float(), nullable=False, comment="From when it is refused."),
        sa.Column("uses_left", sa.Integer(), nullable=False, comment="How many more devices it lets in."),
        sa.CheckConstraint("uses_left >= 0", name="tokens_uses_left"),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.String(63), primary_key=True, comment="The device's name; never given out twice."),
        sa.Column(
            "status", sa.String(16), nullable=False, comment="active, or revoked: every call is refused."
        ),
        sa.Column(
            "identity_key", sa.LargeBinary(32), nullable=False, comment="Ed25519 public key for rounds."
        ),
        sa.Column("node_key", sa.LargeBinary(), nullable=False, comment="Flower node key: P-384 SPKI, DER."),
        sa.Column(
            "node_id", sa.String(20), comment="Flower's id of the node, unsigned decimal; NULL: unregistered."
        ),
        sa.Column(
            "token_hash",
            sa.LargeBinary(32),
            sa.ForeignKey("tokens.hash"),
            nullable=False,
            comment="The token that let it in.",
        ),
        sa.Column(
            "enrolled_key",
            sa.LargeBinary(32),
            nullable=False,
            comment="SHA-256 of the SPKI of the TLS key it enrolled with: a repeat, or another device?.",
        ),
        sa.Column("enrolled_s", sa.Float(), nullable=False, comment="When it enrolled."),
        sa.Column(
            "certificate_not_after_s", sa.Float(), nullable=False, comment="When its newest certificate ends."
        ),
        sa.Column(
            "last_seen_s", sa.Float(), nullable=False, comment="Its last authenticated call, to some seconds."
        ),
        sa.Column("revoked_s", sa.Float(), comment="When it was revoked; NULL while active."),
        sa.CheckConstraint("status IN ('active', 'revoked')", name="devices_status"),
        sa.UniqueConstraint("token_hash", "enrolled_key", name="devices_enrollment"),
        sa.UniqueConstraint("node_key", name="devices_node_key"),
        sa.UniqueConstraint("identity_key", name="devices_identity_key"),
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.Integer(), primary_key=True, comment="Order of arrival."),
        sa.Column(
            "device_id", sa.String(63), sa.ForeignKey("devices.id"), nullable=False, comment="Who sent it."
        ),
        sa.Column("batch_id", sa.LargeBinary(16), nullable=False, comment="The device's random name for it."),
        sa.Column("key_id", sa.String(64), nullable=False, comment="The telemetry key it is sealed to."),
        sa.Column("header", sa.LargeBinary(), nullable=False, comment="BatchHeader, the bytes received."),
        sa.Column(
            "ciphertext", sa.LargeBinary(), comment="Sealed Batch; NULL once opened: only its sums remain."
        ),
        sa.Column(
            "state", sa.String(16), nullable=False, comment="sealed, opened, or rejected by the opener."
        ),
        sa.Column("reason", sa.Text(), comment="Why it was rejected; NULL otherwise."),
        sa.Column("received_s", sa.Float(), nullable=False, comment="When it was stored."),
        sa.Column("opened_s", sa.Float(), comment="When the opener was done with it; NULL while sealed."),
        sa.CheckConstraint("state IN ('sealed', 'opened', 'rejected')", name="batches_state"),
        sa.UniqueConstraint("device_id", "batch_id", name="batches_once"),
    )
    op.create_table(
        "rollups",
        sa.Column("device_id", sa.String(63), sa.ForeignKey("devices.id"), comment="Who reported."),
        sa.Column("model", sa.String(63), comment="The model."),
        sa.Column("version", sa.BigInteger(), comment="The model's version."),
        sa.Column("variant", sa.String(63), comment="fp32 or int8."),
        sa.Column("engine", sa.String(63), comment="onnx or tflite."),
        sa.Column(
            "hour_s",
            sa.BigInteger(),
            comment="Start of the hour the windows began in, by the device's clock.",
        ),
        sa.Column("windows", sa.BigInteger(), nullable=False, comment="Windows summed in this row."),
        sa.Column(
            "until_s",
            sa.BigInteger(),
            nullable=False,
            comment="Latest end of a window, by the device's clock.",
        ),
        sa.Column("counters", sa.Text(), nullable=False, comment="JSON: counter -> sum over the windows."),
        sa.Column(
            "histograms", sa.Text(), nullable=False, comment="JSON: name -> edges, counts, sum of the values."
        ),
        sa.PrimaryKeyConstraint("device_id", "model", "version", "variant", "engine", "hour_s"),
    )
    op.create_table(
        "releases",
        sa.Column("sha256", sa.LargeBinary(32), primary_key=True, comment="Hash of the whole package file."),
        sa.Column("model", sa.String(63), nullable=False, comment="The model."),
        sa.Column(
            "version", sa.BigInteger(), nullable=False, comment="Its version; devices get the highest."
        ),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="The package's size, bytes."),
        sa.Column("published_s", sa.Float(), nullable=False, comment="When it was released."),
        sa.UniqueConstraint("model", "version", name="releases_version"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(63), primary_key=True, comment="The run's name."),
        sa.Column("model", sa.String(63), nullable=False, comment="The model it trains."),
        sa.Column(
            "plan", sa.Text(), nullable=False, comment="JSON: the plan as it was approved; never changed."
        ),
        sa.Column("state", sa.String(16), nullable=False, comment="running, finished, stopped or failed."),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why it ended; empty while running."),
        sa.Column("created_s", sa.Float(), nullable=False, comment="When it was created."),
        sa.Column("finished_s", sa.Float(), comment="When it ended; NULL while running."),
        sa.CheckConstraint("state IN ('running', 'finished', 'stopped', 'failed')", name="runs_state"),
    )
    op.create_table(
        "rounds",
        sa.Column("run_id", sa.String(63), sa.ForeignKey("runs.id"), comment="The run."),
        sa.Column("round", sa.Integer(), comment="The round, from 1."),
        sa.Column("attempt", sa.Integer(), comment="The attempt at the round, from 1."),
        sa.Column("state", sa.String(16), nullable=False, comment="opened: its sum was used; or aborted."),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why it was aborted; empty if opened."),
        sa.Column(
            "figures",
            sa.Text(),
            nullable=False,
            comment="JSON: what the round cost and gave; names carry units.",
        ),
        sa.Column("started_s", sa.Float(), nullable=False, comment="When it began."),
        sa.Column("finished_s", sa.Float(), nullable=False, comment="When it ended."),
        sa.CheckConstraint("state IN ('opened', 'aborted')", name="rounds_state"),
        sa.PrimaryKeyConstraint("run_id", "round", "attempt"),
    )
    op.create_table(
        "participations",
        sa.Column("run_id", sa.String(63), comment="The run."),
        sa.Column("round", sa.Integer(), comment="The round."),
        sa.Column("attempt", sa.Integer(), comment="The attempt."),
        sa.Column(
            "device_id",
            sa.String(63),
            comment="Who took part; no foreign key: simulated devices never enroll.",
        ),
        sa.Column(
            "outcome",
            sa.String(16),
            nullable=False,
            comment="summed; charged: its ledger was charged, but the sum lacks it; dropped: before that.",
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why it is not in the sum; empty if it is."),
        sa.CheckConstraint("outcome IN ('summed', 'charged', 'dropped')", name="participations_outcome"),
        sa.PrimaryKeyConstraint("run_id", "round", "attempt", "device_id"),
        sa.ForeignKeyConstraint(
            ["run_id", "round", "attempt"], ["rounds.run_id", "rounds.round", "rounds.attempt"]
        ),
    )
    sealed = sa.text("state = 'sealed'")
    op.create_index("batches_sealed", "batches", ["id"], sqlite_where=sealed, postgresql_where=sealed)
    op.create_index("participations_device", "participations", ["device_id"])
