"""The table of schedules; see `umbel_server.store.tables`."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Float, Integer, String, Table, Text

from umbel_server.store.tables import metadata

schedules = Table(
    "schedules",
    metadata,
    Column("name", String(63), primary_key=True, comment="The schedule's name; its runs are NAME-1, NAME-2."),
    Column("model", String(63), nullable=False, comment="The model its runs train."),
    Column("plan", Text, nullable=False, comment="JSON: the plan's fields as its author wrote them."),
    Column("every_s", Float, nullable=False, comment="Least time between the starts of two runs, seconds."),
    Column("at_s", Integer, comment="Second of the day, UTC, at which runs start; NULL: any."),
    Column("labels", BigInteger, nullable=False, comment="New labels that a run waits for; 0: none."),
    Column("state", String(16), nullable=False, comment="active or paused."),
    Column("next_s", Float, nullable=False, comment="From when on the next run may start."),
    Column("since_s", Float, nullable=False, comment="Labels reported from then on are new."),
    Column("last_run", String(63), comment="The run it began last; NULL: none yet."),
    Column("said", Text, nullable=False, comment="What came of it the last time it was due; empty: never."),
    Column("created_s", Float, nullable=False, comment="When it was made."),
    CheckConstraint("state IN ('active', 'paused')", name="schedules_state"),
)
