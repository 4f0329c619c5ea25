"""Versions come into the registry: from a package, with where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import Connection

from umbel_proto.errors import RefusedError, StorageError, UsageError
from umbel_proto.ids import RunId, check_name
from umbel_proto.package import Package, read_package
from umbel_proto.update import read_update
from umbel_server.access.actor import Actor
from umbel_server.access.permissions import Permission
from umbel_server.files import PUBLIC_MODE, read_file, write_atomically
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.run import TRAINED
from umbel_server.registry.approval import require_permission
from umbel_server.registry.figures import contract_sha256, variants_of
from umbel_server.registry.stages import Event, Stage, step
from umbel_server.store.audit import check_text
from umbel_server.store.registry import (
    RISKS,
    Comment,
    Line,
    Version,
    close_request,
    line_of,
    open_request,
    put_comment,
    put_line,
    put_version,
    version_of,
)
from umbel_server.store.store import Store

MAX_TEXT = 4000
_ENDED = ("finished", "stopped")


def add(
    fleet: FleetDir,
    store: Store,
    data: bytes,
    actor: Actor,
    *,
    run: RunId | None = None,
    code: str = "",
    model: str = "",
) -> Version:
    """Put a package into the registry as a draft; the same one again is no error.

    A package takes the place of another of the same version that was never released; approvals of that lapse.

    Args:
        fleet: The fleet.
        store: Its store.
        data: The whole package file.
        actor: Who brings it.
        run: The run that trained it; by default the one that its lineage names, if the fleet knows it.
        code: Version of the code that made it; by default as its lineage says.
        model: The model that it must be of; empty: any.

    Raises:
        PackageError: It is malformed or altered, not signed by the fleet's release key, or has no valid card.
        RefusedError: This version was released with other content, or the run has not ended, or trained something else.
        UsageError: There is no such run, or it is of another model.
        StorageError: The disk is full.
    """
    from umbel_server.registry.schema import require_valid_card  # It takes time to import.

    require_permission(actor, Permission.REGISTRY_WRITE, "add a version")
    package = read_package(data, release_key=fleet.release_public())
    if model and package.manifest.model != model:
        raise UsageError(f"The package is of {package.manifest.model}, not of {model}.")
    require_valid_card(package)
    if run is not None:
        _require_trained(fleet, store, package, run)
    check_text(code, "code version", 255)
    # The file before the row: what is on record can be read.
    write_atomically(fleet.package(bytes.fromhex(package.sha256)), data, mode=PUBLIC_MODE)
    with store.database.write() as connection:
        return keep(store, connection, package, actor, run=run, code=code)


def keep(
    store: Store,
    connection: Connection,
    package: Package,
    actor: Actor,
    *,
    run: RunId | None = None,
    code: str = "",
) -> Version:
    """Put a package that is in place on record, in a transaction of the caller's.

    Raises:
        RefusedError: This version was released with other content.
    """
    new, now_s = _version(store, package, actor, run, code), store.clock()
    if new.parent is not None and "task" not in new.lineage:
        # What is made of another version's graphs is for the same task, and its lineage tells only the rest.
        parent = version_of(connection, new.model, new.parent)
        new = replace(new, task=new.task if parent is None else parent.task)
    old = version_of(connection, new.model, new.version, for_change=True)
    released = store.releases.of_version(connection, new.model, new.version)
    taken = {each.sha256 for each in (old, released) if each is not None} - {new.sha256}
    if taken and (released is not None or (old is not None and old.sealed_s is not None)):
        raise RefusedError(
            f"Version {new.version} of {new.model} is released already, with other content: give this one a "
            "new version."
        )
    if old is None:
        # A release of before there was a registry.
        stage = Stage.DRAFT if released is None else Stage.RELEASED
        new = replace(new, stage=stage, sealed_s=None if released is None else released.published_s)
    elif old.sha256 == new.sha256:
        if old.sealed_s is not None or (old.run, old.code) == (new.run, new.code):
            return old
        new = replace(new, stage=old.stage, stage_s=old.stage_s, added_by=old.added_by, added_s=old.added_s)
    else:
        new = replace(new, stage=step(old.stage, Event.CHANGE))
        asked = open_request(connection, old)
        if asked is not None:
            close_request(connection, asked, "lapsed", "another package took its place")
    if line_of(connection, new.model) is None:
        put_line(connection, Line(new.model), now_s=now_s)
    put_version(connection, new)
    store.audit.append(
        connection,
        actor,
        action="version.add",
        object=audited(new),
        before=None if old is None else facts(old),
        after=facts(new),
    )
    return new


def describe(
    store: Store,
    line: Line,
    actor: Actor,
    *,
    reason: str = "",
    check: Callable[[Line | None], None] = lambda line: None,
) -> Line:
    """Say who answers for a model, what it is for, and when it is looked at again.

    Args:
        store: The fleet's store.
        line: All that is said of it from now on.
        actor: Who says so.
        reason: Why.
        check: Raises if what was said before is not what the actor saw.

    Raises:
        UsageError: A text is too long, or the risk class or the date is none.
    """
    require_permission(actor, Permission.REGISTRY_WRITE, "describe a model")
    check_name(line.model, "model")
    check_text(line.owner, "owner", 255)
    for what in ("purpose", "decommission"):
        check_text(getattr(line, what), what, MAX_TEXT)
    if line.risk not in RISKS:
        raise UsageError(f"{line.risk!r} is no class of risk: choose of {', '.join(RISKS)}.")
    if line.review_date:
        _check_date(line.review_date)
    with store.database.write() as connection:
        before = line_of(connection, line.model)
        check(before)
        put_line(connection, line, now_s=store.clock())
        store.audit.append(
            connection,
            actor,
            action="model.describe",
            object=f"model:{line.model}",
            reason=reason,
            before=None if before is None else _line_facts(before),
            after=_line_facts(line),
        )
    return line


def comment(store: Store, model: str, version: int, actor: Actor, text: str) -> Comment:
    """Say something about a version, for the record.

    Raises:
        UsageError: There is no such version, or nothing is said.
    """
    require_permission(actor, Permission.REGISTRY_READ, "comment on a version")
    said = Comment(actor.name, store.clock(), text.strip())
    check_text(said.text, "comment", MAX_TEXT)
    if not said.text:
        raise UsageError("The comment is empty: say something.")
    with store.database.write() as connection:
        found = required(version_of(connection, model, version, for_change=True), model, version)
        put_comment(connection, found, said)
        store.audit.append(
            connection, actor, action="version.comment", object=audited(found), reason=said.text[:2000]
        )
    return said


def package_of(fleet: FleetDir, version: Version) -> Package:
    """Read a version's package, verified.

    Raises:
        StorageError: It is missing.
        PackageError: It is not what the registry says.
    """
    data = read_file(fleet.package(version.sha256), f"package of {version.name}")
    package = read_package(data, release_key=fleet.release_public())
    if bytes.fromhex(package.sha256) != version.sha256:
        raise StorageError(f"The package of {version.name} is not the one that was added: add it again.")
    return package


def required(found: Version | None, model: str, version: int) -> Version:
    """Return a version that was looked up.

    Raises:
        UsageError: There is none.
    """
    if found is None:
        raise UsageError(f"There is no {model}@{version} in the registry: see  umbel registry list.")
    return found


def audited(version: Version) -> str:
    """Return what the audit log calls a version."""
    return f"version:{version.name}"


def facts(version: Version) -> dict[str, Any]:
    """Return what the audit log keeps of a version."""
    return {"sha256": version.sha256.hex(), "stage": version.stage, "run": version.run, "code": version.code}


def _version(store: Store, package: Package, actor: Actor, run: RunId | None, code: str) -> Version:
    manifest, lineage = package.manifest, package.manifest.lineage
    if run is None and (named := store.runs.get(RunId(str(lineage.get("run", ""))))) is not None:
        run = named.id
    opened = None
    if run is not None:
        opened = store.attempts.reached(run).opened
    parent = lineage.get("base_version")
    now_s = store.clock()
    return Version(
        model=manifest.model,
        version=manifest.version,
        sha256=bytes.fromhex(package.sha256),
        size=package.size,
        task=str(lineage.get("task", manifest.model))[:255],
        contract_sha256=contract_sha256(manifest),
        run=run,
        rounds=opened,
        parent=parent if isinstance(parent, int) and 0 < parent < 1 << 31 else None,
        code=code or str(lineage.get("code", ""))[:255],
        variants=variants_of(manifest),
        lineage=dict(lineage),
        added_by=actor.name,
        added_s=now_s,
        stage_s=now_s,
    )


def _require_trained(fleet: FleetDir, store: Store, package: Package, run: RunId) -> None:
    """Check that a package holds what a run has trained.

    Raises:
        UsageError: There is no such run.
        RefusedError: It has not ended, or trained something else.
    """
    record = store.runs.get(run)
    if record is None:
        raise UsageError(f"There is no run {run}: see  umbel rounds list.")
    if record.state not in _ENDED:
        raise RefusedError(f"Run {run} is {record.state}: a version comes of a run that has finished.")
    if record.model != package.manifest.model:
        raise RefusedError(
            f"Run {run} trains {record.model}, and this package is of {package.manifest.model}."
        )
    plan = RunPlan.from_json(record.plan)
    base = read_package(
        read_file(fleet.package(bytes.fromhex(plan.package_sha256)), "package that the run started from"),
        release_key=fleet.release_public(),
    )
    trained = read_update(read_file(fleet.runs / run / TRAINED, "result of the run"), base)
    if not np.array_equal(trained, package.parameters()):
        raise RefusedError(
            f"The package does not hold what run {run} trained: make it of {fleet.runs / run / TRAINED}."
        )


def _line_facts(line: Line) -> dict[str, str]:
    return {name: getattr(line, name) for name in Line.__slots__ if name != "model"}


def _check_date(text: str) -> None:
    import datetime

    try:
        datetime.date.fromisoformat(text)
    except ValueError as exc:
        raise UsageError(f"{text[:20]!r} is no date: write it as 2027-03-31.") from exc
    if len(text) != len("2027-03-31"):
        raise UsageError(f"{text[:20]!r} is no date: write it as 2027-03-31.")
