"""A record of every change, each entry bound to the one before it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

STAYS = "entries of the audit log are never changed or deleted"


def upgrade() -> None:
    """Make ``audit``, and let the database itself refuse to change what is in it."""
    op.create_table(
        "audit",
        sa.Column(
            "sequence", sa.BigInteger(), primary_key=True, autoincrement=False, comment="Its number, from 1."
        ),
        sa.Column("time_ms", sa.BigInteger(), nullable=False, comment="When it was done, Unix milliseconds."),
        sa.Column("actor", sa.String(255), nullable=False, comment="Who did it."),
        sa.Column("action", sa.String(63), nullable=False, comment="What was done, as in device.revoke."),
        sa.Column("object", sa.String(255), nullable=False, comment="To what, as in device:rose."),
        sa.Column(
            "reason",
            sa.Text(),
            nullable=False,
            comment="Why, in the actor's words; empty: none was asked for.",
        ),
        sa.Column(
            "before", sa.Text(), nullable=False, comment="Canonical JSON: how it was; null: it was not."
        ),
        sa.Column(
            "after",
            sa.Text(),
            nullable=False,
            comment="Canonical JSON: how it is since; null: it is no more.",
        ),
        sa.Column(
            "previous",
            sa.LargeBinary(32),
            nullable=False,
            comment="Hash of the entry before; the first: zeros.",
        ),
        sa.Column("hash", sa.LargeBinary(32), nullable=False, comment="SHA-256 over all the columns before."),
    )
    op.create_index("audit_actor", "audit", ["actor", "sequence"])
    op.create_index("audit_object", "audit", ["object", "sequence"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_stays() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{STAYS}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_stays()"
        )
        return
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{event.lower()} BEFORE {event} ON audit "
            f"BEGIN SELECT RAISE(ABORT, '{STAYS}'); END"
        )
