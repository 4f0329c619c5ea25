"""Groups of devices: filters that are saved under a name, and hold for whoever fulfills them at the time.

A group whose members people choose one by one is a tag. Both are named alike wherever one may be: no group is called as
a tag.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, check_name
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database, insert
from umbel_server.store.matching import in_group, matching
from umbel_server.store.rollouts import LIVE, _rollout
from umbel_server.store.tables import devices
from umbel_server.store.tables_groups import device_groups
from umbel_server.store.tables_rollouts import device_tags, rollouts
from umbel_server.store.wanted import ANY, Wanted

MOST = 200
"""Groups of a fleet: each is counted when they are looked at."""


@dataclass(frozen=True, slots=True)
class Group:
    """A filter of devices that is saved.

    Args:
        name: Its name.
        wanted: Which devices are in it.
        saved_s: When it was saved last, Unix seconds.
        saved_by: Who saved it last.
    """

    name: str
    wanted: Wanted
    saved_s: float
    saved_by: str

    @property
    def filter(self) -> dict[str, str | int]:
        """What its devices fulfill, by the name of each filter."""
        return filter_of(self.wanted)


class Groups:
    """The groups of a store.

    Args:
        database: The database.
        audit: Where each change is recorded.
        clock: Dates them, and tells who is online.
    """

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database, self._audit, self._clock = database, audit, clock

    def save(self, name: str, wanted: Wanted, *, actor: Actor, reason: str = "") -> Group:
        """Save a filter as a group, or in the place of the one that it was.

        Args:
            name: What it is called.
            wanted: Which devices are in it, now or later.
            actor: Who saves it.
            reason: Why.

        Raises:
            UsageError: The name is none, or the filter says nothing or asks for another group.
            RefusedError: A tag is called so, or there are too many groups.
        """
        check_name(name, "group")
        if wanted == ANY or wanted.group is not None:
            raise UsageError("A group is of devices that a filter finds, by something else than a group.")
        if wanted.version is not None and wanted.model is None:
            raise UsageError("A version is of a model: name both.")
        row = {
            "filter": json.dumps(filter_of(wanted)),
            "saved_s": self._clock(),
            "saved_by": actor.name,
        }
        with self._database.write() as connection:
            before = _find(connection, name)
            tagged = select(device_tags.c.device_id).where(device_tags.c.tag == name).limit(1)
            if connection.execute(tagged).scalar() is not None:
                raise RefusedError(f"Devices have the tag {name}: call the group something else.")
            count = connection.execute(select(func.count()).select_from(device_groups)).scalar_one()
            if before is None and count >= MOST:
                raise RefusedError(f"There are {count} groups: remove one first.")
            connection.execute(
                insert(connection, device_groups)
                .values(name=name, **row)
                .on_conflict_do_update(index_elements=["name"], set_=row)
            )
            self._audit.append(
                connection,
                actor,
                action="group.save",
                object=f"group:{name}",
                reason=reason,
                before=None if before is None else before.filter,
                after=filter_of(wanted),
            )
        return self.get(name)

    def remove(self, name: str, *, actor: Actor, reason: str = "") -> None:
        """Forget a group. Its devices stay as they are.

        Raises:
            UsageError: There is none of that name.
            RefusedError: A rollout that is under way is for it.
        """
        with self._database.write() as connection:
            before = _find(connection, name)
            if before is None:
                raise _missing(name)
            for row in connection.execute(select(rollouts).where(rollouts.c.state.in_(LIVE))):
                rollout = _rollout(row)
                if any(name in step.tags for step in rollout.plan.steps):
                    raise RefusedError(f"Rollout {rollout.id} is for group {name}: end it first.")
            connection.execute(delete(device_groups).where(device_groups.c.name == name))
            self._audit.append(
                connection,
                actor,
                action="group.remove",
                object=f"group:{name}",
                reason=reason,
                before=before.filter,
            )

    def get(self, name: str) -> Group:
        """Return a group.

        Raises:
            UsageError: There is none of that name.
        """
        with self._database.read() as connection:
            found = _find(connection, name)
        if found is None:
            raise _missing(name)
        return found

    def all(self) -> tuple[Group, ...]:
        """Return every group, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(device_groups).order_by(device_groups.c.name))
            return tuple(map(_group, rows))

    def count(self, group: Group) -> int:
        """Return how many devices are in a group now."""
        query = select(func.count()).select_from(devices).where(*matching(group.wanted, self._clock()))
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def members(self, name: str) -> frozenset[DeviceId]:
        """Return the devices that are in a group, or have a tag, now."""
        with self._database.read() as connection:
            query = select(devices.c.id).where(*in_group(connection, name, self._clock()))
            return frozenset(map(DeviceId, connection.execute(query).scalars()))


def filter_of(wanted: Wanted) -> dict[str, str | int]:
    """Return what a filter asks for, by name, without what it leaves open."""
    return {name: value for name, value in asdict(wanted).items() if value is not None}


def _find(connection: Connection, name: str) -> Group | None:
    row = connection.execute(select(device_groups).where(device_groups.c.name == name)).one_or_none()
    return None if row is None else _group(row)


def _group(row: Row[Any]) -> Group:
    return Group(row.name, Wanted(**json.loads(row.filter)), row.saved_s, row.saved_by)


def _missing(name: str) -> UsageError:
    return UsageError(f"There is no group {name[:80]!r}:  umbel fleet groups  lists them.")
