"""All devices by what lists filter and count: how many are alike in it, so that one look answers every filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, Select, func, select

from umbel_proto.ids import ModelName
from umbel_server.store.facets import Facets, status_of
from umbel_server.store.tables import devices
from umbel_server.store.tables_rollouts import device_models, device_tags
from umbel_server.store.wanted import Status, Wanted

MOST = 5000
"""Kinds of devices that are told apart; of a fleet that has more, each filter is counted by itself."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Devices that no filter tells apart but one by name.

    Args:
        status: Their status, by its word.
        versions: Which versions of which models answer on each.
        tags: Each one's tags.
        devices: How many they are.
    """

    status: Status
    versions: frozenset[tuple[ModelName, int]]
    tags: frozenset[str]
    devices: int

    def fulfill(self, wanted: Wanted) -> bool:
        """Return whether they are what somebody wants to see, but for their names and groups."""
        if wanted.status not in (None, self.status) or not (wanted.tag is None or wanted.tag in self.tags):
            return False
        return wanted.model is None or any(
            model == wanted.model and wanted.version in (None, version) for model, version in self.versions
        )


@dataclass(frozen=True, slots=True)
class Census:
    """All devices of a store at one moment.

    Args:
        alike: Those of each kind.
    """

    alike: tuple[Alike, ...]

    def facets(self, wanted: Iterable[Wanted]) -> Facets:
        """Return what the devices are that fulfill several filters, none of them by name or group, counted."""
        wanted = tuple(wanted)
        statuses: Counter[Status] = Counter()
        versions: Counter[tuple[ModelName, int]] = Counter()
        tags: Counter[str] = Counter()
        for each in self.alike:
            if all(map(each.fulfill, wanted)):
                statuses[each.status] += each.devices
                for version in each.versions:
                    versions[version] += each.devices
                for tag in each.tags:
                    tags[tag] += each.devices
        return Facets(
            statuses.total(),
            tuple(sorted(statuses.items())),
            tuple((model, version, count) for (model, version), count in sorted(versions.items())),
            tuple(sorted(tags.items())),
        )


def census(connection: Connection, now_s: float) -> Census | None:
    """Return all devices by kind; None: there are too many kinds.

    Args:
        connection: The database.
        now_s: The time, Unix seconds: what a status goes by.
    """
    rows = connection.execute(_query(connection.dialect.name, now_s).limit(MOST + 1)).all()
    if len(rows) > MOST:
        return None
    return Census(
        tuple(
            Alike(
                cast("Status", row.status), _versions(row.versions), frozenset(_words(row.tags)), row.devices
            )
            for row in rows
        )
    )


def _query(dialect: str, now_s: float) -> Select[Any]:
    slots, named = device_models.c, device_tags.c
    # No name has a space in it, or an @.
    versions = func.aggregate_strings(slots.model.concat("@").concat(slots.version), " ").label("versions")
    tags = func.aggregate_strings(named.tag, " ").label("tags")
    of_versions: ColumnElement[Any]
    of_tags: ColumnElement[Any]
    if dialect == "sqlite":
        # SQLite would make an index of what is joined.
        of_versions = select(versions).where(slots.device_id == devices.c.id).scalar_subquery()
        of_tags = select(tags).where(named.device_id == devices.c.id).scalar_subquery()
        where: Any = devices
    else:
        having = select(slots.device_id, versions).group_by(slots.device_id).subquery()
        tagged = select(named.device_id, tags).group_by(named.device_id).subquery()
        of_versions, of_tags = having.c.versions, tagged.c.tags
        where = devices.outerjoin(having, having.c.device_id == devices.c.id)
        where = where.outerjoin(tagged, tagged.c.device_id == devices.c.id)
    each = select(
        status_of(now_s).label("status"), of_versions.label("versions"), of_tags.label("tags")
    ).select_from(where)
    kinds = each.subquery().c
    return select(kinds.status, kinds.versions, kinds.tags, func.count().label("devices")).group_by(
        kinds.status, kinds.versions, kinds.tags
    )


def _words(told: str | None) -> list[str]:
    return told.split(" ") if told else []


def _versions(told: str | None) -> frozenset[tuple[ModelName, int]]:
    pairs = (word.rpartition("@") for word in _words(told))
    return frozenset((ModelName(model), int(version)) for model, _, version in pairs)
