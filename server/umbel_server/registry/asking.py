"""Approvals are asked for and given: who, of what, and until when they hold."""

from __future__ import annotations

from sqlalchemy import Connection

from umbel_proto.errors import RefusedError
from umbel_server.access.actor import Actor
from umbel_server.access.permissions import Permission
from umbel_server.fleet.layout import FleetDir
from umbel_server.registry.approval import (
    Decision,
    Present,
    Request,
    Rules,
    Verdict,
    approvers,
    lapse,
    missing,
    require_comment,
    require_may_decide,
    require_permission,
)
from umbel_server.registry.evidence import Evidence, gather
from umbel_server.registry.stages import Event, Stage, step
from umbel_server.registry.versions import MAX_TEXT, audited, facts, package_of, required
from umbel_server.store.audit import check_text
from umbel_server.store.registry import (
    Version,
    close_request,
    line_of,
    open_request,
    put_decision,
    put_request,
    requests_of,
    set_stage,
    version_of,
)
from umbel_server.store.store import Store


def rules_of(fleet: FleetDir) -> Rules:
    """Return what it takes to release a version of a fleet."""
    return Rules(fleet.settings.registry.approvals, fleet.settings.registry.approval_days)


def request(
    fleet: FleetDir, store: Store, model: str, version: int, actor: Actor, *, comment: str
) -> Request:
    """Ask for approval of a version with the evidence that there is; an earlier request is given up.

    Raises:
        UsageError: There is no such version, or nothing is said.
        RefusedError: Something that an approval needs is missing, or the version's stage has no such step.
    """
    require_permission(actor, Permission.REGISTRY_WRITE, "ask for approval")
    text = require_comment(comment)
    check_text(text, "comment", MAX_TEXT)
    evidence, seen = evidence_of(fleet, store, model, version)
    if not evidence.body["evaluation"]:
        raise RefusedError(
            f"{seen.name} was never evaluated: pack it with  umbel model pack --heldout FILE  and add it again."
        )
    now_s, rules = store.clock(), rules_of(fleet)
    with store.database.write() as connection:
        found = _unchanged(connection, seen)
        after = step(found.stage, Event.REQUEST)
        line = line_of(connection, model)
        if line is not None and line.unsaid:
            named = " and ".join(
                [", ".join(line.unsaid[:-1]), line.unsaid[-1]] if line.unsaid[1:] else line.unsaid
            )
            raise RefusedError(
                f"Nobody has said the {named} of {model}: do with  umbel registry describe {model}."
            )
        earlier = open_request(connection, found)
        if earlier is not None:
            close_request(connection, earlier, "superseded", "it was asked again")
        asked = Request(
            model=model,
            version=version,
            number=len(requests_of(connection, found)) + 1,
            package_sha256=found.sha256,
            evidence=evidence.text,
            evidence_sha256=evidence.sha256,
            requested_by=actor.name,
            requested_s=now_s,
            comment=text,
        )
        put_request(connection, asked)
        if not missing(asked, _present(found, evidence), rules):
            after = step(after, Event.APPROVE)
        set_stage(connection, found, after, now_s=now_s)
        store.audit.append(
            connection,
            actor,
            action="version.request",
            object=audited(found),
            reason=text[:2000],
            before=facts(found),
            after={
                **facts(found),
                "stage": after,
                "request": asked.number,
                "evidence": evidence.sha256.hex(),
            },
        )
    return asked


