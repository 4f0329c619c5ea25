"""The tables of what each device delivered, summed when it is opened: so that no page of devices reads their hours."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, PrimaryKeyConstraint, String, Table, Text

from umbel_server.store.tables import metadata

device_days = Table(
    "device_days",
    metadata,
    Column("device_id", String(63), ForeignKey("devices.id"), comment="Who reported."),
    Column("model", String(63), comment="The model; empty: what its application counted."),
    Column("version", BigInteger, comment="The model's version."),
    Column("variant", String(63), comment="fp32 or int8."),
    Column("engine", String(63), comment="onnx or tflite."),
    Column("day_s", BigInteger, comment="Start of the day the windows began in, UTC, by the device's clock."),
    Column("windows", BigInteger, nullable=False, comment="Windows summed in this row."),
    Column("until_s", BigInteger, nullable=False, comment="Latest end of a window, by the device's clock."),
    Column("counters", Text, nullable=False, comment="JSON: counter -> sum over the windows."),
    Column("histograms", Text, nullable=False, comment="JSON: list of name, scale or edges, counts, sum."),
    Column(
        "left_out",
        BigInteger,
        nullable=False,
        comment="Counters and histograms that are in no sum here: too many names or kinds.",
    ),
    PrimaryKeyConstraint("device_id", "model", "version", "variant", "engine", "day_s"),
    Index("device_days_day", "day_s"),
    Index("device_days_model", "model", "version", "day_s"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("device_id", String(63), ForeignKey("devices.id"), primary_key=True, comment="Who sent batches."),
    Column("opened", BigInteger, nullable=False, comment="Its batches that were opened, ever."),
    Column("rejected", BigInteger, nullable=False, comment="Its batches that the opener refused, ever."),
    Column("received_s", Float, nullable=False, comment="When the newest of these was stored."),
)
