"""A fleet with a registry for tests: its store on any database, its packages cheap, its people few."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from model_packages import RELEASE, first, resigned
from service_fleet import ManualClock, make_fleet
from umbel_server.access.actor import Actor, Role
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.registry.approval import Request, Verdict
from umbel_server.registry.asking import decide, request
from umbel_server.registry.settings import Registry
from umbel_server.registry.stages import Stage
from umbel_server.registry.versions import add, describe
from umbel_server.store.registry import Line, Version, requests_of, version_of
from umbel_server.store.store import Store, open_store

NOW_S = 1_800_000_000.0
ANNA = Actor("anna", frozenset({Role.RELEASE_MANAGER}))
BEN, CARL, DORA = (Actor(name, frozenset({Role.REVIEWER})) for name in ("ben", "carl", "dora"))
PIPELINE = Actor("pipeline", frozenset({Role.CI}))
HERE = Actor("local:anna", frozenset(Role))


@functools.cache
def package(version: int, note: str = "") -> bytes:
    """Digits of a version; with another note, other content."""

    def change(body: dict[str, Any]) -> None:
        body["version"] = version
        body["lineage"] |= {"note": note} if note else {}
        if version > 1:
            body["lineage"] |= {"base_version": version - 1}

    return resigned(first(), change)


@dataclasses.dataclass
class World:
    """A fleet, its store and its clock."""

    fleet: FleetDir
    store: Store
    clock: ManualClock

    def add(self, version: int = 1, actor: Actor = PIPELINE, note: str = "", **options: Any) -> Version:
        return add(self.fleet, self.store, package(version, note), actor, **options)

    def ask(self, version: int = 1, actor: Actor = ANNA) -> Request:
        return request(self.fleet, self.store, "digits", version, actor, comment="better than the last")

    def say(self, actor: Actor, version: int = 1, verdict: Verdict = Verdict.APPROVE) -> tuple[Version, int]:
        return decide(self.fleet, self.store, "digits", version, actor, verdict, comment="looked at it")

    def publish(self, version: int = 1, actor: Actor = ANNA, note: str = "") -> None:
        publish(self.fleet, self.store, package(version, note), actor=actor)

    def version(self, version: int = 1) -> Version:
        with self.store.database.read() as connection:
            found = version_of(connection, "digits", version)
        assert found is not None
        return found

    def stage(self, version: int = 1) -> Stage:
        return self.version(version).stage

    def requests(self, version: int = 1) -> tuple[Request, ...]:
        with self.store.database.read() as connection:
            return requests_of(connection, self.version(version))

    def actions(self) -> list[str]:
        return [entry.action for entry in self.store.audit.all()]


def make_world(
    path: Path,
    where: Path | URL,
    *,
    approvals: int = 2,
    days: int = 30,
    described: bool = True,
    now_s: float = NOW_S,
) -> World:
    clock = ManualClock(now_s)
    made = make_fleet(path / "garden", clock=clock)
    made.release_key.write_bytes(RELEASE.to_pem())
    made.release_pub.write_bytes(RELEASE.public.raw)
    world = World(governed(made, approvals, days), open_store(where, clock=clock), clock)
    if described:
        line = Line("digits", "anna", "reads digits", "minimal")  # type: ignore[arg-type]
        describe(world.store, line, ANNA)
    return world


def governed(fleet: FleetDir, approvals: int, days: int = 30) -> FleetDir:
    """The fleet with other settings of its registry."""
    settings = dataclasses.replace(fleet.settings, registry=Registry(approvals, days))
    return dataclasses.replace(fleet, settings=settings)
