"""Accounts, what they sign in with, and answers that the API may have to repeat."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables; nobody has an account yet."""
    op.create_table(
        "accounts",
        sa.Column(
            "name", sa.String(63), primary_key=True, comment="The account's name; never given out twice."
        ),
        sa.Column(
            "status", sa.String(16), nullable=False, comment="active, or disabled: every sign-in is refused."
        ),
        sa.Column("roles", sa.Text(), nullable=False, comment="JSON: the roles, in order."),
        sa.Column(
            "password",
            sa.Text(),
            comment="Argon2id with its parameters and salt, PHC; NULL: it has no password.",
        ),
        sa.Column(
            "subject",
            sa.String(255),
            comment="Who it is elsewhere: OIDC issuer, space, subject; NULL: local.",
        ),
        sa.Column("created_s", sa.Float(), nullable=False, comment="When it was made."),
        sa.Column("signed_in_s", sa.Float(), comment="When a sign-in last succeeded; NULL: never."),
        sa.Column(
            "failures", sa.Integer(), nullable=False, comment="Sign-ins that failed since one succeeded."
        ),
        sa.Column(
            "retry_from_s", sa.Float(), nullable=False, comment="Before this no sign-in is even tried."
        ),
        sa.UniqueConstraint("subject", name="accounts_subject"),
        sa.CheckConstraint("status IN ('active', 'disabled')", name="accounts_status"),
    )
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.String(16), primary_key=True, comment="What it is called by; no secret."),
        sa.Column(
            "hash", sa.LargeBinary(32), nullable=False, comment="SHA-256 of the token, which is not kept."
        ),
        sa.Column(
            "account",
            sa.String(63),
            sa.ForeignKey("accounts.name"),
            nullable=False,
            comment="Whom it stands for.",
        ),
        sa.Column("purpose", sa.String(255), nullable=False, comment="What it is for, in its owner's words."),
        sa.Column("scopes", sa.Text(), nullable=False, comment="JSON: what it may do at most, in order."),
        sa.Column("created_s", sa.Float(), nullable=False, comment="When it was made."),
        sa.Column("expires_s", sa.Float(), nullable=False, comment="From when it is refused for its age."),
        sa.Column("used_s", sa.Float(), comment="When it was last used, to a minute; NULL: never."),
        sa.Column("revoked_s", sa.Float(), comment="When it was revoked; NULL: it was not."),
        sa.UniqueConstraint("hash", name="api_tokens_hash"),
    )
    op.create_index("api_tokens_account", "api_tokens", ["account"])
    op.create_table(
        "sessions",
        sa.Column(
            "hash", sa.LargeBinary(32), primary_key=True, comment="SHA-256 of the secret in the cookie."
        ),
        sa.Column(
            "account", sa.String(63), sa.ForeignKey("accounts.name"), nullable=False, comment="Who signed in."
        ),
        sa.Column("created_s", sa.Float(), nullable=False, comment="When."),
        sa.Column("seen_s", sa.Float(), nullable=False, comment="When it was last used, to a minute."),
        sa.Column("expires_s", sa.Float(), nullable=False, comment="From when it is refused, used or not."),
    )
    op.create_index("sessions_account", "sessions", ["account"])
    op.create_table(
        "replies",
        sa.Column(
            "caller",
            sa.String(80),
            comment="Whose request it answers: kind and id of what it signed in with.",
        ),
        sa.Column("key", sa.String(64), comment="The request's idempotency key."),
        sa.Column("request", sa.LargeBinary(32), nullable=False, comment="SHA-256 of method, path and body."),
        sa.Column("created_s", sa.Float(), nullable=False, comment="When the request came."),
        sa.Column("status", sa.Integer(), comment="The HTTP status answered; NULL: it is being worked on."),
        sa.Column(
            "sealed", sa.LargeBinary(), comment="The answer, encrypted to what the caller signed in with."
        ),
        sa.PrimaryKeyConstraint("caller", "key"),
    )
    op.create_index("replies_created", "replies", ["created_s"])
