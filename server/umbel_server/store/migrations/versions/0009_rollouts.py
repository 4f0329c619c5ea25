"""Rollouts: which version which device is offered, and why."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_LIVE = sa.text("state IN ('running', 'paused')")


def upgrade() -> None:
    """Make the tables of rollouts; until one is started, devices get the newest release as before."""
    op.create_table(
        "baselines",
        sa.Column(
            "model",
            sa.String(63),
            primary_key=True,
            comment="A model whose new versions come by rollouts only.",
        ),
        sa.Column(
            "version",
            sa.BigInteger(),
            nullable=False,
            comment="What devices are offered that no rollout reaches.",
        ),
        sa.Column("since_s", sa.Float(), nullable=False, comment="Since when."),
    )
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(63), primary_key=True, comment="Its name."),
        sa.Column("model", sa.String(63), nullable=False, comment="The model."),
        sa.Column(
            "from_version", sa.BigInteger(), nullable=False, comment="The version that its devices come from."
        ),
        sa.Column("to_version", sa.BigInteger(), nullable=False, comment="The candidate."),
        sa.Column("plan", sa.Text(), nullable=False, comment="JSON: steps, gates, rate; never changed."),
        sa.Column(
            "salt",
            sa.String(64),
            nullable=False,
            comment="Makes the draw of its devices independent of others.",
        ),
        sa.Column(
            "state",
            sa.String(16),
            nullable=False,
            comment="draft, running, paused, kept, rolled-back, finished.",
        ),
        sa.Column(
            "step", sa.Integer(), nullable=False, comment="The step that it is in or ended in, from 0."
        ),
        sa.Column(
            "since_s", sa.Float(), nullable=False, comment="When the step or, once ended, the end began."
        ),
        sa.Column(
            "reason", sa.Text(), nullable=False, comment="Why it is in this state; empty: nothing happened."
        ),
        sa.Column(
            "revision",
            sa.Integer(),
            nullable=False,
            comment="Grows with every change: who saw an older one lost.",
        ),
        sa.Column("created_s", sa.Float(), nullable=False, comment="When it was made."),
        sa.CheckConstraint(
            "state IN ('draft', 'running', 'paused', 'kept', 'rolled-back', 'finished')",
            name="rollouts_state",
        ),
    )
    op.create_index(
        "rollouts_live", "rollouts", ["model"], unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE
    )
    op.create_index("rollouts_model", "rollouts", ["model", "created_s"])
    op.create_table(
        "rollout_events",
        sa.Column("rollout_id", sa.String(63), sa.ForeignKey("rollouts.id"), comment="The rollout."),
        sa.Column("number", sa.Integer(), comment="Its revision after the event."),
        sa.Column("at_s", sa.Float(), nullable=False, comment="When."),
        sa.Column(
            "actor", sa.String(255), nullable=False, comment="Who did it; service:rollouts: its gates did."
        ),
        sa.Column("event", sa.String(32), nullable=False, comment="started, advanced, paused, resumed, .."),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why; empty where nobody had to say."),
        sa.Column(
            "figures", sa.Text(), nullable=False, comment="JSON: the verdicts of the gates that it rests on."
        ),
        sa.PrimaryKeyConstraint("rollout_id", "number"),
    )
    op.create_table(
        "rollout_devices",
        sa.Column("rollout_id", sa.String(63), sa.ForeignKey("rollouts.id"), comment="The rollout."),
        sa.Column(
            "device_id",
            sa.String(63),
            sa.ForeignKey("devices.id"),
            comment="A device that was offered the candidate.",
        ),
        sa.Column(
            "admitted_s", sa.Float(), nullable=False, comment="When it first was: the rate counts these."
        ),
        sa.Column(
            "failed", sa.Integer(), nullable=False, comment="1: it said that the candidate failed on it."
        ),
        sa.PrimaryKeyConstraint("rollout_id", "device_id"),
    )
    op.create_index("rollout_devices_admitted", "rollout_devices", ["rollout_id", "admitted_s"])
    op.create_table(
        "pins",
        sa.Column(
            "device_id",
            sa.String(63),
            sa.ForeignKey("devices.id"),
            comment="A device that stays at a version.",
        ),
        sa.Column("model", sa.String(63), comment="The model."),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="The version that it stays at."),
        sa.PrimaryKeyConstraint("device_id", "model"),
    )
    op.create_table(
        "device_models",
        sa.Column("device_id", sa.String(63), sa.ForeignKey("devices.id"), comment="A device."),
        sa.Column("model", sa.String(63), comment="A model on it."),
        sa.Column(
            "version",
            sa.BigInteger(),
            nullable=False,
            comment="The version that answers there, by its own word.",
        ),
        sa.Column("since_s", sa.Float(), nullable=False, comment="When it first said so."),
        sa.PrimaryKeyConstraint("device_id", "model"),
    )
    op.create_index("device_models_version", "device_models", ["model", "version"])
    op.create_table(
        "device_tags",
        sa.Column("device_id", sa.String(63), sa.ForeignKey("devices.id"), comment="A device."),
        sa.Column("tag", sa.String(63), comment="A word that operators gave it: a place, a class, a cohort."),
        sa.PrimaryKeyConstraint("device_id", "tag"),
    )
    op.create_index("device_tags_tag", "device_tags", ["tag"])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(63), primary_key=True, comment="What only one process may do at a time."),
        sa.Column(
            "holder", sa.String(63), nullable=False, comment="Random name of the process that does it."
        ),
        sa.Column("until_s", sa.Float(), nullable=False, comment="From when another may take it over."),
    )
