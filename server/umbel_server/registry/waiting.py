"""Versions that wait for people: what is asked, who has decided, and whether somebody may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import RefusedError
from umbel_server.access.actor import Actor
from umbel_server.registry.approval import (
    DAY_S,
    Present,
    Request,
    Rules,
    Verdict,
    approvers,
    missing,
    require_may_decide,
)
from umbel_server.registry.stages import Stage
from umbel_server.store.registry import Line, Version, lines, open_requests, versions
from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Waiting:
    """A version that somebody asks approval for.

    Args:
        version: The version.
        line: Its model.
        asked: The request that holds.
        approved_by: The accounts whose approvals count.
        missing: How many more it needs.
        ends_s: Until when the request holds, Unix seconds.
    """

    version: Version
    line: Line
    asked: Request
    approved_by: tuple[str, ...]
    missing: int
    ends_s: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "model": self.version.model,
            "version": self.version.version,
            "stage": self.version.stage,
            "risk": self.line.risk,
            "request": self.asked.number,
            "requested_by": self.asked.requested_by,
            "requested_s": self.asked.requested_s,
            "comment": self.asked.comment,
            "approved_by": list(self.approved_by),
            "missing": self.missing,
            "ends_s": self.ends_s,
        }


def waiting(store: Store, rules: Rules) -> tuple[Waiting, ...]:
    """Return the versions that wait for an approval or have it and wait to be released, the oldest request first."""
    with store.database.read() as connection:
        asked = open_requests(connection)
        if not asked:
            return ()
        known = {line.model: line for line in lines(connection)}
        found = [each for each in versions(connection) if (each.model, each.version) in asked]
    made = []
    for version in found:
        request = asked[version.model, version.version]
        if version.stage not in (Stage.CANDIDATE, Stage.APPROVED):
            continue
        present = present_of(version, request)
        made.append(
            Waiting(
                version,
                known.get(version.model, Line(version.model)),
                request,
                tuple(sorted(approvers(request, present))),
                missing(request, present, rules),
                request.requested_s + rules.days * DAY_S,
            )
        )
    return tuple(sorted(made, key=lambda each: (each.missing == 0, each.asked.requested_s)))


def present_of(version: Version, asked: Request) -> Present:
    """Return what a request was asked about, as far as the store alone tells: its evidence is not read anew."""
    return Present(version.sha256, asked.evidence_sha256, version.added_by)


def refusal(version: Version, asked: Request, actor: Actor, verdict: Verdict) -> str | None:
    """Return why somebody may not decide so; None: they may. Whether the evidence is still the same is not asked."""
    try:
        require_may_decide(asked, present_of(version, asked), actor, verdict)
    except RefusedError as exc:
        return str(exc)
    return None
