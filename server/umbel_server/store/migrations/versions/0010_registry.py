"""Model lines, their versions and their approvals; what was ever released stays as it was."""

from typing import NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


class _Rule(NamedTuple):
    """What the database itself refuses, whoever asks."""

    name: str
    table: str
    event: str
    where: str
    sentence: str


_FIXED = (
    "model",
    "version",
    "sha256",
    "size",
    "task",
    "contract_sha256",
    "code_version",
    "variants",
    "lineage",
)
_FIXED_OR_NULL = ("run_id", "rounds", "parent_version", "sealed_s")
_CHANGED = " OR ".join(
    [
        *(f"OLD.{name} <> NEW.{name}" for name in (*_FIXED, "added_by", "added_s")),
        *(
            f"(OLD.{name} IS NULL) <> (NEW.{name} IS NULL) OR OLD.{name} <> NEW.{name}"
            for name in _FIXED_OR_NULL
        ),
    ]
)
_ASKED = ("model", "version", "number", "package_sha256", "evidence", "evidence_sha256", "requested_by")
_STAYS = "what was once released is never changed or deleted, only retired"
_ON_RECORD = "what was asked and decided stays on record"

RULES = (
    _Rule("versions_stay", "model_versions", "DELETE", "OLD.sealed_s IS NOT NULL", _STAYS),
    _Rule("versions_same", "model_versions", "UPDATE", f"OLD.sealed_s IS NOT NULL AND ({_CHANGED})", _STAYS),
    _Rule(
        "versions_forward",
        "model_versions",
        "UPDATE",
        "OLD.stage IN ('released', 'deprecated') AND NEW.stage NOT IN ('released', 'deprecated', 'retired') "
        "OR OLD.stage = 'retired' AND NEW.stage <> 'retired' "
        "OR NEW.stage = 'released' AND OLD.stage NOT IN ('approved', 'released', 'deprecated')",
        "a version is released only when it is approved, and goes on from there to retired",
    ),
    _Rule("requests_stay", "approval_requests", "DELETE", "1 = 1", _ON_RECORD),
    _Rule(
        "requests_same",
        "approval_requests",
        "UPDATE",
        " OR ".join(f"OLD.{name} <> NEW.{name}" for name in (*_ASKED, "requested_s", "comment"))
        + " OR OLD.closed <> ''",
        _ON_RECORD,
    ),
    _Rule("decisions_stay", "approval_decisions", "DELETE", "1 = 1", _ON_RECORD),
    _Rule("decisions_same", "approval_decisions", "UPDATE", "1 = 1", _ON_RECORD),
    _Rule("comments_stay", "version_comments", "DELETE", "1 = 1", _ON_RECORD),
    _Rule("comments_same", "version_comments", "UPDATE", "1 = 1", _ON_RECORD),
)

# SQLite's REPLACE deletes without a word to the triggers above.
REPLACED = (
    _Rule(
        "versions_replaced",
        "model_versions",
        "INSERT",
        "EXISTS (SELECT 1 FROM model_versions AS old WHERE old.sealed_s IS NOT NULL "
        "AND (old.sha256 = NEW.sha256 OR old.model = NEW.model AND old.version = NEW.version))",
        _STAYS,
    ),
    _Rule(
        "requests_replaced",
        "approval_requests",
        "INSERT",
        "EXISTS (SELECT 1 FROM approval_requests AS old WHERE old.model = NEW.model "
        "AND old.version = NEW.version AND (old.number = NEW.number OR old.closed = '' AND NEW.closed = ''))",
        _ON_RECORD,
    ),
    _Rule(
        "decisions_replaced",
        "approval_decisions",
        "INSERT",
        "EXISTS (SELECT 1 FROM approval_decisions AS old WHERE old.model = NEW.model "
        "AND old.version = NEW.version AND old.number = NEW.number AND old.account = NEW.account "
        "AND old.verdict = NEW.verdict)",
        _ON_RECORD,
    ),
)


