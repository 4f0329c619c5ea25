"""Who must approve of a version before devices may have it. Pure: no store, no clock.

An approval is of one package and one body of evidence. It counts for nothing once either is another, once the
request is older than the fleet allows, or once anybody has rejected it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.actor import LOCAL, Actor
from umbel_server.access.permissions import HELD, Permission, held

DAY_S = 86400.0


class Verdict(enum.StrEnum):
    """What somebody thinks of a request."""

    APPROVE = "approve"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Rules:
    """What it takes to release a version.

    Args:
        approvals: How many accounts must approve.
        days: How long after a request its approvals hold.
    """

    approvals: int = 0
    days: float = 30


@dataclass(frozen=True, slots=True)
class Decision:
    """What one account thinks of a request.

    Args:
        account: The account.
        verdict: What it thinks.
        comment: Why.
        decided_s: When, Unix seconds.
    """

    account: str
    verdict: Verdict
    comment: str
    decided_s: float


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody asks that a version be approved.

    Args:
        model: The model.
        version: The version.
        number: The request for this version, from 1.
        package_sha256: The package it is about, 32 bytes.
        evidence: What there is to judge it by, canonical JSON.
        evidence_sha256: Hash that binds the evidence, 32 bytes.
        requested_by: Who asks.
        requested_s: When, Unix seconds.
        comment: What they have to say.
        closed: Why it holds no more, in a word; empty while it holds.
        closed_reason: The same in a sentence.
        decisions: What accounts think of it, in their order.
    """

    model: str
    version: int
    number: int
    package_sha256: bytes
    evidence: str
    evidence_sha256: bytes
    requested_by: str
    requested_s: float
    comment: str
    closed: str = ""
    closed_reason: str = ""
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Present:
    """What an approval is of, as things are now.

    Args:
        package_sha256: The version's package, 32 bytes.
        evidence_sha256: Hash that binds its evidence, 32 bytes.
        added_by: Who brought the package.
    """

    package_sha256: bytes
    evidence_sha256: bytes
    added_by: str


def lapse(request: Request, present: Present, rules: Rules, *, now_s: float) -> str | None:
    """Return why the approvals of a request count for nothing any more; None if they do."""
    if request.package_sha256 != present.package_sha256:
        return "the package is another one now"
    if request.evidence_sha256 != present.evidence_sha256:
        return "the evidence is not what was asked about"
    if now_s >= request.requested_s + rules.days * DAY_S:
        return f"it was asked more than {rules.days:g} days ago"
    return None


def approvers(request: Request, present: Present) -> frozenset[str]:
    """Return the accounts whose approvals count: each once, and none that asked or brought the package."""
    involved = {person(request.requested_by), person(present.added_by)}
    return frozenset(
        decision.account
        for decision in request.decisions
        if decision.verdict is Verdict.APPROVE
        and _is_account(decision.account)
        and decision.account not in involved
    )


def missing(request: Request, present: Present, rules: Rules) -> int:
    """Return how many approvals a request still needs."""
    return max(0, rules.approvals - len(approvers(request, present)))


def require_may_decide(request: Request, present: Present, actor: Actor, verdict: Verdict) -> None:
    """Check that somebody may decide on a request.

    Raises:
        RefusedError: They may not, or have done so already.
    """
    require_permission(actor, Permission.REGISTRY_APPROVE, f"{verdict} a version")
    if not _is_account(actor.name):
        raise RefusedError(
            f"{actor.name} is no account, and only accounts {verdict}: name yours with --as TOKEN_FILE."
        )
    if verdict is Verdict.APPROVE:
        for who, what in (
            (request.requested_by, "asked for this approval"),
            (present.added_by, "added this version"),
        ):
            if person(who) == actor.name:
                raise RefusedError(
                    f"{actor.name} {what}, and so cannot give it: let another account approve."
                )
    if any((each.account, each.verdict) == (actor.name, verdict) for each in request.decisions):
        raise RefusedError(f"{actor.name} has said so already, and counts once: let another account decide.")


def require_permission(actor: Actor, permission: Permission, what: str) -> None:
    """Check that somebody's roles allow something.

    Raises:
        RefusedError: They do not; the sentence says which would.
    """
    if permission not in held(actor.roles):
        able = " or ".join(sorted(role for role, allowed in HELD.items() if permission in allowed))
        raise RefusedError(f"{actor.name} may not {what}: that takes the role {able}.")


def require_comment(comment: str) -> str:
    """Return a comment without the space around it.

    Raises:
        UsageError: It says nothing.
    """
    text = comment.strip()
    if not text:
        raise UsageError("A decision needs its reason: say why with --comment.")
    return text


def person(name: str) -> str:
    """Return who stands behind a name: somebody at the fleet's directory may have an account of the same name."""
    return name.removeprefix(LOCAL)


def _is_account(name: str) -> bool:
    # No account is called like whoever has none: local:USER, and the services themselves.
    return bool(name) and ":" not in name
