"""Batches of a month lie together, and what devices report is also summed by cohort."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add ``batches.month``, which PostgreSQL partitions by; make ``cohort_rollups``."""
    if op.get_bind().dialect.name == "postgresql":
        _partition()
    else:
        op.add_column(
            "batches",
            sa.Column(
                "month",
                sa.Integer(),
                nullable=False,
                server_default="197001",
                comment="When it was made, by the device's clock: 202611. Batches of a month lie together.",
            ),
        )
    op.create_index("batches_received", "batches", ["received_s"])
    op.create_index("rollups_model", "rollups", ["model", "version", "hour_s"])
    op.create_index("rollups_hour", "rollups", ["hour_s"])
    op.create_table(
        "cohort_rollups",
        sa.Column("span", sa.String(4), comment="hour or day: what is summed over."),
        sa.Column(
            "cohort",
            sa.String(63),
            comment="The tag that its devices had when it was opened; empty: all devices.",
        ),
        sa.Column("model", sa.String(63), comment="The model; empty: what applications counted."),
        sa.Column(
            "start_s", sa.BigInteger(), comment="Start of the hour or day, UTC, by the devices' clocks."
        ),
        sa.Column("version", sa.BigInteger(), comment="The model's version."),
        sa.Column("variant", sa.String(63), comment="fp32 or int8."),
        sa.Column("engine", sa.String(63), comment="onnx or tflite."),
        sa.Column("windows", sa.BigInteger(), nullable=False, comment="Windows summed in this row."),
        sa.Column(
            "until_s",
            sa.BigInteger(),
            nullable=False,
            comment="Latest end of a window, by the devices' clocks.",
        ),
        sa.Column("counters", sa.Text(), nullable=False, comment="JSON: counter -> sum over the windows."),
        sa.Column(
            "histograms",
            sa.Text(),
            nullable=False,
            comment="JSON: list of name, scale or edges, counts, sum.",
        ),
        sa.Column(
            "left_out",
            sa.BigInteger(),
            nullable=False,
            comment="Counters and histograms that are in no sum here: too many names or kinds.",
        ),
        sa.CheckConstraint("span IN ('hour', 'day')", name="cohort_rollups_span"),
        sa.PrimaryKeyConstraint("span", "cohort", "model", "start_s", "version", "variant", "engine"),
    )
    op.create_index("cohort_rollups_start", "cohort_rollups", ["span", "start_s"])


def _partition() -> None:
    """Make ``batches`` anew: no store in PostgreSQL is older than this, and a table cannot become partitioned."""
    sealed = sa.text("state = 'sealed'")
    op.drop_table("batches")
    op.create_table(
        "batches",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False, comment="Order of arrival."),
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
        sa.Column(
            "month",
            sa.Integer(),
            nullable=False,
            server_default="197001",
            comment="When it was made, by the device's clock: 202611. Batches of a month lie together.",
        ),
        sa.CheckConstraint("state IN ('sealed', 'opened', 'rejected')", name="batches_state"),
        sa.PrimaryKeyConstraint("id", "month"),
        # A batch says itself when it was made, the same each time it is sent: once in its month is once.
        sa.UniqueConstraint("device_id", "batch_id", "month", name="batches_once"),
        postgresql_partition_by="RANGE (month)",
    )
    op.create_index("batches_sealed", "batches", ["id"], postgresql_where=sealed)
    # What is of no month that has a partition: a device's clock may say anything.
    op.execute("CREATE TABLE batches_other PARTITION OF batches DEFAULT")
