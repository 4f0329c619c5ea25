"""Devices: who is in the fleet."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from umbel_proto.ids import DeviceId
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, AfterName, Cursor, Limit, Page, after, no_cursor, page_of
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, StoreOf
from umbel_server.api.texts import NAME, Asked, Name, Named, Reason, Why
from umbel_server.monitor.report import DeviceLine, Status, devices, status_of
from umbel_server.store.devices import Device
from umbel_server.store.wanted import Sort, Wanted

router = APIRouter(prefix="/api/v1/devices", tags=["devices"], route_class=GuardedRoute)
OfStatus = Annotated[Status | None, Query(description="Those of which this is true.")]
OfTag = Annotated[str | None, Query(pattern=NAME, description="Those that have this tag.")]
OfModel = Annotated[str | None, Query(pattern=NAME, description="Those on which this model answers.")]
OfGroup = Annotated[
    str | None, Query(pattern=NAME, description="Those that are in this group, or have this tag.")
]
Begins = Annotated[str | None, Query(max_length=63, description="Those whose name begins so.")]
OfVersion = Annotated[int | None, Query(ge=0, lt=2**63, description="With model: its version.")]
Descending = Annotated[bool, Query(description="The largest first.")]
reports = APIRouter(prefix="/api/v1/device-reports", tags=["devices"], route_class=GuardedRoute)


class DeviceShown(BaseModel):
    """A device of the fleet."""

    id: str
    status: Status
    enrolled_s: float = Field(description="Unix seconds.")
    last_seen_s: float = Field(description="Unix seconds.")
    certificate_not_after_s: float = Field(description="Unix seconds.")
    node_id: str | None = Field(description="Flower's id of its node; null: unregistered.")
    quarantined_s: float | None = Field(description="Since when it is quarantined, Unix seconds; null: not.")
    quarantine_reason: str
    facts: dict[str, str | int] = Field(description="What it said it is.")


class DeviceReport(DeviceShown):
    """A device, and what it reported."""

    models: dict[str, int] = Field(description="The newest version of each model that it reported.")
    rounds: int = Field(description="Rounds whose sum has it.")
    rounds_missed: int = Field(description="Rounds that it took part in without getting into the sum.")


class VersionCount(BaseModel):
    """On how many devices a version of a model answers."""

    model: str
    version: int
    devices: int


class FacetsShown(BaseModel):
    """How many devices are what."""

    devices: int
    statuses: dict[str, int]
    versions: list[VersionCount]
    tags: dict[str, int]


class Tags(Asked):
    """All tags of a device from now on."""

    tags: Annotated[list[Name], Field(max_length=64)]
    reason: Reason


@router.get("", dependencies=[may(Permission.DEVICES_READ)])
def list_devices(
    store: StoreOf,
    status: OfStatus = None,
    tag: OfTag = None,
    model: OfModel = None,
    version: OfVersion = None,
    begins: Begins = None,
    group: OfGroup = None,
    sort: Sort = "name",
    descending: Descending = False,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[DeviceShown]:
    """List devices, all or some, by name or as asked."""
    last, last_value = last_of(cursor, sort)
    found = store.device_list.page(
        Wanted(status=status, tag=tag, model=model, version=version, begins=begins, group=group),
        limit=limit + 1, sort=sort, descending=descending, after=last, after_value=last_value,
    )  # fmt: skip
    now_s = store.clock()
    return page_of(
        found, limit, key=lambda device: place_of(device, sort), show=lambda each: show(each, now_s)
    )


@router.get("/facets", dependencies=[may(Permission.DEVICES_READ)])
def count_devices(
    store: StoreOf,
    status: OfStatus = None,
    tag: OfTag = None,
    model: OfModel = None,
    version: OfVersion = None,
    begins: Begins = None,
    group: OfGroup = None,
) -> FacetsShown:
    """Count devices, all or some, by status, version and tag."""
    found = store.device_list.facets(
        Wanted(status=status, tag=tag, model=model, version=version, begins=begins, group=group)
    )
    return FacetsShown(
        devices=found.devices,
        statuses=dict(found.statuses),
        versions=[
            VersionCount(model=name, version=number, devices=count) for name, number, count in found.versions
        ],
        tags=dict(found.tags),
    )


@reports.get("", dependencies=[may(Permission.DEVICES_READ)])
def list_device_reports(
    store: StoreOf,
    status: OfStatus = None,
    tag: OfTag = None,
    model: OfModel = None,
    version: OfVersion = None,
    begins: Begins = None,
    group: OfGroup = None,
    after_name: AfterName = "",
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[DeviceReport]:
    """List devices by name, all or some, with what they run and the rounds that they took part in."""
    now_s = store.clock()
    wanted = Wanted(status=status, tag=tag, model=model, version=version, begins=begins, group=group)
    page = store.device_list.page(wanted, limit=limit + 1, after=after(cursor) or after_name)
    lines = devices(store, page, now_s=now_s)
    return page_of(lines, limit, key=lambda line: line.device.id, show=lambda line: _report(line, now_s))


@reports.get("/{name}", dependencies=[may(Permission.DEVICES_READ)])
def get_device_report(store: StoreOf, name: Named) -> DeviceReport:
    """Show a device, what it runs and the rounds that it took part in."""
    device = store.devices.get(DeviceId(name))
    if device is None:
        raise missing(f"device {name}")
    now_s = store.clock()
    return _report(devices(store, [device], now_s=now_s)[0], now_s)


@router.get("/{name}", dependencies=[may(Permission.DEVICES_READ)])
def get_device(store: StoreOf, name: Named) -> DeviceShown:
    """Show a device."""
    return _found(store, name)


@router.post("/{name}/revoke", dependencies=[may(Permission.DEVICES_WRITE)])
def revoke_device(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> DeviceShown:
    """Refuse every further call of a device. Its name is never given out again."""
    _found(store, name)
    store.devices.revoke(DeviceId(name), actor=actor, reason=why.reason)
    return _found(store, name)


@router.post("/{name}/quarantine", dependencies=[may(Permission.DEVICES_WRITE)])
def quarantine_device(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> DeviceShown:
    """Keep a device apart: nothing it sends counts, and it takes no part in rounds."""
    _found(store, name)
    store.devices.quarantine(DeviceId(name), actor=actor, reason=why.reason)
    return _found(store, name)


@router.post("/{name}/release", dependencies=[may(Permission.DEVICES_WRITE)])
def release_device(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> DeviceShown:
    """End a device's quarantine."""
    _found(store, name)
    store.devices.release(DeviceId(name), actor=actor, reason=why.reason)
    return _found(store, name)


