"""Placements: which device has which version, what it was offered, pinned to and called, and what it reported."""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Connection, Row, delete, func, select, update

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, ModelName, check_name
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.rollouts.classes import class_of
from umbel_server.rollouts.gates import RANDOMIZED, Reported
from umbel_server.store.audit import Audit
from umbel_server.store.became import Became, became
from umbel_server.store.database import Database, insert
from umbel_server.store.histograms import Scale, edges_on, scale_of
from umbel_server.store.matching import matching, saved
from umbel_server.store.rollouts import LIVE, Rollout, _rollout
from umbel_server.store.shadows import Shadows
from umbel_server.store.sums import Kind
from umbel_server.store.tables import devices, rollups
from umbel_server.store.tables_devices import device_days
from umbel_server.store.tables_rollouts import (
    baselines,
    device_models,
    device_tags,
    pins,
    rollout_controls,
    rollout_devices,
    rollouts,
)

_CHUNK = 500
_MINUTE_S = 60.0
HOUR_S, DAY_S = 3600, 86400


@dataclass(frozen=True, slots=True)
class Situation:
    """What decides which versions a device is offered.

    Args:
        baselines: By model, the version of those that no rollout reaches; models without one get the newest.
        live: By model, the rollout that is under way.
        withdrawn: Versions that were rolled back.
        pins: By model, the version that the device stays at.
        tags: The device's tags, and the groups that it is in, of those that a live rollout's steps ask for.
        has: By model, the version that answered on it when it last asked.
        admitted: The live rollouts that offered it their candidate, each with whether that failed on it.
    """

    baselines: Mapping[str, int]
    live: Mapping[str, Rollout]
    withdrawn: frozenset[tuple[str, int]]
    pins: Mapping[str, int]
    tags: frozenset[str]
    has: Mapping[str, int]
    admitted: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Member:
    """A device that was offered a rollout's candidate.

    Args:
        device: The device.
        admitted_s: When it first was, Unix seconds.
        failed: Whether the candidate failed on it.
        version: The version that answers there by its own word; None if it never said.
        became: What became of it.
    """

    device: DeviceId
    admitted_s: float
    failed: bool
    version: int | None
    became: Became


def member(row: Row[Any]) -> Member:
    """Return the device that a row is of."""
    return Member(DeviceId(row.device_id), row.admitted_s, bool(row.failed), row.version, row.became)


