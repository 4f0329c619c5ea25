"""The registry in the store: model lines, versions, requests, decisions, comments.

Every method takes the connection of a transaction: a change, what follows from it and its entry in the audit log are
kept together or not at all. What was once released is guarded by triggers as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from umbel_proto.ids import ModelName, RunId
from umbel_server.registry.approval import Decision, Request, Verdict
from umbel_server.registry.stages import Stage
from umbel_server.store.tables_registry import (
    approval_decisions,
    approval_requests,
    model_lines,
    model_versions,
    version_comments,
)

RISKS = ("unclassified", "minimal", "limited", "high")
"""Classes of risk; what the EU AI Act prohibits is not in any registry."""


@dataclass(frozen=True, slots=True)
class Line:
    """A model, of which there are versions.

    Args:
        model: The model.
        owner: Who answers for it; empty: nobody said, as with the others.
        purpose: What it is for.
        risk: One of ``RISKS``.
        review_date: When it is looked at again, ISO date.
        decommission: When it is to be given up.
    """

    model: ModelName
    owner: str = ""
    purpose: str = ""
    risk: str = RISKS[0]
    review_date: str = ""
    decommission: str = ""

    @property
    def unsaid(self) -> tuple[str, ...]:
        """What nobody has said yet and an approval needs."""
        told = {"owner": self.owner, "purpose": self.purpose, "risk": self.risk.removeprefix(RISKS[0])}
        return tuple(name for name, value in told.items() if not value)


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model.

    Args:
        model: The model.
        version: Its version.
        sha256: Hash of the whole package file, 32 bytes.
        size: The package's size, bytes.
        task: What it was trained for.
        contract_sha256: Hash of its data contract, 32 bytes.
        run: The run that trained it; None where none is known.
        rounds: How many rounds of it are in it; None where that is not known.
        parent: The version it was made of; None: of none.
        code: Version of the code that made it; empty: not said.
        variants: Of each variant, its engine and its size in bytes.
        lineage: Where the package says it comes from.
        added_by: Who added it as it is now.
        added_s: When, Unix seconds.
        stage: Where it stands.
        stage_s: Since when, Unix seconds.
        sealed_s: From when on devices may have it and nothing but its stage changes, Unix seconds; None: not yet.
    """

    model: ModelName
    version: int
    sha256: bytes
    size: int
    task: str
    contract_sha256: bytes
    run: RunId | None
    rounds: int | None
    parent: int | None
    code: str
    variants: Mapping[str, Mapping[str, Any]]
    lineage: Mapping[str, Any] = field(repr=False)
    added_by: str
    added_s: float
    stage: Stage = Stage.DRAFT
    stage_s: float = 0.0
    sealed_s: float | None = None

    @property
    def name(self) -> str:
        """``MODEL@VERSION``, as people write it."""
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True)
class Comment:
    """What somebody says of a version.

    Args:
        author: Who.
        said_s: When, Unix seconds.
        text: What.
    """

    author: str
    said_s: float
    text: str


def line_of(connection: Connection, model: str) -> Line | None:
    """Return a model's line; None if nobody has heard of it."""
    row = connection.execute(select(model_lines).where(model_lines.c.model == model)).one_or_none()
    return None if row is None else _line(row)


def lines(connection: Connection) -> tuple[Line, ...]:
    """Return every line, by model."""
    return tuple(map(_line, connection.execute(select(model_lines).order_by(model_lines.c.model))))


def put_line(connection: Connection, line: Line, *, now_s: float) -> None:
    """Keep what is said of a line; a new one is made."""
    values = {
        "owner": line.owner,
        "purpose": line.purpose,
        "risk": line.risk,
        "review_date": line.review_date,
        "decommission": line.decommission,
        "changed_s": now_s,
    }
    changed = connection.execute(update(model_lines).where(model_lines.c.model == line.model).values(values))
    if not changed.rowcount:
        connection.execute(insert(model_lines).values(model=line.model, created_s=now_s, **values))


def version_of(
    connection: Connection, model: str, version: int, *, for_change: bool = False
) -> Version | None:
    """Return a version; None if it is not in the registry.

    Args:
        connection: Of a transaction.
        model: The model.
        version: The version.
        for_change: Whether others who want to change it wait until this transaction ends.
    """
    query = select(model_versions).filter_by(model=model, version=version)
    # SQLite has one writer anyway, and no words for it.
    row = connection.execute(query.with_for_update() if for_change else query).one_or_none()
    return None if row is None else _version(row)


def versions(connection: Connection, model: str | None = None) -> tuple[Version, ...]:
    """Return every version, of one model or of all, by model and number."""
    query = select(model_versions).order_by(model_versions.c.model, model_versions.c.version)
    if model is not None:
        query = query.where(model_versions.c.model == model)
    return tuple(map(_version, connection.execute(query)))


def put_version(connection: Connection, version: Version) -> None:
    """Keep a version; one that is there is replaced, which the store refuses once it is sealed."""
    values = {
        "sha256": version.sha256,
        "size": version.size,
        "task": version.task,
        "contract_sha256": version.contract_sha256,
        "run_id": version.run,
        "rounds": version.rounds,
        "parent_version": version.parent,
        "code_version": version.code,
        "variants": json.dumps(version.variants, sort_keys=True),
        "lineage": json.dumps(dict(version.lineage), sort_keys=True),
        "stage": version.stage,
        "stage_s": version.stage_s,
        "added_by": version.added_by,
        "added_s": version.added_s,
        "sealed_s": version.sealed_s,
    }
    key = {"model": version.model, "version": version.version}
    changed = connection.execute(update(model_versions).filter_by(**key).values(values))
    if not changed.rowcount:
        connection.execute(insert(model_versions).values(**key, **values))


