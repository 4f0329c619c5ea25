"""The table of groups of devices; see `umbel_server.store.tables`."""

from __future__ import annotations

from sqlalchemy import Column, Float, String, Table, Text

from umbel_server.store.tables import metadata

device_groups = Table(
    "device_groups",
    metadata,
    Column("name", String(63), primary_key=True, comment="Its name; no tag is called so."),
    Column("filter", Text, nullable=False, comment="JSON: which devices are in it, as a list is filtered."),
    Column("saved_s", Float, nullable=False, comment="When it was saved last."),
    Column("saved_by", String(255), nullable=False, comment="Who saved it last."),
)
