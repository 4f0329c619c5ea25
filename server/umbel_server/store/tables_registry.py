"""The tables of the registry: model lines, their versions, and who approved what."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from umbel_server.store.tables import metadata

model_lines = Table(
    "model_lines",
    metadata,
    Column("model", String(63), primary_key=True, comment="The model."),
    Column("owner", String(255), nullable=False, comment="Who answers for it; empty: nobody said."),
    Column("purpose", Text, nullable=False, comment="What it is for; empty: nobody said."),
    Column("risk", String(16), nullable=False, comment="Risk class in the words of the EU AI Act."),
    Column("review_date", String(10), nullable=False, comment="ISO date of the next review; empty: none."),
    Column("decommission", Text, nullable=False, comment="When it is to be given up; empty: nobody said."),
    Column("created_s", Float, nullable=False, comment="When it was first heard of."),
    Column("changed_s", Float, nullable=False, comment="When these facts were last changed."),
    CheckConstraint("risk IN ('unclassified', 'minimal', 'limited', 'high')", name="model_lines_risk"),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("model", String(63), ForeignKey("model_lines.model"), comment="The model."),
    Column("version", BigInteger, comment="Its version."),
    Column("sha256", LargeBinary(32), nullable=False, comment="Hash of the whole package file."),
    Column("size", BigInteger, nullable=False, comment="The package's size, bytes."),
    Column("task", String(255), nullable=False, comment="What it was trained for."),
    Column("contract_sha256", LargeBinary(32), nullable=False, comment="Hash of its data contract."),
    Column("run_id", String(63), comment="The run that trained it; NULL: none that is known."),
    Column("rounds", BigInteger, comment="How many rounds of that run are in it; NULL: not known."),
    Column("parent_version", BigInteger, comment="The version it was made of; NULL: of none."),
    Column("code_version", String(255), nullable=False, comment="Of the code that made it; empty: not said."),
    Column("variants", Text, nullable=False, comment="JSON: variant -> engine, and size in bytes."),
    Column("lineage", Text, nullable=False, comment="JSON: where the package says it comes from."),
    Column("stage", String(16), nullable=False, comment="Where it stands between draft and retired."),
    Column("stage_s", Float, nullable=False, comment="Since when."),
    Column("added_by", String(255), nullable=False, comment="Who added it as it is now."),
    Column("added_s", Float, nullable=False, comment="When."),
    Column(
        "sealed_s",
        Float,
        comment="From when on devices may have it, and nothing but its stage changes; NULL: not yet.",
    ),
    PrimaryKeyConstraint("model", "version"),
    UniqueConstraint("sha256", name="model_versions_sha256"),
    CheckConstraint(
        "stage IN ('draft', 'candidate', 'approved', 'released', 'deprecated', 'retired')",
        name="model_versions_stage",
    ),
    CheckConstraint(
        "stage NOT IN ('released', 'deprecated') OR sealed_s IS NOT NULL", name="model_versions_sealed"
    ),
)

approval_requests = Table(
    "approval_requests",
    metadata,
    Column("model", String(63), comment="The model."),
    Column("version", BigInteger, comment="The version."),
    Column("number", Integer, comment="The request for this version, from 1."),
    Column("package_sha256", LargeBinary(32), nullable=False, comment="The package it is about."),
    Column("evidence", Text, nullable=False, comment="Canonical JSON: what there is to judge it by."),
    Column("evidence_sha256", LargeBinary(32), nullable=False, comment="Hash that binds the evidence."),
    Column("requested_by", String(255), nullable=False, comment="Who asked, and so may not approve."),
    Column("requested_s", Float, nullable=False, comment="When; approvals lapse some days after it."),
    Column("comment", Text, nullable=False, comment="What the asking person had to say."),
    Column(
        "closed", String(16), nullable=False, comment="rejected, lapsed or superseded; empty while it holds."
    ),
    Column("closed_reason", Text, nullable=False, comment="Why it holds no more; empty while it holds."),
    PrimaryKeyConstraint("model", "version", "number"),
    ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
    CheckConstraint("closed IN ('', 'rejected', 'lapsed', 'superseded')", name="approval_requests_closed"),
    Index(
        "approval_requests_open",
        "model",
        "version",
        unique=True,
        sqlite_where=text("closed = ''"),
        postgresql_where=text("closed = ''"),
    ),
)

approval_decisions = Table(
    "approval_decisions",
    metadata,
    Column("model", String(63), comment="The model."),
    Column("version", BigInteger, comment="The version."),
    Column("number", Integer, comment="The request."),
    Column("account", String(255), comment="Who decided: an account, and each of them once."),
    Column("verdict", String(16), comment="approve or reject."),
    Column("comment", Text, nullable=False, comment="Why."),
    Column("decided_s", Float, nullable=False, comment="When."),
    PrimaryKeyConstraint("model", "version", "number", "account", "verdict"),
    ForeignKeyConstraint(
        ["model", "version", "number"],
        ["approval_requests.model", "approval_requests.version", "approval_requests.number"],
    ),
    CheckConstraint("verdict IN ('approve', 'reject')", name="approval_decisions_verdict"),
    CheckConstraint("comment <> ''", name="approval_decisions_comment"),
)

version_comments = Table(
    "version_comments",
    metadata,
    Column("model", String(63), comment="The model."),
    Column("version", BigInteger, comment="The version."),
    Column("number", Integer, comment="The comment on this version, from 1."),
    Column("author", String(255), nullable=False, comment="Who says it."),
    Column("said_s", Float, nullable=False, comment="When."),
    Column("text", Text, nullable=False, comment="What."),
    PrimaryKeyConstraint("model", "version", "number"),
    ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
)

withdrawals = Table(
    "withdrawals",
    metadata,
    Column(
        "sha256",
        LargeBinary(32),
        ForeignKey("releases.sha256"),
        primary_key=True,
        comment="A release that devices may fetch no more.",
    ),
    Column("withdrawn_s", Float, nullable=False, comment="Since when."),
)
