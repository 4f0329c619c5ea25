"""The tables of alerts, of what is told of them, and of runs that they propose. Times are Unix seconds."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

from umbel_server.store.tables import metadata

_WAITING, _OPEN = text("state = 'waiting'"), text("state = 'open'")

alerts = Table(
    "alerts",
    metadata,
    Column(
        "fingerprint", String(32), primary_key=True, comment="Of rule and labels: half their SHA-256, in hex."
    ),
    Column("rule", String(63), nullable=False, comment="The rule in alerts.toml."),
    Column("labels", Text, nullable=False, comment="JSON: what it is about, as model, version, feature."),
    Column(
        "severity", String(16), nullable=False, comment="critical, warning or info, as its rule said last."
    ),
    Column(
        "state", String(16), nullable=False, comment="pending, firing, acknowledged, silenced or resolved."
    ),
    Column("since_s", Float, nullable=False, comment="When what it is about began, or, resolved, ended."),
    Column(
        "clear_s", Float, comment="Since when it no longer holds though it is not resolved; NULL: it holds."
    ),
    Column("until_s", Float, comment="When its silence ends; NULL: it is not silenced."),
    Column("who", String(255), nullable=False, comment="Who acknowledged or silenced it; empty: nobody."),
    Column("reason", Text, nullable=False, comment="Why, in their words; empty: nobody did."),
    Column("told_s", Float, nullable=False, comment="When it was last told that it fires; 0: never."),
    Column(
        "told_open",
        Integer,
        nullable=False,
        comment="1: who was told that it fires was not told that it ended.",
    ),
    Column("value", Float, comment="The figure when it was last looked at; NULL: it has none."),
    Column("why", Text, nullable=False, comment="What was found, in a sentence."),
    Column("seen_s", Float, nullable=False, comment="When it was last looked at."),
    Column("revision", Integer, nullable=False, comment="Grows with every change of its state."),
    Column("created_s", Float, nullable=False, comment="When it was first found."),
    CheckConstraint(
        "state IN ('pending', 'firing', 'acknowledged', 'silenced', 'resolved')", name="alerts_state"
    ),
    CheckConstraint("(state = 'silenced') = (until_s IS NOT NULL)", name="alerts_until"),
    Index("alerts_rule", "rule"),
    Index("alerts_by_state", "state", "since_s"),
)

alert_events = Table(
    "alert_events",
    metadata,
    Column("fingerprint", String(32), ForeignKey("alerts.fingerprint"), comment="The alert."),
    Column("number", Integer, comment="The revision that its state had after it."),
    Column("part", Integer, comment="0: its state changed; from 1: what was done because of it."),
    Column("at_s", Float, nullable=False, comment="When."),
    Column("actor", String(255), nullable=False, comment="Who did it; service:alerts: its rule did."),
    Column("event", String(32), nullable=False, comment="pending, firing, .., or an action, as roll_back."),
    Column("reason", Text, nullable=False, comment="Why, or what came of it."),
    PrimaryKeyConstraint("fingerprint", "number", "part"),
)

alert_notices = Table(
    "alert_notices",
    metadata,
    Column(
        "id",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        comment="Its number: receivers know a repeat by it.",
    ),
    Column("channel", String(63), nullable=False, comment="The channel in alerts.toml that it goes to."),
    Column("rule", String(63), comment="The rule whose alerts it tells of; NULL: a test."),
    Column("kind", String(16), nullable=False, comment="firing, resolved or test."),
    Column("body", Text, nullable=False, comment="JSON: what is told."),
    Column("made_s", Float, nullable=False, comment="When it was to be told."),
    Column("due_s", Float, nullable=False, comment="From when on it is sent; while it is, until others may."),
    Column("tries", Integer, nullable=False, comment="How often it was tried."),
    Column("state", String(16), nullable=False, comment="waiting, sent, or given-up after too many tries."),
    Column("said", Text, nullable=False, comment="Why the last try failed; empty: none did."),
    Column("done_s", Float, comment="When it was sent or given up; NULL: it waits."),
    CheckConstraint("kind IN ('firing', 'resolved', 'test')", name="alert_notices_kind"),
    CheckConstraint("state IN ('waiting', 'sent', 'given-up')", name="alert_notices_state"),
    Index("alert_notices_waiting", "due_s", sqlite_where=_WAITING, postgresql_where=_WAITING),
    Index("alert_notices_rule", "rule", "channel", "made_s"),
    Index("alert_notices_made", "made_s"),
)

proposed_runs = Table(
    "proposed_runs",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, comment="Its number, from 1."
    ),
    Column("rule", String(63), nullable=False, comment="The rule that proposes it."),
    Column("fingerprint", String(32), nullable=False, comment="The alert that it is because of."),
    Column("model", String(63), nullable=False, comment="The model that it would train."),
    Column("plan", Text, nullable=False, comment="JSON: the plan's fields as its author wrote them."),
    Column("why", Text, nullable=False, comment="What was found, in a sentence."),
    Column(
        "state", String(16), nullable=False, comment="open, accepted, begun, declined, or failed to begin."
    ),
    Column("made_s", Float, nullable=False, comment="When it was proposed."),
    Column("decided_s", Float, comment="When it was accepted or declined; NULL: it is open."),
    Column("decided_by", String(255), nullable=False, comment="Who decided; empty: it is open."),
    Column("said", Text, nullable=False, comment="Why it was decided so, or why it did not begin."),
    Column("run", String(63), comment="The run that it became; NULL: none."),
    CheckConstraint(
        "state IN ('open', 'accepted', 'begun', 'declined', 'failed')", name="proposed_runs_state"
    ),
    Index("proposed_runs_open", "rule", "model", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
)
