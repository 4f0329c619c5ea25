"""The table of the audit chain."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, LargeBinary, String, Table, Text

from umbel_server.store.tables import metadata

audit = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False, comment="Its number, from 1."),
    Column("time_ms", BigInteger, nullable=False, comment="When it was done, Unix milliseconds."),
    Column("actor", String(255), nullable=False, comment="Who did it."),
    Column("action", String(63), nullable=False, comment="What was done, as in device.revoke."),
    Column("object", String(255), nullable=False, comment="To what, as in device:rose."),
    Column("reason", Text, nullable=False, comment="Why, in the actor's words; empty: none was asked for."),
    Column("before", Text, nullable=False, comment="Canonical JSON: how it was; null: it was not."),
    Column("after", Text, nullable=False, comment="Canonical JSON: how it is since; null: it is no more."),
    Column(
        "previous", LargeBinary(32), nullable=False, comment="Hash of the entry before; the first: zeros."
    ),
    Column("hash", LargeBinary(32), nullable=False, comment="SHA-256 over all the columns before."),
    Index("audit_actor", "actor", "sequence"),
    Index("audit_object", "object", "sequence"),
    Index("audit_action", "action", "sequence"),
    Index("audit_time", "time_ms"),
)
"""Entries are appended and stay: triggers refuse every other statement."""
