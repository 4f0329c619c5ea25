"""The tables, as SQLAlchemy Core sees them. Every column says what it means and in which unit.

Times are Unix seconds by the service's clock unless a column says otherwise. A change here needs a
migration beside it: a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

_SEALED, _RUNNING = text("state = 'sealed'"), text("state = 'running'")
_REJECTED = text("state = 'rejected'")

tokens = Table(
    "tokens",
    metadata,
    Column("hash", LargeBinary(32), primary_key=True, comment="SHA-256 of the secret, which is not kept."),
    Column("device_name", String(63), comment="The only name its device may take; NULL: any."),
    Column("created_s", Float, nullable=False, comment="When it was issued."),
    Column("expires_s", Float, nullable=False, comment="From when it is refused."),
    Column("uses_left", Integer, nullable=False, comment="How many more devices it lets in."),
    Column(
        "approval",
        Integer,
        nullable=False,
        server_default="0",
        comment="1: an operator approves each of its devices by hand.",
    ),
    Column(
        "replaces",
        Integer,
        nullable=False,
        server_default="0",
        comment="1: its device takes the place of the one that has the name, whose keys are then refused.",
    ),
    CheckConstraint("uses_left >= 0", name="tokens_uses_left"),
)

devices = Table(
    "devices",
    metadata,
    Column("id", String(63), primary_key=True, comment="The device's name; never given out twice."),
    Column("status", String(16), nullable=False, comment="active, or revoked: every call is refused."),
    Column("identity_key", LargeBinary(32), nullable=False, comment="Ed25519 public key for rounds."),
    Column("node_key", LargeBinary, nullable=False, comment="Flower node key: P-384 SPKI, DER."),
    Column("node_id", String(20), comment="Flower's id of the node, unsigned decimal; NULL: unregistered."),
    Column(
        "token_hash",
        LargeBinary(32),
        ForeignKey("tokens.hash"),
        nullable=False,
        comment="The token that let it in.",
    ),
    Column(
        "enrolled_key",
        LargeBinary(32),
        nullable=False,
        comment="SHA-256 of the SPKI of the TLS key it enrolled with: a repeat, or another device?.",
    ),
    Column("enrolled_s", Float, nullable=False, comment="When it enrolled."),
    Column("certificate_not_after_s", Float, nullable=False, comment="When its newest certificate ends."),
    Column("last_seen_s", Float, nullable=False, comment="Its last authenticated call, to some seconds."),
    Column("revoked_s", Float, comment="When it was revoked; NULL while active."),
    Column("quarantined_s", Float, comment="When it was quarantined; NULL: it is not."),
    Column("quarantine_reason", Text, comment="Why it was quarantined; NULL: it is not."),
    Column("facts", Text, comment="JSON: what the device said it is; NULL: nothing."),
    CheckConstraint("status IN ('active', 'revoked')", name="devices_status"),
    UniqueConstraint("token_hash", "enrolled_key", name="devices_enrollment"),
    UniqueConstraint("node_key", name="devices_node_key"),
    UniqueConstraint("identity_key", name="devices_identity_key"),
    Index("devices_certificate", "certificate_not_after_s", "id"),
    Index("devices_enrolled", "enrolled_s", "id"),
)

batches = Table(
    "batches",
    metadata,
    Column(
        "id",
        BigInteger().with_variant(
            Integer, "sqlite"
        ),  # SQLite numbers rows itself only where it says INTEGER.
        primary_key=True,
        comment="Order of arrival.",
    ),
    Column("device_id", String(63), ForeignKey("devices.id"), nullable=False, comment="Who sent it."),
    Column("batch_id", LargeBinary(16), nullable=False, comment="The device's random name for it."),
    Column("key_id", String(64), nullable=False, comment="The telemetry key it is sealed to."),
    Column("header", LargeBinary, nullable=False, comment="BatchHeader, the bytes received."),
    Column("ciphertext", LargeBinary, comment="Sealed Batch; NULL once opened: only its sums remain."),
    Column("state", String(16), nullable=False, comment="sealed, opened, or rejected by the opener."),
    Column("reason", Text, comment="Why it was rejected; NULL otherwise."),
    Column("received_s", Float, nullable=False, comment="When it was stored."),
    Column("opened_s", Float, comment="When the opener was done with it; NULL while sealed."),
    Column(
        "month",
        Integer,
        nullable=False,
        server_default="197001",
        comment="When it was made, by the device's clock: 202611. Batches of a month lie together.",
    ),
    CheckConstraint("state IN ('sealed', 'opened', 'rejected')", name="batches_state"),
    UniqueConstraint("device_id", "batch_id", name="batches_once"),
    Index("batches_sealed", "id", sqlite_where=_SEALED, postgresql_where=_SEALED),
    Index("batches_received", "received_s"),
    Index("batches_rejected", "received_s", sqlite_where=_REJECTED, postgresql_where=_REJECTED),
)

rollups = Table(
    "rollups",
    metadata,
    Column("device_id", String(63), ForeignKey("devices.id"), comment="Who reported."),
    Column("model", String(63), comment="The model."),
    Column("version", BigInteger, comment="The model's version."),
    Column("variant", String(63), comment="fp32 or int8."),
    Column("engine", String(63), comment="onnx or tflite."),
    Column("hour_s", BigInteger, comment="Start of the hour the windows began in, by the device's clock."),
    Column("windows", BigInteger, nullable=False, comment="Windows summed in this row."),
    Column("until_s", BigInteger, nullable=False, comment="Latest end of a window, by the device's clock."),
    Column("counters", Text, nullable=False, comment="JSON: counter -> sum over the windows."),
    Column("histograms", Text, nullable=False, comment="JSON: name -> edges, counts, sum of the values."),
    PrimaryKeyConstraint("device_id", "model", "version", "variant", "engine", "hour_s"),
    Index("rollups_model", "model", "version", "hour_s"),
    Index("rollups_hour", "hour_s"),
)

cohort_rollups = Table(
    "cohort_rollups",
    metadata,
    Column("span", String(4), comment="hour or day: what is summed over."),
    Column(
        "cohort", String(63), comment="The tag that its devices had when it was opened; empty: all devices."
    ),
    Column("model", String(63), comment="The model; empty: what applications counted."),
    Column("start_s", BigInteger, comment="Start of the hour or day, UTC, by the devices' clocks."),
    Column("version", BigInteger, comment="The model's version."),
    Column("variant", String(63), comment="fp32 or int8."),
    Column("engine", String(63), comment="onnx or tflite."),
    Column("windows", BigInteger, nullable=False, comment="Windows summed in this row."),
    Column("until_s", BigInteger, nullable=False, comment="Latest end of a window, by the devices' clocks."),
    Column("counters", Text, nullable=False, comment="JSON: counter -> sum over the windows."),
    Column("histograms", Text, nullable=False, comment="JSON: list of name, scale or edges, counts, sum."),
    Column(
        "left_out",
        BigInteger,
        nullable=False,
        comment="Counters and histograms that are in no sum here: too many names or kinds.",
    ),
    CheckConstraint("span IN ('hour', 'day')", name="cohort_rollups_span"),
    PrimaryKeyConstraint("span", "cohort", "model", "start_s", "version", "variant", "engine"),
    Index("cohort_rollups_start", "span", "start_s"),
)

releases = Table(
    "releases",
    metadata,
    Column("sha256", LargeBinary(32), primary_key=True, comment="Hash of the whole package file."),
    Column("model", String(63), nullable=False, comment="The model."),
    Column("version", BigInteger, nullable=False, comment="Its version; devices get the highest."),
    Column("size", BigInteger, nullable=False, comment="The package's size, bytes."),
    Column("published_s", Float, nullable=False, comment="When it was released."),
    UniqueConstraint("model", "version", name="releases_version"),
)

deltas = Table(
    "deltas",
    metadata,
    Column(
        "package_sha256",
        LargeBinary(32),
        ForeignKey("releases.sha256"),
        comment="The released package it makes.",
    ),
    Column(
        "base_sha256", LargeBinary(32), ForeignKey("releases.sha256"), comment="The release it makes it of."
    ),
    Column("sha256", LargeBinary(32), nullable=False, comment="Hash of the delta itself."),
    Column("size", BigInteger, nullable=False, comment="The delta's size, bytes."),
    PrimaryKeyConstraint("package_sha256", "base_sha256"),
    Index("deltas_sha256", "sha256"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(63), primary_key=True, comment="The run's name."),
    Column("model", String(63), nullable=False, comment="The model it trains."),
    Column("plan", Text, nullable=False, comment="JSON: the plan as it was approved; never changed."),
    Column("state", String(16), nullable=False, comment="running, finished, stopped or failed."),
    Column("reason", Text, nullable=False, comment="Why it ended, or is paused; empty while it runs."),
    Column("created_s", Float, nullable=False, comment="When it was created."),
    Column("finished_s", Float, comment="When it ended; NULL while running."),
    Column("paused_s", Float, comment="When it was paused; NULL: it is not. Its state is running still."),
    CheckConstraint("state IN ('running', 'finished', 'stopped', 'failed')", name="runs_state"),
)

rounds = Table(
    "rounds",
    metadata,
    Column("run_id", String(63), ForeignKey("runs.id"), comment="The run."),
    Column("round", Integer, comment="The round, from 1."),
    Column("attempt", Integer, comment="The attempt at the round, from 1."),
    Column("state", String(16), nullable=False, comment="running; opened: its sum was used; or aborted."),
    Column(
        "phase",
        String(16),
        comment="The last phase that began; NULL: not known, the record is of schema 0001.",
    ),
    Column("reason", Text, nullable=False, comment="Why it was aborted; empty otherwise."),
    Column("figures", Text, nullable=False, comment="JSON: what the round cost and gave; names carry units."),
    Column("started_s", Float, nullable=False, comment="When it began."),
    Column("finished_s", Float, comment="When it ended; NULL while running."),
    CheckConstraint("state IN ('running', 'opened', 'aborted')", name="rounds_state"),
    CheckConstraint("(state = 'running') = (finished_s IS NULL)", name="rounds_finished"),
    PrimaryKeyConstraint("run_id", "round", "attempt"),
    Index("rounds_running", "run_id", unique=True, sqlite_where=_RUNNING, postgresql_where=_RUNNING),
)

participations = Table(
    "participations",
    metadata,
    Column("run_id", String(63), comment="The run."),
    Column("round", Integer, comment="The round."),
    Column("attempt", Integer, comment="The attempt."),
    Column("device_id", String(63), comment="Who took part; no foreign key: simulated devices never enroll."),
    Column(
        "outcome",
        String(16),
        nullable=False,
        comment="summed; charged: its ledger was charged, but the sum lacks it; dropped: before that.",
    ),
    Column("reason", Text, nullable=False, comment="Why it is not in the sum; empty if it is."),
    CheckConstraint("outcome IN ('summed', 'charged', 'dropped')", name="participations_outcome"),
    PrimaryKeyConstraint("run_id", "round", "attempt", "device_id"),
    ForeignKeyConstraint(["run_id", "round", "attempt"], ["rounds.run_id", "rounds.round", "rounds.attempt"]),
    Index("participations_device", "device_id"),
)
