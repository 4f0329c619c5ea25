"""Where a version comes from and where it went: from data contract and run to package, release, rollouts, devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from umbel_server.registry.stages import Stage
from umbel_server.registry.versions import required
from umbel_server.store.registry import Version, requests_of, version_of, versions
from umbel_server.store.store import Store
from umbel_server.store.tables_rollouts import rollouts

MAX_ROLLOUTS = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Something that a version comes from, or that came of it.

    Args:
        kind: ``contract``, ``parent``, ``run``, ``package``, ``variant``, ``request``, ``release``, ``rollout``,
            ``devices`` or ``child``.
        name: What it is called.
        detail: What is known of it, in a few words.
        id: What leads to it, as a version's number, a run's or a rollout's name; empty: nothing does.
    """

    kind: str
    name: str
    detail: str
    id: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"kind": self.kind, "name": self.name, "detail": self.detail, "id": self.id}


@dataclass(frozen=True, slots=True)
class Lineage:
    """A version's way, in steps: each comes of the one before it.

    Args:
        version: The version.
        steps: What is known of each step; at least the contract and the package.
        devices: On how many devices it answers; None: no device has told of it.
    """

    version: Version
    steps: tuple[tuple[Place, ...], ...]
    devices: int | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "version": self.version.name,
            "devices": self.devices,
            "steps": [[each.to_json() for each in step] for step in self.steps],
        }


def lineage(store: Store, model: str, version: int) -> Lineage:
    """Return where a version comes from and where it went.

    Raises:
        UsageError: There is no such version.
    """
    with store.database.read() as connection:
        found = required(version_of(connection, model, version), model, version)
        asked = requests_of(connection, found)
        others = [each for each in versions(connection, model) if each.version != version]
        children = [each for each in others if each.parent == version]
        same = [each.version for each in others if each.contract_sha256 == found.contract_sha256]
        release = store.releases.of_version(connection, model, version)
        query = (
            select(rollouts.c.id, rollouts.c.state, rollouts.c.from_version)
            .where(rollouts.c.model == model, rollouts.c.to_version == version)
            .order_by(rollouts.c.created_s.desc())
            .limit(MAX_ROLLOUTS)
        )
        rolled = connection.execute(query).all()
    devices = store.inventory.answering(found.model, version) or None
    steps = (
        _sources(found, same, next((each for each in others if each.version == found.parent), None)),
        _run(store, found),
        (
            Place(
                "package", f"sha256 {found.sha256.hex()[:16]}…", f"{found.size:,} bytes", found.sha256.hex()
            ),
        ),
        tuple(
            Place("variant", name, f"{each['engine']}, {each['bytes']:,} bytes")
            for name, each in found.variants.items()
        ),
        tuple(
            Place(
                "request",
                f"request {each.number}",
                each.closed or (f"{len(each.decisions)} decided" if each.decisions else "waits"),
            )
            for each in asked
        ),
        ()
        if release is None
        else (
            Place(
                "release",
                "withdrawn" if found.stage is Stage.RETIRED else "release",
                f"{release.size:,} bytes, signed",
            ),
        ),
        tuple(
            Place("rollout", row.id, f"{row.state}, from version {row.from_version}", row.id)
            for row in reversed(rolled)
        ),
        ()
        if devices is None
        else (Place("devices", f"{devices:,} device{'s' * (devices != 1)}", "answer with it"),),
        tuple(Place("child", each.name, str(each.stage), str(each.version)) for each in children),
    )
    return Lineage(found, tuple(step for step in steps if step), devices)


def _sources(version: Version, same: list[int], parent: Version | None) -> tuple[Place, ...]:
    shared = f"as of version{'s' * (len(same) > 1)} {', '.join(map(str, same[:5]))}" if same else "its own"
    contract = Place("contract", f"sha256 {version.contract_sha256.hex()[:12]}…", shared)
    if version.parent is None:
        return (contract,)
    stage = "not in the registry" if parent is None else str(parent.stage)
    made_of = Place(
        "parent", f"{version.model}@{version.parent}", stage, str(version.parent) if parent else ""
    )
    return contract, made_of


def _run(store: Store, version: Version) -> tuple[Place, ...]:
    if version.run is not None:
        record = store.runs.get(version.run)
        state = "no record here" if record is None else record.state
        rounds = "" if version.rounds is None else f", {version.rounds} rounds"
        return (Place("run", version.run, f"{state}{rounds}", version.run if record is not None else ""),)
    named = version.lineage.get("run")
    if named:
        return (Place("run", str(named)[:63], "as the package says; the fleet has no record of it"),)
    return ()
