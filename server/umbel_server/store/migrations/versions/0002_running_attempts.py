"""An attempt at a round is on record from its beginning, with the phase it has reached."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Rebuild ``rounds``, and ``participations`` that points at it: SQLite cannot change a constraint."""
    op.create_table(
        "rounds_2",
        sa.Column("run_id", sa.String(63), sa.ForeignKey("runs.id"), comment="The run."),
        sa.Column("round", sa.Integer(), comment="The round, from 1."),
        sa.Column("attempt", sa.Integer(), comment="The attempt at the round, from 1."),
        sa.Column(
            "state", sa.String(16), nullable=False, comment="running; opened: its sum was used; or aborted."
        ),
        sa.Column(
            "phase",
            sa.String(16),
            comment="The last phase that began; NULL: not known, the record is of schema 0001.",
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why it was aborted; empty otherwise."),
        sa.Column(
            "figures",
            sa.Text(),
            nullable=False,
            comment="JSON: what the round cost and gave; names carry units.",
        ),
        sa.Column("started_s", sa.Float(), nullable=False, comment="When it began."),
        sa.Column("finished_s", sa.Float(), comment="When it ended; NULL while running."),
        sa.CheckConstraint("state IN ('running', 'opened', 'aborted')", name="rounds_state"),
        sa.CheckConstraint("(state = 'running') = (finished_s IS NULL)", name="rounds_finished"),
        sa.PrimaryKeyConstraint("run_id", "round", "attempt"),
    )
    op.create_table(
        "participations_2",
        sa.Column("run_id", sa.String(63), comment="The run."),
        sa.Column("round", sa.Integer(), comment="The round."),
        sa.Column("attempt", sa.Integer(), comment="The attempt."),
        sa.Column(
            "device_id",
            sa.String(63),
            comment="Who took part; no foreign key: simulated devices never enroll.",
        ),
        sa.Column(
            "outcome",
            sa.String(16),
            nullable=False,
            comment="summed; charged: its ledger was charged, but the sum lacks it; dropped: before that.",
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why it is not in the sum; empty if it is."),
        sa.CheckConstraint("outcome IN ('summed', 'charged', 'dropped')", name="participations_outcome"),
        sa.PrimaryKeyConstraint("run_id", "round", "attempt", "device_id"),
        sa.ForeignKeyConstraint(
            ["run_id", "round", "attempt"], ["rounds_2.run_id", "rounds_2.round", "rounds_2.attempt"]
        ),
    )
    op.execute(
        "INSERT INTO rounds_2 (run_id, round, attempt, state, reason, figures, started_s, finished_s) "
        "SELECT run_id, round, attempt, state, reason, figures, started_s, finished_s FROM rounds"
    )
    op.execute(
        "INSERT INTO participations_2 (run_id, round, attempt, device_id, outcome, reason) "
        "SELECT run_id, round, attempt, device_id, outcome, reason FROM participations"
    )
    # In this order no row ever points at nothing, and SQLite renames what the foreign key names.
    op.drop_table("participations")
    op.drop_table("rounds")
    op.rename_table("rounds_2", "rounds")
    op.rename_table("participations_2", "participations")
    op.create_index("participations_device", "participations", ["device_id"])
    running = sa.text("state = 'running'")
    op.create_index(
        "rounds_running", "rounds", ["run_id"], unique=True, sqlite_where=running, postgresql_where=running
    )