class Placements:
    """Which device has which version, and why.

    Args:
        database: The database.
        audit: Where every change by a person is recorded.
        clock: Dates changes.
    """

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock
        self.shadows = Shadows(database, clock)

    def class_of(self, device: DeviceId) -> str:
        """Return what class of device one is, by its own word."""
        query = select(devices.c.facts).where(devices.c.id == device)
        with self._database.read() as connection:
            return _class(connection.execute(query).scalar())

    def classes(self) -> dict[DeviceId, str]:
        """Return the class of every device that may call."""
        query = select(devices.c.id, devices.c.facts).where(devices.c.status == "active")
        with self._database.read() as connection:
            return {DeviceId(name): _class(facts) for name, facts in connection.execute(query)}

    def state_facts(self, device: DeviceId, facts: str) -> None:
        """Keep what a device says it is now, JSON. Call it when that changed."""
        with self._database.write() as connection:
            connection.execute(update(devices).where(devices.c.id == device).values(facts=facts))

    def situation(self, device: DeviceId) -> Situation:
        """Return what decides which versions a device is offered."""
        with self._database.read() as connection:
            has = _pairs(connection, device_models, device)
            pinned = _pairs(connection, pins, device)
            base = {row.model: row.version for row in connection.execute(select(baselines))}
            if not base:
                return Situation({}, {}, frozenset(), pinned, frozenset(), has, {})
            live = {
                row.model: _rollout(row)
                for row in connection.execute(select(rollouts).where(rollouts.c.state.in_(LIVE)))
            }
            tags = set(
                connection.execute(
                    select(device_tags.c.tag).where(device_tags.c.device_id == device)
                ).scalars()
            )
            asked = frozenset[str]().union(*(step.tags for each in live.values() for step in each.plan.steps))
            for name, wanted in saved(connection, asked - tags).items():
                is_in = select(devices.c.id).where(devices.c.id == device, *matching(wanted, self._clock()))
                if connection.execute(is_in).scalar() is not None:
                    tags.add(name)
            admitted = connection.execute(
                select(rollout_devices.c.rollout_id, rollout_devices.c.failed).where(
                    rollout_devices.c.device_id == device,
                    rollout_devices.c.rollout_id.in_([each.id for each in live.values()]),
                )
            )
            return Situation(
                base,
                live,
                _withdrawn(connection),
                pinned,
                frozenset(tags),
                has,
                {name: bool(failed) for name, failed in admitted},
            )

    def admit(self, rollout: Rollout, device: DeviceId) -> bool:
        """Count a device among those that are offered a rollout's candidate, if its rate allows for one more.

        Returns:
            Whether it is among them.
        """
        now_s = self._clock()
        with self._database.write() as connection:
            if rollout.plan.rate is not None:
                lately = select(func.count()).where(
                    rollout_devices.c.rollout_id == rollout.id,
                    rollout_devices.c.admitted_s > now_s - _MINUTE_S,
                )
                if connection.execute(lately).scalar_one() >= rollout.plan.rate:
                    return False
            # Somebody may have paused or stopped it since the device was told of it.
            state = connection.execute(
                select(rollouts.c.state).where(rollouts.c.id == rollout.id)
            ).scalar_one()
            if state != "running":
                return False
            connection.execute(
                insert(connection, rollout_devices)
                .values(rollout_id=rollout.id, device_id=device, admitted_s=now_s, failed=0)
                .on_conflict_do_nothing()
            )
        return True

    def keep(self, rollout: Rollout, device: DeviceId) -> None:
        """Count a device among those that an experiment keeps as they are: it asked, and would have been offered."""
        row = {"rollout_id": rollout.id, "device_id": device}
        same = (rollout_controls.c.rollout_id == rollout.id) & (rollout_controls.c.device_id == device)
        with self._database.read() as connection:
            if connection.execute(select(rollout_controls.c.device_id).where(same)).scalar() is not None:
                return
        with self._database.write() as connection:
            state = select(rollouts.c.state).where(rollouts.c.id == rollout.id)
            if connection.execute(state).scalar_one() == "running":
                connection.execute(
                    insert(connection, rollout_controls)
                    .values(**row, since_s=self._clock())
                    .on_conflict_do_nothing()
                )

    def failed(self, rollout: str, device: DeviceId) -> None:
        """Remember that a rollout's candidate failed on a device."""
        with self._database.write() as connection:
            connection.execute(
                update(rollout_devices)
                .where(rollout_devices.c.rollout_id == rollout, rollout_devices.c.device_id == device)
                .values(failed=1)
            )

    def has(self, device: DeviceId, versions: Mapping[str, int]) -> None:
        """Keep which versions answer on a device, by its own word. Call it when that changed."""
        now_s = self._clock()
        with self._database.write() as connection:
            for model, version in versions.items():
                connection.execute(
                    insert(connection, device_models)
                    .values(device_id=device, model=model, version=version, since_s=now_s)
                    .on_conflict_do_update(
                        index_elements=list(device_models.primary_key),
                        set_={"version": version, "since_s": now_s},
                    )
                )

    def pin(
        self, device: DeviceId, model: ModelName, version: int | None, *, actor: Actor, reason: str = ""
    ) -> None:
        """Let a device stay at a version of a model, or be as the others again.

        Args:
            device: The device.
            model: The model.
            version: The version; None: whatever the others get.
            actor: Who decides it.
            reason: Why.

        Raises:
            UsageError: There is no such device.
        """
        with self._database.write() as connection:
            _require_device(connection, device)
            same = (pins.c.device_id == device) & (pins.c.model == model)
            before = connection.execute(select(pins.c.version).where(same)).scalar()
            connection.execute(delete(pins).where(same))
            if version is not None:
                connection.execute(
                    insert(connection, pins).values(device_id=device, model=model, version=version)
                )
            self._audit.append(
                connection,
                actor,
                action="device.pin" if version is not None else "device.unpin",
                object=f"device:{device}",
                reason=reason,
                before=None if before is None else {model: before},
                after=None if version is None else {model: version},
            )

    def tag(self, device: DeviceId, tags: Collection[str], *, actor: Actor, reason: str = "") -> None:
        """Replace a device's tags.

        Raises:
            UsageError: There is no such device, or a tag is not a name.
            RefusedError: A group is called so.
        """
        asked = sorted({check_name(tag, "tag") for tag in tags})
        with self._database.write() as connection:
            _require_device(connection, device)
            if groups := saved(connection, asked):
                raise RefusedError(f"{next(iter(groups))} is a group, which devices are in by what they are.")
            mine = device_tags.c.device_id == device
            before = sorted(connection.execute(select(device_tags.c.tag).where(mine)).scalars())
            connection.execute(delete(device_tags).where(mine))
            for tag in asked:
                connection.execute(insert(connection, device_tags).values(device_id=device, tag=tag))
            self._audit.append(
                connection,
                actor,
                action="device.tag",
                object=f"device:{device}",
                reason=reason,
                before=before,
                after=asked,
            )

    def tags(self) -> dict[DeviceId, frozenset[str]]:
        """Return the tags of every device that has one, and the groups that devices are in now, as tags."""
        with self._database.read() as connection:
            found: dict[DeviceId, set[str]] = {}
            for row in connection.execute(select(device_tags)):
                found.setdefault(DeviceId(row.device_id), set()).add(row.tag)
            for name, wanted in saved(connection).items():
                query = select(devices.c.id).where(*matching(wanted, self._clock()))
                for device in connection.execute(query).scalars():
                    found.setdefault(DeviceId(device), set()).add(name)
        return {device: frozenset(tags) for device, tags in found.items()}

    def pinned(self, model: str) -> dict[DeviceId, int]:
        """Return the devices that stay at a version of a model."""
        with self._database.read() as connection:
            rows = connection.execute(select(pins).where(pins.c.model == model)).all()
        return {DeviceId(row.device_id): row.version for row in rows}

    def versions(self, model: str) -> dict[DeviceId, int]:
        """Return which version of a model answers on each device, by its own word."""
        query = select(device_models.c.device_id, device_models.c.version).where(
            device_models.c.model == model
        )
        with self._database.read() as connection:
            return {DeviceId(device): version for device, version in connection.execute(query)}

    def having(self, model: str, version: int) -> list[DeviceId]:
        """Return the devices on which a version of a model answers, by their own word."""
        query = select(device_models.c.device_id).where(
            device_models.c.model == model, device_models.c.version == version
        )
        with self._database.read() as connection:
            return [DeviceId(name) for name in connection.execute(query).scalars()]

    def members(self, rollout: Rollout) -> tuple[Member, ...]:
        """Return the devices that were offered a rollout's candidate, by name."""
        have = (device_models.c.device_id == rollout_devices.c.device_id) & (
            device_models.c.model == rollout.model
        )
        query = (
            select(rollout_devices, device_models.c.version, became(rollout).label("became"))
            .outerjoin(device_models, have)
            .where(rollout_devices.c.rollout_id == rollout.id)
            .order_by(rollout_devices.c.device_id)
        )
        with self._database.read() as connection:
            return tuple(map(member, connection.execute(query)))

    def eligible(self) -> list[DeviceId]:
        """Return the devices that may call, by name."""
        query = select(devices.c.id).where(devices.c.status == "active").order_by(devices.c.id)
        with self._database.read() as connection:
            return [DeviceId(name) for name in connection.execute(query).scalars()]

    def reported(
        self, names: Iterable[DeviceId], *, model: str, version: int, since_s: float, wanted: Collection[str]
    ) -> dict[DeviceId, Reported]:
        """Return what devices reported of a version since some hour began, summed.

        Of whole days the sums are read, and hours of the first one only: a look at a
        step of weeks reads little more than one at a step of a day. What a device's
        clock dates after now does not count, until its time has come.

        Args:
            names: The devices.
            model: The model; empty: what their applications reported.
            version: Its version; 0 of an application.
            since_s: A moment of that hour, Unix seconds by the devices' clocks.
            wanted: The histograms to read; the others cost time. Of one name, what most was counted in is returned:
                edges or epsilon differ between versions of umbel, and these do not add.
        """
        hour_s = int(since_s // HOUR_S * HOUR_S)
        day_s = -(-hour_s // DAY_S) * DAY_S
        now_s = int(self._clock())
        hours = select(rollups.c.device_id, rollups.c.counters, rollups.c.histograms).where(
            rollups.c.hour_s >= hour_s, rollups.c.hour_s < day_s, rollups.c.hour_s <= now_s
        )
        days = select(device_days.c.device_id, device_days.c.counters, device_days.c.histograms).where(
            device_days.c.day_s >= day_s, device_days.c.day_s <= now_s
        )
        sums: dict[str, _Sums] = {}
        queries = [(rollups, hours), (device_days, days)] if hour_s < day_s else [(device_days, days)]
        with self._database.read() as connection:
            for some in _chunks(list(names)):
                for table, query in queries:
                    of = (table.c.device_id.in_(some), table.c.model == model, table.c.version == version)
                    for name, counters, histograms in connection.execute(query.where(*of)):
                        sums.setdefault(name, _Sums()).add(counters, histograms, wanted)
        return {DeviceId(name): each.reported() for name, each in sums.items()}


class _Sums:
    """What a device reported, being summed. It is as the store has it: tens of thousands of rows are read at a look."""

    __slots__ = ("_counters", "_histograms")

    def __init__(self) -> None:
        self._counters: dict[str, int] = {}
        # By name, scale and epsilon: to hash a scale's edges takes as long as to add its counts.
        self._histograms: dict[tuple[str, Scale, float | None], tuple[list[int], float]] = {}

    def add(self, counters: str, histograms: str, wanted: Collection[str]) -> None:
        """Add a row, of an hour or of a day."""
        for name, count in from_json(counters).items():
            self._counters[name] = self._counters.get(name, 0) + count
        if not wanted:
            return
        for name, body in _bodies(from_json(histograms), wanted):
            epsilon = body.get("epsilon")
            if epsilon is not None and name not in RANDOMIZED:
                continue
            kind, counts, total = (name, scale_of(body), epsilon), body["counts"], body["sum"]
            if (before := self._histograms.get(kind)) is not None:
                counts, total = list(map(operator.add, before[0], counts)), before[1] + total
            self._histograms[kind] = counts, total

    def reported(self) -> Reported:
        """Return the sums."""
        kinds = (
            (Kind(name, edges_on(scale), epsilon), cells)
            for (name, scale, epsilon), cells in self._histograms.items()
        )
        shapes: dict[str, Histogram] = {}
        for kind, (counts, total) in sorted(kinds, key=_weight):
            shapes[kind.name] = Histogram(kind.name, kind.edges, tuple(counts), total, kind.epsilon)
        return Reported(self._counters, shapes)


def _weight(item: tuple[Kind, tuple[list[int], float]]) -> tuple[int, tuple[float, ...], float]:
    kind, (counts, _) = item
    return sum(counts), kind.edges, kind.epsilon or 0.0


def _bodies(found: Any, wanted: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the histograms of a row that are wanted: by name in an hour's, in a list where a name has several kinds."""
    if isinstance(found, dict):
        yield from ((name, found[name]) for name in wanted if name in found)
    else:
        yield from ((body["name"], body) for body in found if body["name"] in wanted)


@functools.lru_cache(maxsize=4096)
def _class(facts: str | None) -> str:
    """Return a class; of a hundred thousand devices few say something else than the others."""
    return class_of(from_json(facts) if facts else {})


def _withdrawn(connection: Connection) -> frozenset[tuple[str, int]]:
    """Return the versions whose newest rollout was rolled back."""
    query = select(rollouts.c.model, rollouts.c.to_version, rollouts.c.state).where(
        rollouts.c.state != "draft"
    )
    last: dict[tuple[str, int], str] = {}
    for model, version, state in connection.execute(query.order_by(rollouts.c.created_s)):
        last[model, version] = state
    return frozenset(each for each, state in last.items() if state == "rolled-back")


def _pairs(connection: Connection, table: Any, device: DeviceId) -> dict[str, int]:
    rows = connection.execute(select(table.c.model, table.c.version).where(table.c.device_id == device))
    return dict(iter(rows))


def _require_device(connection: Connection, device: DeviceId) -> None:
    if connection.execute(select(devices.c.id).where(devices.c.id == device)).scalar() is None:
        raise UsageError(f"There is no device {device[:80]!r}:  umbel fleet devices  lists them.")


def _chunks(names: list[DeviceId]) -> Iterator[list[DeviceId]]:
    for begin in range(0, len(names), _CHUNK):
        yield names[begin : begin + _CHUNK]
