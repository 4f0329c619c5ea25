"""How far rollouts are, counted in the database: no device is read to say how many there are."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, Select, and_, cast, func, or_, select

from umbel_proto.ids import DeviceId
from umbel_server.store.became import Became, became
from umbel_server.store.database import Database
from umbel_server.store.placements import Member, member
from umbel_server.store.rollouts import Rollout, _rollout
from umbel_server.store.tables import devices
from umbel_server.store.tables_rollouts import device_models, pins, rollout_devices, rollouts
from umbel_server.store.tables_shadows import rollout_shadows

BUCKETS = 120


@dataclass(frozen=True, slots=True)
class Reach:
    """How many devices a rollout offered its candidate, and what became of it there.

    Args:
        offered: All of them.
        running: The candidate answers there, by the device's own word.
        failed: It failed there.
        back: The version before answers there again.
        other: Another version answers there, though it was heard of since.
        waiting: It was not heard of since it was offered the candidate, or since that was rolled back.
    """

    offered: int = 0
    running: int = 0
    failed: int = 0
    back: int = 0
    other: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """Devices that were first offered a candidate in a stretch of time.

    Args:
        until_s: Its end, Unix seconds.
        offered: How many were offered it up to then.
        failed: On how many of those it failed by now.
    """

    until_s: float
    offered: int
    failed: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """A rollout's candidate that a device was offered.

    Args:
        rollout: The rollout.
        admitted_s: When it first was, Unix seconds.
        became: What became of it there.
        version: The version that answers there by its own word; None if it never said.
        since_s: When it first said so, Unix seconds; None if it never did.
    """

    rollout: Rollout
    admitted_s: float
    became: Became
    version: int | None
    since_s: float | None


@dataclass(frozen=True, slots=True)
class Pin:
    """A device that stays at a version.

    Args:
        device: The device.
        model: The model.
        version: The version that it stays at.
        has: The version that answers there, by its own word; None if it never said.
    """

    device: DeviceId
    model: str
    version: int
    has: int | None


class Progress:
    """How far the rollouts of a store are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def eligible(self) -> int:
        """Return how many devices may call."""
        query = select(func.count()).where(devices.c.status == "active")
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def reach(self, rollout: Rollout) -> Reach:
        """Return how many devices were offered a rollout's candidate, and what became of it there."""
        word = became(rollout).label("became")
        query = _members(rollout).with_only_columns(word, func.count()).group_by(word)
        with self._database.read() as connection:
            found = dict(iter(connection.execute(query)))
        return Reach(sum(found.values()), **found)

    def devices(
        self,
        rollout: Rollout,
        *,
        limit: int,
        fate: Became | None = None,
        after: str = "",
    ) -> tuple[Member, ...]:
        """Return devices that were offered a rollout's candidate, by name.

        Args:
            rollout: The rollout.
            limit: At most so many.
            fate: Only those of which this became; None: all.
            after: The name of the last one of the page before.
        """
        query = _members(rollout).where(rollout_devices.c.device_id > after)
        if fate is not None:
            query = query.where(became(rollout) == fate)
        with self._database.read() as connection:
            return tuple(
                map(member, connection.execute(query.order_by(rollout_devices.c.device_id).limit(limit)))
            )

    def deployments(self, device: DeviceId, *, limit: int) -> tuple[Deployment, ...]:
        """Return the rollouts that offered a device their candidate, and what became of it there, the newest first.

        Args:
            device: The device.
            limit: At most so many.
        """
        offered = (
            select(rollouts, rollout_devices.c.admitted_s)
            .join(rollout_devices, rollout_devices.c.rollout_id == rollouts.c.id)
            .where(rollout_devices.c.device_id == device)
            .order_by(rollout_devices.c.admitted_s.desc(), rollouts.c.id)
            .limit(limit)
        )
        found = []
        with self._database.read() as connection:
            for row in connection.execute(offered).all():
                rollout = _rollout(row)
                of = _members(rollout).add_columns(device_models.c.since_s)
                told = connection.execute(of.where(rollout_devices.c.device_id == device)).one()
                found.append(Deployment(rollout, row.admitted_s, told.became, told.version, told.since_s))
        return tuple(found)

    def failures(self, rollout: Rollout) -> tuple[tuple[str, str | None, int], ...]:
        """Return why how many devices do not run a candidate: what, by its facts (JSON) or its own word, how many.

        Returns:
            ``("failed", facts, n)`` where it was installed or tried and failed, ``("shadow failed", facts, n)`` where
            it was only asked beside what answers, and ``("no shadow", why, n)`` where a device cannot do that.
        """
        of = rollout_devices.c.rollout_id == rollout.id
        failed = (
            select(devices.c.facts, func.count())
            .join(rollout_devices, rollout_devices.c.device_id == devices.c.id)
            .where(of, rollout_devices.c.failed == 1)
            .group_by(devices.c.facts)
        )
        beside = (
            select(rollout_shadows.c.state, rollout_shadows.c.why, devices.c.facts, func.count())
            .join(devices, rollout_shadows.c.device_id == devices.c.id)
            .where(
                rollout_shadows.c.rollout_id == rollout.id,
                rollout_shadows.c.state.in_(("failed", "unavailable")),
            )
            .group_by(rollout_shadows.c.state, rollout_shadows.c.why, devices.c.facts)
        )
        with self._database.read() as connection:
            found: list[tuple[str, str | None, int]] = [
                ("failed", facts, count) for facts, count in connection.execute(failed)
            ]
            for state, why, facts, count in connection.execute(beside):
                found.append(
                    ("shadow failed", facts, count) if state == "failed" else ("no shadow", why, count)
                )
        return tuple(found)

    def course(self, rollout: Rollout) -> tuple[Bucket, ...]:
        """Return how the devices that were offered a candidate became more, in at most ``BUCKETS`` stretches."""
        at, of = rollout_devices.c.admitted_s, rollout_devices.c.rollout_id == rollout.id
        with self._database.read() as connection:
            first_s, last_s = connection.execute(select(func.min(at), func.max(at)).where(of)).one()
            if first_s is None:
                return ()
            width_s = max(60.0, math.ceil((last_s - first_s) / (BUCKETS - 1)))
            # Truncated, and never negative: as a floor on both databases.
            number = cast(func.floor((at - first_s) / width_s), Integer).label("number")
            rows = connection.execute(
                select(number, func.count(), func.sum(rollout_devices.c.failed))
                .where(of)
                .group_by(number)
                .order_by(number)
            ).all()
        found, offered, failed = [], 0, 0
        for place, count, wrong in rows:
            offered, failed = offered + count, failed + int(wrong)
            found.append(Bucket(first_s + (place + 1) * width_s, offered, failed))
        return tuple(found)

    def pins(self, *, limit: int, model: str = "", after: tuple[str, str] = ("", "")) -> tuple[Pin, ...]:
        """Return devices that stay at a version, by model and device.

        Args:
            limit: At most so many.
            model: Only of this model; empty: of any.
            after: Model and device of the last one of the page before.
        """
        slot = (device_models.c.device_id == pins.c.device_id) & (device_models.c.model == pins.c.model)
        query = select(pins, device_models.c.version.label("has")).outerjoin(device_models, slot)
        if model:
            query = query.where(pins.c.model == model)
        query = query.where(
            or_(pins.c.model > after[0], and_(pins.c.model == after[0], pins.c.device_id > after[1]))
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(pins.c.model, pins.c.device_id).limit(limit)).all()
        return tuple(Pin(DeviceId(row.device_id), row.model, row.version, row.has) for row in rows)

    def pinned(self, models: Collection[str]) -> Mapping[str, int]:
        """Return how many devices stay at a version of each of some models."""
        query = select(pins.c.model, func.count()).where(pins.c.model.in_(models)).group_by(pins.c.model)
        with self._database.read() as connection:
            return dict(iter(connection.execute(query)))


def _members(rollout: Rollout) -> Select[Any]:
    slot = (device_models.c.device_id == rollout_devices.c.device_id) & (
        device_models.c.model == rollout.model
    )
    return (
        select(rollout_devices, device_models.c.version, became(rollout).label("became"))
        .outerjoin(device_models, slot)
        .where(rollout_devices.c.rollout_id == rollout.id)
    )
