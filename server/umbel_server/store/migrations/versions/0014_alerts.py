"""Alerts: what fires, what is told of it, and the runs that are proposed because of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_WAITING, _OPEN = sa.text("state = 'waiting'"), sa.text("state = 'open'")


def upgrade() -> None:
    """Add the tables of alerts."""
    op.create_table(
        "alerts",
        sa.Column(
            "fingerprint",
            sa.String(32),
            primary_key=True,
            comment="Of rule and labels: half their SHA-256, in hex.",
        ),
        sa.Column("rule", sa.String(63), nullable=False, comment="The rule in alerts.toml."),
        sa.Column(
            "labels", sa.Text, nullable=False, comment="JSON: what it is about, as model, version, feature."
        ),
        sa.Column(
            "severity",
            sa.String(16),
            nullable=False,
            comment="critical, warning or info, as its rule said last.",
        ),
        sa.Column(
            "state",
            sa.String(16),
            nullable=False,
            comment="pending, firing, acknowledged, silenced or resolved.",
        ),
        sa.Column(
            "since_s", sa.Float, nullable=False, comment="When what it is about began, or, resolved, ended."
        ),
        sa.Column(
            "clear_s",
            sa.Float,
            comment="Since when it no longer holds though it is not resolved; NULL: it holds.",
        ),
        sa.Column("until_s", sa.Float, comment="When its silence ends; NULL: it is not silenced."),
        sa.Column(
            "who", sa.String(255), nullable=False, comment="Who acknowledged or silenced it; empty: nobody."
        ),
        sa.Column("reason", sa.Text, nullable=False, comment="Why, in their words; empty: nobody did."),
        sa.Column(
            "told_s", sa.Float, nullable=False, comment="When it was last told that it fires; 0: never."
        ),
        sa.Column(
            "told_open",
            sa.Integer,
            nullable=False,
            comment="1: who was told that it fires was not told that it ended.",
        ),
        sa.Column("value", sa.Float, comment="The figure when it was last looked at; NULL: it has none."),
        sa.Column("why", sa.Text, nullable=False, comment="What was found, in a sentence."),
        sa.Column("seen_s", sa.Float, nullable=False, comment="When it was last looked at."),
        sa.Column("revision", sa.Integer, nullable=False, comment="Grows with every change of its state."),
        sa.Column("created_s", sa.Float, nullable=False, comment="When it was first found."),
        sa.CheckConstraint(
            "state IN ('pending', 'firing', 'acknowledged', 'silenced', 'resolved')", name="alerts_state"
        ),
        sa.CheckConstraint("(state = 'silenced') = (until_s IS NOT NULL)", name="alerts_until"),
    )
    op.create_index("alerts_rule", "alerts", ["rule"])
    op.create_index("alerts_by_state", "alerts", ["state", "since_s"])
    op.create_table(
        "alert_events",
        sa.Column("fingerprint", sa.String(32), sa.ForeignKey("alerts.fingerprint"), comment="The alert."),
        sa.Column("number", sa.Integer, comment="The revision that its state had after it."),
        sa.Column("part", sa.Integer, comment="0: its state changed; from 1: what was done because of it."),
        sa.Column("at_s", sa.Float, nullable=False, comment="When."),
        sa.Column(
            "actor", sa.String(255), nullable=False, comment="Who did it; service:alerts: its rule did."
        ),
        sa.Column(
            "event", sa.String(32), nullable=False, comment="pending, firing, .., or an action, as roll_back."
        ),
        sa.Column("reason", sa.Text, nullable=False, comment="Why, or what came of it."),
        sa.PrimaryKeyConstraint("fingerprint", "number", "part"),
    )
    op.create_table(
        "alert_notices",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            comment="Its number: receivers know a repeat by it.",
        ),
        sa.Column(
            "channel", sa.String(63), nullable=False, comment="The channel in alerts.toml that it goes to."
        ),
        sa.Column("rule", sa.String(63), comment="The rule whose alerts it tells of; NULL: a test."),
        sa.Column("kind", sa.String(16), nullable=False, comment="firing, resolved or test."),
        sa.Column("body", sa.Text, nullable=False, comment="JSON: what is told."),
        sa.Column("made_s", sa.Float, nullable=False, comment="When it was to be told."),
        sa.Column(
            "due_s",
            sa.Float,
            nullable=False,
            comment="From when on it is sent; while it is, until others may.",
        ),
        sa.Column("tries", sa.Integer, nullable=False, comment="How often it was tried."),
        sa.Column(
            "state", sa.String(16), nullable=False, comment="waiting, sent, or given-up after too many tries."
        ),
        sa.Column("said", sa.Text, nullable=False, comment="Why the last try failed; empty: none did."),
        sa.Column("done_s", sa.Float, comment="When it was sent or given up; NULL: it waits."),
        sa.CheckConstraint("kind IN ('firing', 'resolved', 'test')", name="alert_notices_kind"),
        sa.CheckConstraint("state IN ('waiting', 'sent', 'given-up')", name="alert_notices_state"),
    )
    op.create_index(
        "alert_notices_waiting", "alert_notices", ["due_s"], sqlite_where=_WAITING, postgresql_where=_WAITING
    )
    op.create_index("alert_notices_rule", "alert_notices", ["rule", "channel", "made_s"])
    op.create_index("alert_notices_made", "alert_notices", ["made_s"])
    op.create_table(
        "proposed_runs",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            comment="Its number, from 1.",
        ),
        sa.Column("rule", sa.String(63), nullable=False, comment="The rule that proposes it."),
        sa.Column("fingerprint", sa.String(32), nullable=False, comment="The alert that it is because of."),
        sa.Column("model", sa.String(63), nullable=False, comment="The model that it would train."),
        sa.Column(
            "plan", sa.Text, nullable=False, comment="JSON: the plan's fields as its author wrote them."
        ),
        sa.Column("why", sa.Text, nullable=False, comment="What was found, in a sentence."),
        sa.Column(
            "state",
            sa.String(16),
            nullable=False,
            comment="open, accepted, begun, declined, or failed to begin.",
        ),
        sa.Column("made_s", sa.Float, nullable=False, comment="When it was proposed."),
        sa.Column("decided_s", sa.Float, comment="When it was accepted or declined; NULL: it is open."),
        sa.Column("decided_by", sa.String(255), nullable=False, comment="Who decided; empty: it is open."),
        sa.Column("said", sa.Text, nullable=False, comment="Why it was decided so, or why it did not begin."),
        sa.Column("run", sa.String(63), comment="The run that it became; NULL: none."),
        sa.CheckConstraint(
            "state IN ('open', 'accepted', 'begun', 'declined', 'failed')", name="proposed_runs_state"
        ),
    )
    op.create_index(
        "proposed_runs_open",
        "proposed_runs",
        ["rule", "model"],
        unique=True,
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )
