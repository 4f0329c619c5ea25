"""The tables of rollouts: which version which device is offered, and why. Times are Unix seconds."""

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

_LIVE = text("state IN ('running', 'paused')")

baselines = Table(
    "baselines",
    metadata,
    Column(
        "model", String(63), primary_key=True, comment="A model whose new versions come by rollouts only."
    ),
    Column(
        "version", BigInteger, nullable=False, comment="What devices are offered that no rollout reaches."
    ),
    Column("since_s", Float, nullable=False, comment="Since when."),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(63), primary_key=True, comment="Its name."),
    Column("model", String(63), nullable=False, comment="The model."),
    Column("from_version", BigInteger, nullable=False, comment="The version that its devices come from."),
    Column("to_version", BigInteger, nullable=False, comment="The candidate."),
    Column("plan", Text, nullable=False, comment="JSON: steps, gates, rate; never changed."),
    Column(
        "salt", String(64), nullable=False, comment="Makes the draw of its devices independent of others."
    ),
    Column(
        "state", String(16), nullable=False, comment="draft, running, paused, kept, rolled-back, finished."
    ),
    Column("step", Integer, nullable=False, comment="The step that it is in or ended in, from 0."),
    Column("since_s", Float, nullable=False, comment="When the step or, once ended, the end began."),
    Column("reason", Text, nullable=False, comment="Why it is in this state; empty: nothing happened."),
    Column(
        "revision", Integer, nullable=False, comment="Grows with every change: who saw an older one lost."
    ),
    Column("created_s", Float, nullable=False, comment="When it was made."),
    CheckConstraint(
        "state IN ('draft', 'running', 'paused', 'kept', 'rolled-back', 'finished')", name="rollouts_state"
    ),
    Index("rollouts_live", "model", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
    Index("rollouts_model", "model", "created_s"),
)

rollout_events = Table(
    "rollout_events",
    metadata,
    Column("rollout_id", String(63), ForeignKey("rollouts.id"), comment="The rollout."),
    Column("number", Integer, comment="Its revision after the event."),
    Column("at_s", Float, nullable=False, comment="When."),
    Column("actor", String(255), nullable=False, comment="Who did it; service:rollouts: its gates did."),
    Column("event", String(32), nullable=False, comment="started, advanced, paused, resumed, .."),
    Column("reason", Text, nullable=False, comment="Why; empty where nobody had to say."),
    Column("figures", Text, nullable=False, comment="JSON: the verdicts of the gates that it rests on."),
    PrimaryKeyConstraint("rollout_id", "number"),
)

rollout_devices = Table(
    "rollout_devices",
    metadata,
    Column("rollout_id", String(63), ForeignKey("rollouts.id"), comment="The rollout."),
    Column(
        "device_id", String(63), ForeignKey("devices.id"), comment="A device that was offered the candidate."
    ),
    Column("admitted_s", Float, nullable=False, comment="When it first was: the rate counts these."),
    Column("failed", Integer, nullable=False, comment="1: it said that the candidate failed on it."),
    PrimaryKeyConstraint("rollout_id", "device_id"),
    Index("rollout_devices_admitted", "rollout_id", "admitted_s"),
    Index("rollout_devices_device", "device_id"),
)

rollout_controls = Table(
    "rollout_controls",
    metadata,
    Column("rollout_id", String(63), ForeignKey("rollouts.id"), comment="A rollout that is an experiment."),
    Column(
        "device_id",
        String(63),
        ForeignKey("devices.id"),
        comment="A device that it keeps as it is, to be compared with.",
    ),
    Column("since_s", Float, nullable=False, comment="When it first asked: from then on it is compared."),
    PrimaryKeyConstraint("rollout_id", "device_id"),
)

pins = Table(
    "pins",
    metadata,
    Column("device_id", String(63), ForeignKey("devices.id"), comment="A device that stays at a version."),
    Column("model", String(63), comment="The model."),
    Column("version", BigInteger, nullable=False, comment="The version that it stays at."),
    PrimaryKeyConstraint("device_id", "model"),
)

device_models = Table(
    "device_models",
    metadata,
    Column("device_id", String(63), ForeignKey("devices.id"), comment="A device."),
    Column("model", String(63), comment="A model on it."),
    Column("version", BigInteger, nullable=False, comment="The version that answers there, by its own word."),
    Column("since_s", Float, nullable=False, comment="When it first said so."),
    PrimaryKeyConstraint("device_id", "model"),
    Index("device_models_version", "model", "version", "device_id"),
)

device_tags = Table(
    "device_tags",
    metadata,
    Column("device_id", String(63), ForeignKey("devices.id"), comment="A device."),
    Column("tag", String(63), comment="A word that operators gave it: a place, a class, a cohort."),
    PrimaryKeyConstraint("device_id", "tag"),
    Index("device_tags_tag", "tag", "device_id"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(63), primary_key=True, comment="What only one process may do at a time."),
    Column("holder", String(63), nullable=False, comment="Random name of the process that does it."),
    Column("until_s", Float, nullable=False, comment="From when another may take it over."),
)