def upgrade() -> None:
    """Make the tables, and let the database itself refuse to change what was released or decided."""
    _make_tables()
    if op.get_bind().dialect.name == "postgresql":
        for rule in RULES:
            op.execute(_FUNCTION.format(rule=rule, row="OLD" if rule.event == "DELETE" else "NEW"))
            op.execute(
                f"CREATE TRIGGER {rule.name} BEFORE {rule.event} ON {rule.table} "
                f"FOR EACH ROW EXECUTE FUNCTION {rule.name}()"
            )
        return
    for rule in (*RULES, *REPLACED):
        op.execute(
            f"CREATE TRIGGER {rule.name} BEFORE {rule.event} ON {rule.table} WHEN {rule.where} "
            f"BEGIN SELECT RAISE(ABORT, '{rule.sentence}'); END"
        )


_FUNCTION = """\
CREATE FUNCTION {rule.name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF {rule.where} THEN
  RAISE EXCEPTION '{rule.sentence}' USING ERRCODE = 'integrity_constraint_violation';
END IF;
RETURN {row};
END $$"""


def _make_tables() -> None:
    op.create_table(
        "model_lines",
        sa.Column("model", sa.String(63), primary_key=True, comment="The model."),
        sa.Column("owner", sa.String(255), nullable=False, comment="Who answers for it; empty: nobody said."),
        sa.Column("purpose", sa.Text(), nullable=False, comment="What it is for; empty: nobody said."),
        sa.Column("risk", sa.String(16), nullable=False, comment="Risk class in the words of the EU AI Act."),
        sa.Column(
            "review_date", sa.String(10), nullable=False, comment="ISO date of the next review; empty: none."
        ),
        sa.Column(
            "decommission",
            sa.Text(),
            nullable=False,
            comment="When it is to be given up; empty: nobody said.",
        ),
        sa.Column("created_s", sa.Float(), nullable=False, comment="When it was first heard of."),
        sa.Column("changed_s", sa.Float(), nullable=False, comment="When these facts were last changed."),
        sa.CheckConstraint("risk IN ('unclassified', 'minimal', 'limited', 'high')", name="model_lines_risk"),
    )
    op.create_table(
        "model_versions",
        sa.Column("model", sa.String(63), sa.ForeignKey("model_lines.model"), comment="The model."),
        sa.Column("version", sa.BigInteger(), comment="Its version."),
        sa.Column("sha256", sa.LargeBinary(32), nullable=False, comment="Hash of the whole package file."),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="The package's size, bytes."),
        sa.Column("task", sa.String(255), nullable=False, comment="What it was trained for."),
        sa.Column(
            "contract_sha256", sa.LargeBinary(32), nullable=False, comment="Hash of its data contract."
        ),
        sa.Column("run_id", sa.String(63), comment="The run that trained it; NULL: none that is known."),
        sa.Column(
            "rounds", sa.BigInteger(), comment="How many rounds of that run are in it; NULL: not known."
        ),
        sa.Column("parent_version", sa.BigInteger(), comment="The version it was made of; NULL: of none."),
        sa.Column(
            "code_version",
            sa.String(255),
            nullable=False,
            comment="Of the code that made it; empty: not said.",
        ),
        sa.Column(
            "variants", sa.Text(), nullable=False, comment="JSON: variant -> engine, and size in bytes."
        ),
        sa.Column(
            "lineage", sa.Text(), nullable=False, comment="JSON: where the package says it comes from."
        ),
        sa.Column(
            "stage", sa.String(16), nullable=False, comment="Where it stands between draft and retired."
        ),
        sa.Column("stage_s", sa.Float(), nullable=False, comment="Since when."),
        sa.Column("added_by", sa.String(255), nullable=False, comment="Who added it as it is now."),
        sa.Column("added_s", sa.Float(), nullable=False, comment="When."),
        sa.Column(
            "sealed_s",
            sa.Float(),
            comment="From when on devices may have it, and nothing but its stage changes; NULL: not yet.",
        ),
        sa.PrimaryKeyConstraint("model", "version"),
        sa.CheckConstraint(
            "stage NOT IN ('released', 'deprecated') OR sealed_s IS NOT NULL", name="model_versions_sealed"
        ),
        sa.UniqueConstraint("sha256", name="model_versions_sha256"),
        sa.CheckConstraint(
            "stage IN ('draft', 'candidate', 'approved', 'released', 'deprecated', 'retired')",
            name="model_versions_stage",
        ),
    )
    op.create_table(
        "approval_requests",
        sa.Column("model", sa.String(63), comment="The model."),
        sa.Column("version", sa.BigInteger(), comment="The version."),
        sa.Column("number", sa.Integer(), comment="The request for this version, from 1."),
        sa.Column("package_sha256", sa.LargeBinary(32), nullable=False, comment="The package it is about."),
        sa.Column(
            "evidence", sa.Text(), nullable=False, comment="Canonical JSON: what there is to judge it by."
        ),
        sa.Column(
            "evidence_sha256", sa.LargeBinary(32), nullable=False, comment="Hash that binds the evidence."
        ),
        sa.Column(
            "requested_by", sa.String(255), nullable=False, comment="Who asked, and so may not approve."
        ),
        sa.Column(
            "requested_s", sa.Float(), nullable=False, comment="When; approvals lapse some days after it."
        ),
        sa.Column("comment", sa.Text(), nullable=False, comment="What the asking person had to say."),
        sa.Column(
            "closed",
            sa.String(16),
            nullable=False,
            comment="rejected, lapsed or superseded; empty while it holds.",
        ),
        sa.Column(
            "closed_reason", sa.Text(), nullable=False, comment="Why it holds no more; empty while it holds."
        ),
        sa.PrimaryKeyConstraint("model", "version", "number"),
        sa.CheckConstraint(
            "closed IN ('', 'rejected', 'lapsed', 'superseded')", name="approval_requests_closed"
        ),
        sa.ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
    )
    op.create_table(
        "approval_decisions",
        sa.Column("model", sa.String(63), comment="The model."),
        sa.Column("version", sa.BigInteger(), comment="The version."),
        sa.Column("number", sa.Integer(), comment="The request."),
        sa.Column("account", sa.String(255), comment="Who decided: an account, and each of them once."),
        sa.Column("verdict", sa.String(16), comment="approve or reject."),
        sa.Column("comment", sa.Text(), nullable=False, comment="Why."),
        sa.Column("decided_s", sa.Float(), nullable=False, comment="When."),
        sa.PrimaryKeyConstraint("model", "version", "number", "account", "verdict"),
        sa.CheckConstraint("comment <> ''", name="approval_decisions_comment"),
        sa.CheckConstraint("verdict IN ('approve', 'reject')", name="approval_decisions_verdict"),
        sa.ForeignKeyConstraint(
            ["model", "version", "number"],
            ["approval_requests.model", "approval_requests.version", "approval_requests.number"],
        ),
    )
    op.create_table(
        "version_comments",
        sa.Column("model", sa.String(63), comment="The model."),
        sa.Column("version", sa.BigInteger(), comment="The version."),
        sa.Column("number", sa.Integer(), comment="The comment on this version, from 1."),
        sa.Column("author", sa.String(255), nullable=False, comment="Who says it."),
        sa.Column("said_s", sa.Float(), nullable=False, comment="When."),
        sa.Column("text", sa.Text(), nullable=False, comment="What."),
        sa.PrimaryKeyConstraint("model", "version", "number"),
        sa.ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
    )
    op.create_table(
        "withdrawals",
        sa.Column(
            "sha256",
            sa.LargeBinary(32),
            sa.ForeignKey("releases.sha256"),
            primary_key=True,
            comment="A release that devices may fetch no more.",
        ),
        sa.Column("withdrawn_s", sa.Float(), nullable=False, comment="Since when."),
    )
    is_open = sa.text("closed = ''")
    op.create_index(
        "approval_requests_open",
        "approval_requests",
        ["model", "version"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
