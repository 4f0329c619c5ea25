"""Which devices somebody wants to see, as conditions of a query, and the filters that are saved as groups."""

from __future__ import annotations

import json
from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, and_, select

from umbel_server.store.admission import ACTIVE
from umbel_server.store.tables import devices
from umbel_server.store.tables_groups import device_groups
from umbel_server.store.tables_rollouts import device_models, device_tags
from umbel_server.store.wanted import ONLINE_S, STALE_S, Status, Wanted


def matching(wanted: Wanted, now_s: float) -> list[ColumnElement[bool]]:
    """Return what devices fulfill that somebody wants to see, but for the group that they are in.

    Args:
        wanted: Which ones.
        now_s: The time, Unix seconds: what a status goes by.
    """
    found: list[ColumnElement[bool]] = []
    if wanted.status is not None:
        found.append(_is(wanted.status, now_s))
    if wanted.begins:
        # A range, which the order of names answers; no name holds a character after the last of these.
        found.append(and_(devices.c.id >= wanted.begins, devices.c.id < f"{wanted.begins}\x7f"))
    if wanted.tag is not None:
        # A list of devices, not a question about each: SQLite begins with it where it is short.
        tags = device_tags.alias()
        found.append(devices.c.id.in_(select(tags.c.device_id).where(tags.c.tag == wanted.tag)))
    if wanted.model is not None:
        slots = device_models.alias()
        having = select(slots.c.device_id).where(slots.c.model == wanted.model)
        if wanted.version is not None:
            having = having.where(slots.c.version == wanted.version)
        found.append(devices.c.id.in_(having))
    return found


def saved(connection: Connection, names: Collection[str] | None = None) -> dict[str, Wanted]:
    """Return the filters that are saved as groups, by name.

    Args:
        connection: The database.
        names: Only of these groups; None: of all.
    """
    if names is not None and not names:
        return {}
    query = select(device_groups.c.name, device_groups.c.filter).order_by(device_groups.c.name)
    if names is not None:
        query = query.where(device_groups.c.name.in_(names))
    return {name: Wanted(**json.loads(text)) for name, text in connection.execute(query)}


def meant(connection: Connection, group: str) -> Wanted:
    """Return the filter that a group stands for: the one that is saved under its name, or the tag of that name."""
    return saved(connection, [group]).get(group, Wanted(tag=group))


def in_group(connection: Connection, group: str, now_s: float) -> list[ColumnElement[bool]]:
    """Return what the devices of a group fulfill: of a saved filter, or of a tag."""
    return matching(meant(connection, group), now_s)


def _is(status: Status, now_s: float) -> ColumnElement[bool]:
    """Return whether a device has a status: ``status_of``, in words by which PostgreSQL knows how many have."""
    seen, active = devices.c.last_seen_s, devices.c.status == ACTIVE
    if status == "revoked":
        return ~active
    if status == "quarantined":
        return and_(active, devices.c.quarantined_s.is_not(None))
    free = and_(active, devices.c.quarantined_s.is_(None))
    if status == "online":
        return and_(free, seen > now_s - ONLINE_S)
    silent = and_(free, seen <= now_s - ONLINE_S)
    never = seen <= devices.c.enrolled_s
    if status == "never seen":
        return and_(silent, never)
    return and_(silent, ~never, seen > now_s - STALE_S if status == "stale" else seen <= now_s - STALE_S)