def decide(
    fleet: FleetDir,
    store: Store,
    model: str,
    version: int,
    actor: Actor,
    verdict: Verdict,
    *,
    comment: str,
    number: int | None = None,
) -> tuple[Version, int]:
    """Approve or reject a version.

    Args:
        fleet: The fleet.
        store: Its store.
        model: The model.
        version: The version.
        actor: Who decides.
        verdict: What they think.
        comment: Why.
        number: The request whose evidence they saw; None: whichever holds.

    Returns:
        The version as it stands now, and how many approvals it still needs.

    Raises:
        UsageError: There is no such version, or nothing is said.
        RefusedError: There is no request, it has lapsed, or this account may not decide on it.
    """
    text = require_comment(comment)
    check_text(text, "comment", MAX_TEXT)
    evidence, seen = evidence_of(fleet, store, model, version)
    rules, now_s = rules_of(fleet), store.clock()
    with store.database.write() as connection:
        found = _unchanged(connection, seen)
        present, asked = _present(found, evidence), open_request(connection, found)
        if asked is None or found.stage not in (Stage.CANDIDATE, Stage.APPROVED):
            raise RefusedError(
                f"Nobody asks for approval of {found.name}, which is {found.stage}: run  umbel registry request "
                f"{found.name}."
            )
        if number is not None and asked.number != number:
            raise RefusedError(
                f"{found.name} was asked about again since you looked: read the evidence of request {asked.number}, and "
                "decide on that."
            )
        require_may_decide(asked, present, actor, verdict)
        reason = lapse(asked, present, rules, now_s=now_s)
        if reason is None:
            if verdict is Verdict.APPROVE and not missing(asked, present, rules):
                raise RefusedError(f"{found.name} has all its approvals: nothing is left to decide.")
            decision = Decision(actor.name, verdict, text, now_s)
            put_decision(connection, asked, decision)
            stage: Stage = found.stage
            if verdict is Verdict.REJECT:
                close_request(connection, asked, "rejected", f"{actor.name}: {text}")
                stage = step(stage, Event.REJECT)
            decided = open_request(connection, found)
            left = 0 if decided is None else missing(decided, present, rules)
            if verdict is Verdict.APPROVE and not left and stage is Stage.CANDIDATE:
                stage = step(stage, Event.APPROVE)
            set_stage(connection, found, stage, now_s=now_s)
            store.audit.append(
                connection,
                actor,
                action=f"version.{verdict}",
                object=audited(found),
                reason=text[:2000],
                before=facts(found),
                after={**facts(found), "stage": stage, "request": asked.number},
            )
            return required(version_of(connection, model, version), model, version), left
        give_up(store, connection, found, asked, actor, reason)
    raise lapsed(found, reason)


def require_approved(
    store: Store, connection: Connection, version: Version, evidence: Evidence, rules: Rules, actor: Actor
) -> RefusedError | None:
    """Return why a version may not be released; None if it may. What has lapsed is given up.

    Returned and not raised, so that the transaction of the caller keeps that.
    """
    if not rules.approvals:
        return None
    asked = open_request(connection, version)
    if asked is None or version.stage not in (Stage.CANDIDATE, Stage.APPROVED):
        return RefusedError(
            f"{version.name} is {version.stage} and not approved: run  umbel registry request {version.name}, and let "
            f"{rules.approvals} accounts approve."
        )
    present = _present(version, evidence)
    reason = lapse(asked, present, rules, now_s=store.clock())
    if reason is not None:
        give_up(store, connection, version, asked, actor, reason)
        return lapsed(version, reason)
    left = missing(asked, present, rules)
    if left or version.stage is not Stage.APPROVED:
        return RefusedError(
            f"{version.name} still needs {left} of {rules.approvals} approvals: run  umbel registry approve "
            f"{version.name} --as TOKEN_FILE."
        )
    return None


def standing(
    store: Store, version: Version, asked: Request, evidence: Evidence, rules: Rules
) -> tuple[frozenset[str], int, str | None]:
    """Return who has approved, how many approvals are missing, and why they count for nothing if they do."""
    present = _present(version, evidence)
    reason = lapse(asked, present, rules, now_s=store.clock())
    return approvers(asked, present), missing(asked, present, rules), reason


def evidence_of(fleet: FleetDir, store: Store, model: str, version: int) -> tuple[Evidence, Version]:
    """Return the evidence for a version as it is now, and the version that it is of.

    Raises:
        UsageError: There is no such version.
        StorageError: Its package is missing.
    """
    with store.database.read() as connection:
        found = required(version_of(connection, model, version), model, version)
    return gather(package_of(fleet, found), found.run, store.runs, store.attempts), found


def give_up(
    store: Store, connection: Connection, version: Version, asked: Request, actor: Actor, reason: str
) -> None:
    """Let a request count for nothing any more, in a transaction of the caller's."""
    close_request(connection, asked, "lapsed", reason)
    stage = step(version.stage, Event.LAPSE)
    set_stage(connection, version, stage, now_s=store.clock())
    store.audit.append(
        connection,
        actor,
        action="version.lapse",
        object=audited(version),
        reason=reason,
        before=facts(version),
        after={**facts(version), "stage": stage, "request": asked.number},
    )


def lapsed(version: Version, reason: str) -> RefusedError:
    """Return the error for approvals that count for nothing any more."""
    return RefusedError(
        f"What was approved of {version.name} has lapsed, as {reason}: run  umbel registry request {version.name}."
    )


def _unchanged(connection: Connection, seen: Version) -> Version:
    found = required(
        version_of(connection, seen.model, seen.version, for_change=True), seen.model, seen.version
    )
    if (found.sha256, found.run) != (seen.sha256, seen.run):
        raise RefusedError(f"{found.name} was changed at this very moment: look at it, and decide again.")
    return found


def _present(version: Version, evidence: Evidence) -> Present:
    return Present(version.sha256, evidence.sha256, version.added_by)