def set_stage(connection: Connection, version: Version, stage: Stage, *, now_s: float) -> bool:
    """Move a version on, if it still stands where it stood; say whether it did."""
    changed = connection.execute(
        update(model_versions)
        .filter_by(model=version.model, version=version.version, stage=version.stage)
        .values(stage=stage, stage_s=now_s)
    )
    return changed.rowcount == 1


def seal(connection: Connection, version: Version, *, now_s: float) -> None:
    """Let nothing of a version change any more but its stage."""
    connection.execute(
        update(model_versions)
        .filter_by(model=version.model, version=version.version, sealed_s=None)
        .values(sealed_s=now_s)
    )


def requests_of(connection: Connection, version: Version) -> tuple[Request, ...]:
    """Return every request for a version with what was decided, oldest first."""
    return _requests(connection, model=version.model, version=version.version)


def open_requests(connection: Connection, model: str | None = None) -> dict[tuple[str, int], Request]:
    """Return the requests that hold, of one model or of all, by model and version."""
    found = _requests(connection, **({} if model is None else {"model": model}))
    return {(each.model, each.version): each for each in found if not each.closed}


def open_request(connection: Connection, version: Version) -> Request | None:
    """Return the request for a version that holds; None if none does."""
    return next((each for each in requests_of(connection, version) if not each.closed), None)


def put_request(connection: Connection, request: Request) -> None:
    """Keep a new request."""
    connection.execute(
        insert(approval_requests).values(
            model=request.model,
            version=request.version,
            number=request.number,
            package_sha256=request.package_sha256,
            evidence=request.evidence,
            evidence_sha256=request.evidence_sha256,
            requested_by=request.requested_by,
            requested_s=request.requested_s,
            comment=request.comment,
            closed="",
            closed_reason="",
        )
    )


def close_request(connection: Connection, request: Request, closed: str, reason: str) -> None:
    """Let a request hold no more."""
    connection.execute(
        update(approval_requests)
        .filter_by(model=request.model, version=request.version, number=request.number, closed="")
        .values(closed=closed, closed_reason=reason)
    )


def put_decision(connection: Connection, request: Request, decision: Decision) -> None:
    """Keep what an account decided."""
    connection.execute(
        insert(approval_decisions).values(
            model=request.model,
            version=request.version,
            number=request.number,
            account=decision.account,
            verdict=decision.verdict,
            comment=decision.comment,
            decided_s=decision.decided_s,
        )
    )


def put_comment(connection: Connection, version: Version, comment: Comment) -> None:
    """Keep what somebody says of a version."""
    key = {"model": version.model, "version": version.version}
    last = connection.execute(select(func.max(version_comments.c.number)).filter_by(**key)).scalar() or 0
    connection.execute(
        insert(version_comments).values(
            **key, number=last + 1, author=comment.author, said_s=comment.said_s, text=comment.text
        )
    )


def comments_of(connection: Connection, version: Version) -> tuple[Comment, ...]:
    """Return what was said of a version, oldest first."""
    query = (
        select(version_comments)
        .filter_by(model=version.model, version=version.version)
        .order_by(version_comments.c.number)
    )
    return tuple(Comment(row.author, row.said_s, row.text) for row in connection.execute(query))


def _requests(connection: Connection, **key: str | int) -> tuple[Request, ...]:
    decisions: dict[tuple[str, int, int], list[Decision]] = {}
    said = select(approval_decisions).filter_by(**key).order_by(approval_decisions.c.decided_s)
    for row in connection.execute(said):
        decided = Decision(row.account, Verdict(row.verdict), row.comment, row.decided_s)
        decisions.setdefault((row.model, row.version, row.number), []).append(decided)
    asked = select(approval_requests).filter_by(**key).order_by(approval_requests.c.number)
    return tuple(
        _request(row, tuple(decisions.get((row.model, row.version, row.number), ())))
        for row in connection.execute(asked)
    )


def _line(row: Row[Any]) -> Line:
    return Line(ModelName(row.model), row.owner, row.purpose, row.risk, row.review_date, row.decommission)


def _version(row: Row[Any]) -> Version:
    return Version(
        model=ModelName(row.model),
        version=row.version,
        sha256=row.sha256,
        size=row.size,
        task=row.task,
        contract_sha256=row.contract_sha256,
        run=None if row.run_id is None else RunId(row.run_id),
        rounds=row.rounds,
        parent=row.parent_version,
        code=row.code_version,
        variants=json.loads(row.variants),
        lineage=json.loads(row.lineage),
        added_by=row.added_by,
        added_s=row.added_s,
        stage=Stage(row.stage),
        stage_s=row.stage_s,
        sealed_s=row.sealed_s,
    )


def _request(row: Row[Any], decisions: tuple[Decision, ...]) -> Request:
    return Request(
        model=row.model,
        version=row.version,
        number=row.number,
        package_sha256=row.package_sha256,
        evidence=row.evidence,
        evidence_sha256=row.evidence_sha256,
        requested_by=row.requested_by,
        requested_s=row.requested_s,
        comment=row.comment,
        closed=row.closed,
        closed_reason=row.closed_reason,
        decisions=decisions,
    )
