"""Shadows of a store: which devices were asked to run a candidate beside what answers, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select, update

from umbel_proto.ids import DeviceId
from umbel_server.clock import Clock
from umbel_server.store.database import Database, insert
from umbel_server.store.rollouts import Rollout
from umbel_server.store.tables_rollouts import rollouts
from umbel_server.store.tables_shadows import rollout_shadows

ASKED, RUNNING, UNAVAILABLE, FAILED = "asked", "running", "unavailable", "failed"
MAX_WHY = 200
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Shadowing:
    """A device that was asked to run a candidate beside what answers there.

    Args:
        device: The device.
        asked_s: When it first was, Unix seconds.
        state: ``asked``, ``running``, ``unavailable`` or ``failed``, by its own word.
        why: Why it is unavailable; empty otherwise.
    """

    device: DeviceId
    asked_s: float
    state: str
    why: str


class Shadows:
    """Which devices ask which candidate beside what answers.

    Args:
        database: The database.
        clock: Dates changes.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def of(self, rollout: str, device: DeviceId) -> Shadowing | None:
        """Return what became of a device's shadow; None if it was not asked."""
        same = (rollout_shadows.c.rollout_id == rollout) & (rollout_shadows.c.device_id == device)
        with self._database.read() as connection:
            row = connection.execute(select(rollout_shadows).where(same)).one_or_none()
        return None if row is None else Shadowing(device, row.asked_s, row.state, row.why)

    def ask(self, rollout: Rollout, device: DeviceId) -> bool:
        """Count a device among those that are asked, if the rollout's rate allows for one more.

        Returns:
            Whether it is among them.
        """
        now_s = self._clock()
        with self._database.write() as connection:
            if rollout.plan.rate is not None:
                lately = select(func.count()).where(
                    rollout_shadows.c.rollout_id == rollout.id,
                    rollout_shadows.c.asked_s > now_s - _MINUTE_S,
                )
                if connection.execute(lately).scalar_one() >= rollout.plan.rate:
                    return False
            # Somebody may have paused or stopped it since the device was told of it.
            state = select(rollouts.c.state).where(rollouts.c.id == rollout.id)
            if connection.execute(state).scalar_one() != "running":
                return False
            row = {"rollout_id": rollout.id, "device_id": device, "asked_s": now_s, "state": ASKED, "why": ""}
            connection.execute(insert(connection, rollout_shadows).values(**row).on_conflict_do_nothing())
        return True

    def told(self, rollout: str, device: DeviceId, state: str, why: str = "") -> None:
        """Keep what a device says of its shadow. Call it when that changed."""
        same = (rollout_shadows.c.rollout_id == rollout) & (rollout_shadows.c.device_id == device)
        with self._database.write() as connection:
            connection.execute(update(rollout_shadows).where(same).values(state=state, why=why[:MAX_WHY]))

    def all(self, rollout: str) -> tuple[Shadowing, ...]:
        """Return the devices that were asked, by name."""
        query = select(rollout_shadows).where(rollout_shadows.c.rollout_id == rollout)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(rollout_shadows.c.device_id)).all()
        return tuple(Shadowing(DeviceId(row.device_id), row.asked_s, row.state, row.why) for row in rows)
