"""Devices as a list that people filter, sort and page through; what it counts is counted in the database."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    func,
    literal,
    null,
    select,
    tuple_,
    union_all,
)

from umbel_proto.ids import ModelName
from umbel_server.clock import Clock
from umbel_server.store.census import Census, census
from umbel_server.store.database import Database
from umbel_server.store.devices import Device, _device
from umbel_server.store.facets import Facets, status_of
from umbel_server.store.matching import in_group, matching, meant
from umbel_server.store.tables import devices
from umbel_server.store.tables_rollouts import device_models, device_tags
from umbel_server.store.wanted import ANY, Sort, Status, Wanted

_COLUMNS = {
    "seen": devices.c.last_seen_s,
    "enrolled": devices.c.enrolled_s,
    "certificate": devices.c.certificate_not_after_s,
}


class DeviceList:
    """The list of a store's devices."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def page(
        self,
        wanted: Wanted = ANY,
        *,
        limit: int,
        after: str = "",
        sort: Sort = "name",
        after_value: float | None = None,
        descending: bool = False,
    ) -> tuple[Device, ...]:
        """Return devices, those after the last one of the page before.

        Args:
            wanted: Which ones.
            limit: At most so many.
            after: The name of the last one before; empty: from the beginning.
            sort: By what; devices that are alike in it come by name.
            after_value: What ``sort`` says of the last one before: the time, Unix seconds.
            descending: Whether the largest come first.
        """
        names = devices.c.id
        query = select(devices).where(*self._matching(wanted))
        if sort == "name":
            if after:
                query = query.where(names < after if descending else names > after)
            query = query.order_by(names.desc() if descending else names)
        else:
            column = _COLUMNS[sort]
            if after_value is not None:
                place: Any = tuple_(column, names)
                last = (after_value, after)
                query = query.where(place < last if descending else place > last)
            query = query.order_by(*((column.desc(), names.desc()) if descending else (column, names)))
        with self._database.read() as connection:
            return tuple(map(_device, connection.execute(query.limit(limit))))

    def facets(self, wanted: Wanted = ANY) -> Facets:
        """Return what the devices are that somebody wants to see, counted."""
        matching = self._matching(wanted)
        chosen = select(devices.c.id, status_of(self._clock()).label("status")).where(*matching)
        # SQLite makes it once for all three counts; PostgreSQL guesses well how many it finds only where it sees how.
        them = chosen.cte("them")
        them = them.prefix_with("MATERIALIZED", dialect="sqlite")
        them = them.prefix_with("NOT MATERIALIZED", dialect="postgresql")
        model, tag = (device_models.c.model, device_models.c.version), device_tags.c.tag
        statuses = (
            _counted(literal("status"), them.c.status, null()).select_from(them).group_by(them.c.status)
        )
        versions = _counted(literal("model"), *model).group_by(*model)
        tags = _counted(literal("tag"), tag, null()).group_by(tag)
        if matching:
            # From the devices to what each has: SQLite goes the way that an outer join prescribes.
            versions = versions.select_from(them).join(
                device_models, device_models.c.device_id == them.c.id, isouter=True
            )
            tags = tags.select_from(them).join(
                device_tags, device_tags.c.device_id == them.c.id, isouter=True
            )
        with self._database.read() as connection:
            found: dict[str, list[Row[Any]]] = {"status": [], "model": [], "tag": []}
            for row in connection.execute(union_all(statuses, versions, tags)):
                if row.word is not None:  # Devices without a model, or a tag.
                    found[row.kind].append(row)
        return Facets(
            sum(row.devices for row in found["status"]),
            tuple(sorted((cast("Status", row.word), row.devices) for row in found["status"])),
            tuple(sorted((ModelName(row.word), row.version, row.devices) for row in found["model"])),
            tuple(sorted((row.word, row.devices) for row in found["tag"])),
        )

    def census(self) -> Census | None:
        """Return all devices by what facets count; None: they differ too much."""
        with self._database.read() as connection:
            return census(connection, self._clock())

    def filters(self, wanted: Wanted) -> tuple[Wanted, ...]:
        """Return what devices fulfill that somebody wants to see: a group as what it stands for."""
        if wanted.group is None:
            return (wanted,)
        with self._database.read() as connection:
            return replace(wanted, group=None), meant(connection, wanted.group)

    def _matching(self, wanted: Wanted) -> Collection[ColumnElement[bool]]:
        now_s = self._clock()
        found = matching(wanted, now_s)
        if wanted.group is not None:
            with self._database.read() as connection:
                found += in_group(connection, wanted.group, now_s)
        return found


def _counted(
    kind: ColumnElement[str], word: ColumnElement[str], version: ColumnElement[Any]
) -> Select[tuple[str, str, Any, int]]:
    return select(
        kind.label("kind"), word.label("word"), version.label("version"), func.count().label("devices")
    )
