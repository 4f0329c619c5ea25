"""The tables of accounts, of what they sign in with, and of answers that the API may have to repeat."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from umbel_server.store.tables import metadata

accounts = Table(
    "accounts",
    metadata,
    Column("name", String(63), primary_key=True, comment="The account's name; never given out twice."),
    Column("status", String(16), nullable=False, comment="active, or disabled: every sign-in is refused."),
    Column("roles", Text, nullable=False, comment="JSON: the roles, in order."),
    Column("password", Text, comment="Argon2id with its parameters and salt, PHC; NULL: it has no password."),
    Column("subject", String(255), comment="Who it is elsewhere: OIDC issuer, space, subject; NULL: local."),
    Column("created_s", Float, nullable=False, comment="When it was made."),
    Column("signed_in_s", Float, comment="When a sign-in last succeeded; NULL: never."),
    Column("failures", Integer, nullable=False, comment="Sign-ins that failed since one succeeded."),
    Column("retry_from_s", Float, nullable=False, comment="Before this no sign-in is even tried."),
    UniqueConstraint("subject", name="accounts_subject"),
    CheckConstraint("status IN ('active', 'disabled')", name="accounts_status"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String(16), primary_key=True, comment="What it is called by; no secret."),
    Column("hash", LargeBinary(32), nullable=False, comment="SHA-256 of the token, which is not kept."),
    Column("account", String(63), ForeignKey("accounts.name"), nullable=False, comment="Whom it stands for."),
    Column("purpose", String(255), nullable=False, comment="What it is for, in its owner's words."),
    Column("scopes", Text, nullable=False, comment="JSON: what it may do at most, in order."),
    Column("created_s", Float, nullable=False, comment="When it was made."),
    Column("expires_s", Float, nullable=False, comment="From when it is refused for its age."),
    Column("used_s", Float, comment="When it was last used, to a minute; NULL: never."),
    Column("revoked_s", Float, comment="When it was revoked; NULL: it was not."),
    UniqueConstraint("hash", name="api_tokens_hash"),
    Index("api_tokens_account", "account"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash", LargeBinary(32), primary_key=True, comment="SHA-256 of the secret in the cookie."),
    Column("account", String(63), ForeignKey("accounts.name"), nullable=False, comment="Who signed in."),
    Column("created_s", Float, nullable=False, comment="When."),
    Column("seen_s", Float, nullable=False, comment="When it was last used, to a minute."),
    Column("expires_s", Float, nullable=False, comment="From when it is refused, used or not."),
    Index("sessions_account", "account"),
)

replies = Table(
    "replies",
    metadata,
    Column("caller", String(80), comment="Whose request it answers: kind and id of what it signed in with."),
    Column("key", String(64), comment="The request's idempotency key."),
    Column("request", LargeBinary(32), nullable=False, comment="SHA-256 of method, path and body."),
    Column("created_s", Float, nullable=False, comment="When the request came."),
    Column("status", Integer, comment="The HTTP status answered; NULL: it is being worked on."),
    Column("sealed", LargeBinary, comment="The answer, encrypted to what the caller signed in with."),
    PrimaryKeyConstraint("caller", "key"),
    Index("replies_created", "created_s"),
)