@router.put("/{name}/tags", dependencies=[may(Permission.DEVICES_WRITE)])
def tag_device(store: StoreOf, actor: ActorOf, name: Named, tags: Tags) -> DeviceShown:
    """Give a device these tags and no others."""
    _found(store, name)
    store.placements.tag(DeviceId(name), tags.tags, actor=actor, reason=tags.reason)
    return _found(store, name)


def show(device: Device, now_s: float) -> DeviceShown:
    """Return a device as the API shows it."""
    return DeviceShown(
        id=device.id,
        status=status_of(device, now_s),
        enrolled_s=device.enrolled_s,
        last_seen_s=device.last_seen_s,
        certificate_not_after_s=device.certificate_not_after_s,
        node_id=None if device.node_id is None else str(device.node_id),
        quarantined_s=device.quarantined_s,
        quarantine_reason=device.quarantine_reason,
        facts=dict(device.facts),
    )


def place_of(device: Device, sort: Sort) -> str:
    """Return what a device is found again by in a list: its name, behind the time that it is sorted by."""
    times = {
        "seen": device.last_seen_s,
        "enrolled": device.enrolled_s,
        "certificate": device.certificate_not_after_s,
    }
    return device.id if sort == "name" else f"{times[sort]!r} {device.id}"


def last_of(cursor: str | None, sort: Sort) -> tuple[str, float | None]:
    """Return the name, and what it was sorted by, of the device that a cursor names.

    Raises:
        Problem: It is no cursor.
    """
    key = after(cursor)
    if key is None or sort == "name":
        return key or "", None
    value, _, name = key.partition(" ")
    try:
        number = float(value)
    except ValueError:
        raise no_cursor() from None
    if not math.isfinite(number):
        raise no_cursor()
    return name, number


def _report(line: DeviceLine, now_s: float) -> DeviceReport:
    return DeviceReport(
        **show(line.device, now_s).model_dump(),
        models={str(model): version for model, version in line.models.items()},
        rounds=line.rounds,
        rounds_missed=line.rounds_missed,
    )


def _found(store: StoreOf, name: str) -> DeviceShown:
    device = store.devices.get(DeviceId(name))
    if device is None:
        raise missing(f"device {name}")
    return show(device, store.clock())
