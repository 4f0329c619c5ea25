"""What each device delivers is summed by the day and counted; what operators look for has an index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_DAY_S = 86400
_LARGEST = 2**63 - 1


def upgrade() -> None:
    """Add ``device_days`` and ``deliveries``, filled from what there is, and four indexes."""
    op.create_table(
        "device_days",
        sa.Column("device_id", sa.String(63), sa.ForeignKey("devices.id"), comment="Who reported."),
        sa.Column("model", sa.String(63), comment="The model; empty: what its application counted."),
        sa.Column("version", sa.BigInteger(), comment="The model's version."),
        sa.Column("variant", sa.String(63), comment="fp32 or int8."),
        sa.Column("engine", sa.String(63), comment="onnx or tflite."),
        sa.Column(
            "day_s",
            sa.BigInteger(),
            comment="Start of the day the windows began in, UTC, by the device's clock.",
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
        sa.PrimaryKeyConstraint("device_id", "model", "version", "variant", "engine", "day_s"),
    )
    op.create_index("device_days_day", "device_days", ["day_s"])
    op.create_table(
        "deliveries",
        sa.Column(
            "device_id",
            sa.String(63),
            sa.ForeignKey("devices.id"),
            primary_key=True,
            comment="Who sent batches.",
        ),
        sa.Column("opened", sa.BigInteger(), nullable=False, comment="Its batches that were opened, ever."),
        sa.Column(
            "rejected",
            sa.BigInteger(),
            nullable=False,
            comment="Its batches that the opener refused, ever.",
        ),
        sa.Column("received_s", sa.Float(), nullable=False, comment="When the newest of these was stored."),
    )
    rejected = sa.text("state = 'rejected'")
    op.create_index(
        "batches_rejected", "batches", ["received_s"], sqlite_where=rejected, postgresql_where=rejected
    )
    op.create_index("audit_action", "audit", ["action", "sequence"])
    op.create_index("audit_time", "audit", ["time_ms"])
    op.create_index("rollout_devices_device", "rollout_devices", ["device_id"])
    op.execute(
        "INSERT INTO deliveries SELECT device_id, sum(CASE WHEN state = 'opened' THEN 1 ELSE 0 END), "
        "sum(CASE WHEN state = 'rejected' THEN 1 ELSE 0 END), max(received_s) "
        "FROM batches WHERE state <> 'sealed' GROUP BY device_id"
    )
    _sum_days(op.get_bind())


def _sum_days(connection: sa.Connection) -> None:
    """Sum the hours that there are by the day, a device at a time."""
    hours = sa.table(
        "rollups",
        *map(sa.column, ("device_id", "model", "version", "variant", "engine", "hour_s", "windows")),
        *map(sa.column, ("until_s", "counters", "histograms")),
    )
    days = sa.table(
        "device_days",
        *map(sa.column, ("device_id", "model", "version", "variant", "engine", "day_s", "windows")),
        *map(sa.column, ("until_s", "counters", "histograms", "left_out")),
    )
    devices = connection.execute(sa.select(hours.c.device_id).distinct()).scalars().all()
    for device in devices:
        rows: dict[tuple[object, ...], list[Any]] = {}
        for row in connection.execute(sa.select(hours).where(hours.c.device_id == device)):
            rows.setdefault((*row[:5], row.hour_s - row.hour_s % _DAY_S), []).append(row)
        names = ("device_id", "model", "version", "variant", "engine", "day_s")
        connection.execute(
            days.insert(),
            [{**dict(zip(names, key, strict=True)), **_summed(some)} for key, some in rows.items()],
        )


def _summed(rows: Sequence[Any]) -> dict[str, object]:
    counters: dict[str, int] = {}
    kinds: dict[str, dict[str, Any]] = {}
    for row in rows:
        for name, count in json.loads(row.counters).items():
            counters[name] = min(counters.get(name, 0) + count, _LARGEST)
        for name, body in json.loads(row.histograms).items():
            kind = json.dumps([name, body.get("scale"), body.get("edges"), body.get("epsilon")])
            before = kinds.setdefault(
                kind, {"name": name, **body, "counts": [0] * len(body["counts"]), "sum": 0.0}
            )
            before["counts"] = [
                min(old + new, _LARGEST) for old, new in zip(before["counts"], body["counts"], strict=True)
            ]
            total = before["sum"] + body["sum"]
            before["sum"] = total if abs(total) < 1e300 else before["sum"]
    return {
        "windows": sum(row.windows for row in rows),
        "until_s": max(row.until_s for row in rows),
        "counters": json.dumps(counters, separators=(",", ":")),
        "histograms": json.dumps(list(kinds.values()), separators=(",", ":")),
        "left_out": 0,
    }
