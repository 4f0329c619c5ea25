"""A version goes out to devices, and out of use.

What is about to go out is sealed first: from then on it is what its approvals are of, whatever crashes. It counts as
released in the same transaction that lets the gateway offer it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.package import Package
from umbel_server.access.actor import Actor
from umbel_server.access.permissions import Permission
from umbel_server.fleet.layout import FleetDir
from umbel_server.registry.approval import Rules, require_comment, require_permission
from umbel_server.registry.asking import require_approved, rules_of
from umbel_server.registry.evidence import gather
from umbel_server.registry.stages import Event, Stage, step
from umbel_server.registry.versions import audited, facts, keep, required
from umbel_server.store.registry import (
    Version,
    close_request,
    open_request,
    put_version,
    seal,
    set_stage,
    version_of,
)
from umbel_server.store.store import Store
from umbel_server.trust.release import is_listed, unlist

_OUT = (Stage.RELEASED, Stage.DEPRECATED)


def admit(fleet: FleetDir, store: Store, package: Package, actor: Actor) -> Version:
    """Seal the version of a package that devices may have from now on.

    Where the fleet asks for no approval, a package that nobody has added is added.

    Raises:
        RefusedError: It is not approved, is retired, or another package was approved; the sentence says what is next.
    """
    require_permission(actor, Permission.RELEASES_WRITE, "release a version")
    manifest, rules = package.manifest, rules_of(fleet)
    sha256, now_s = bytes.fromhex(package.sha256), store.clock()
    with store.database.read() as connection:
        seen = version_of(connection, manifest.model, manifest.version)
    # Read before the transaction, and held against what is found in it.
    run = None if seen is None else seen.run
    evidence = gather(package, run, store.runs, store.attempts) if rules.approvals else None
    with store.database.write() as connection:
        found = version_of(connection, manifest.model, manifest.version, for_change=True)
        if found is None or (found.sha256 != sha256 and not rules.approvals):
            found = _unasked(store, connection, package, actor, rules)
        if found.sha256 != sha256:
            raise RefusedError(
                f"{found.name} is another package in the registry: add this one with  umbel registry add  under a "
                "version of its own."
            )
        if found.stage is Stage.RETIRED:
            raise RefusedError(f"{found.name} is retired, for good: give what you release a new version.")
        if found.stage in _OUT:
            return found
        refusal = (
            None if evidence is None else require_approved(store, connection, found, evidence, rules, actor)
        )
        if refusal is None:
            return _sealed(store, connection, found, now_s)
    raise refusal


def release(store: Store, version: Version, actor: Actor) -> Callable[[Connection], None]:
    """Return what says, in the transaction that lets the gateway offer a version, that it is released."""

    def also(connection: Connection) -> None:
        found = required(
            version_of(connection, version.model, version.version, for_change=True),
            version.model,
            version.version,
        )
        stage = step(found.stage, Event.RELEASE)
        if stage is found.stage:
            return
        set_stage(connection, found, stage, now_s=store.clock())
        store.audit.append(
            connection,
            actor,
            action="version.release",
            object=audited(found),
            before=facts(found),
            after={**facts(found), "stage": stage},
        )

    return also


def move(
    store: Store,
    model: str,
    version: int,
    event: Event,
    actor: Actor,
    *,
    reason: str,
    seen: Stage | None = None,
) -> Version:
    """Deprecate a released version, or reinstate it.

    Args:
        store: The fleet's store.
        model: The model.
        version: The version.
        event: Which of both.
        actor: Who does it.
        reason: Why.
        seen: Where the actor saw it stand; None: wherever it stands.

    Raises:
        UsageError: There is no such version, or no reason.
        RefusedError: Its stage has no such step, or is another than the actor saw.
    """
    require_permission(actor, Permission.RELEASES_WRITE, f"{event} a version")
    text = require_comment(reason)
    if event not in (Event.DEPRECATE, Event.REINSTATE):
        raise UsageError(f"{event} is not done by hand.")
    with store.database.write() as connection:
        found = required(version_of(connection, model, version, for_change=True), model, version)
        _require_as_seen(found, seen)
        return _moved(store, connection, found, event, actor, text)


def retire(
    fleet: FleetDir,
    store: Store,
    model: str,
    version: int,
    actor: Actor,
    *,
    reason: str,
    key: SigningKey | None = None,
    seen: Stage | None = None,
) -> Version:
    """Let no device fetch a version any more, for good; what runs it keeps running. Again is no error.

    Args:
        fleet: The fleet.
        store: Its store.
        model: The model.
        version: The version.
        actor: Who retires it.
        reason: Why.
        key: The release key of its line, for a version that was released; by default the one in the fleet's directory.
        seen: Where the actor saw it stand; None: wherever it stands.

    Raises:
        UsageError: There is no such version, or no reason, or the release key is not here.
        RefusedError: This actor may not, or its stage is another than they saw.
    """
    require_permission(actor, Permission.RELEASES_WRITE, "retire a version")
    text = require_comment(reason)
    with store.database.read() as connection:
        found = required(version_of(connection, model, version), model, version)
    listed = is_listed(fleet, model, version, clock=store.clock)
    if listed and key is None:
        if not fleet.release_key.exists():
            raise UsageError(
                f"{found.name} is signed for devices, and taking it back needs the release key: name its file with --key."
            )
        key = fleet.release_signer()
    with store.database.write() as connection:
        found = required(version_of(connection, model, version, for_change=True), model, version)
        if found.stage is not Stage.RETIRED:
            _require_as_seen(found, seen)
            asked = open_request(connection, found)
            if asked is not None and found.stage not in _OUT:
                close_request(connection, asked, "superseded", "the version was retired")
            # First the gateway hands it out no more; then devices would not take it either.
            store.releases.withdraw(connection, found.sha256)
            found = _moved(store, connection, found, Event.RETIRE, actor, text)
    if listed and key is not None:
        unlist(fleet, model, version, key=key, clock=store.clock)
    return found


def _require_as_seen(found: Version, seen: Stage | None) -> None:
    if seen is not None and found.stage is not seen:
        raise RefusedError(
            f"{found.name} was {seen} when you looked, and is {found.stage} now: look at it, and decide again."
        )


def _unasked(store: Store, connection: Connection, package: Package, actor: Actor, rules: Rules) -> Version:
    manifest = package.manifest
    if rules.approvals and store.releases.of_version(connection, manifest.model, manifest.version) is None:
        name = f"{manifest.model}@{manifest.version}"
        raise RefusedError(
            f"{name} is not in the registry, and this fleet releases what {rules.approvals} accounts approved: run  "
            f"umbel registry add PACKAGE, then  umbel registry request {name}."
        )
    return keep(store, connection, package, actor)


def _sealed(store: Store, connection: Connection, version: Version, now_s: float) -> Version:
    if version.stage is Stage.APPROVED:
        seal(connection, version, now_s=now_s)
        return replace(version, sealed_s=version.sealed_s or now_s)
    # Nobody needs to approve here.
    stage = version.stage if version.stage is Stage.CANDIDATE else step(version.stage, Event.REQUEST)
    sealed = replace(version, stage=step(stage, Event.APPROVE), stage_s=now_s, sealed_s=now_s)
    asked = open_request(connection, version)
    if asked is not None:
        close_request(connection, asked, "superseded", "the fleet asks for no approval")
    put_version(connection, sealed)
    return sealed


def _moved(
    store: Store, connection: Connection, found: Version, event: Event, actor: Actor, reason: str
) -> Version:
    stage, now_s = step(found.stage, event), store.clock()
    set_stage(connection, found, stage, now_s=now_s)
    store.audit.append(
        connection,
        actor,
        action=f"version.{event}",
        object=audited(found),
        reason=reason[:2000],
        before=facts(found),
        after={**facts(found), "stage": stage},
    )
    return replace(found, stage=stage, stage_s=now_s)
