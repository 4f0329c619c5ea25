"""Devices: a page of them at a time, as somebody filters and sorts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator, Field

from umbel_proto.ids import DeviceId, ModelName
from umbel_server.access.permissions import Permission
from umbel_server.api.paging import page_of
from umbel_server.api.routes.devices import last_of, place_of
from umbel_server.api.service import StoreOf
from umbel_server.api.texts import Name
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.seen.counted import counted_soon
from umbel_server.console.seen.waiting import waiting_lately
from umbel_server.monitor.report import status_of
from umbel_server.rollouts.classes import class_of
from umbel_server.store.batches import Deliveries
from umbel_server.store.devices import Device
from umbel_server.store.groups import filter_of
from umbel_server.store.placed import Placed
from umbel_server.store.store import Store
from umbel_server.store.wanted import Sort, Status, Wanted

router = APIRouter(route_class=ScreenRoute)
ROWS = 100
_CHUNK = 500
_SOON_S = 8 * 3600
COLUMNS = (
    "device", "status", "last_seen_s", "enrolled_s", "certificate_not_after_s",
    "versions", "pins", "engine", "class", "tags",
    "batches_on_device", "batches_not_opened", "batches_rejected", "quarantine_reason",
)  # fmt: skip


def _given(text: object) -> object:
    # A filter that a form leaves open comes as an empty text.
    return None if text == "" else text


OfStatus = Annotated[Status | None, BeforeValidator(_given), Query()]
OfName = Annotated[Name | None, BeforeValidator(_given), Query()]
OfVersion = Annotated[Annotated[int, Field(ge=0, lt=2**63)] | None, BeforeValidator(_given), Query()]
Begins = Annotated[Annotated[str, Field(max_length=63)] | None, BeforeValidator(_given), Query(alias="q")]


@dataclass(frozen=True, slots=True)
class Line:
    """A device as the list shows it.

    Args:
        device: The device.
        status: Its status, by its word.
        placed: What it has.
        delivered: What it sent; None: nothing yet.
        waits: Batches that waited on it on average when a window closed lately; None: it told nothing of itself.
        device_class: What class it is of.
        soon: Whether its certificate ends soon though it is still heard of: it does not renew it.
    """

    device: Device
    status: Status
    placed: Placed
    delivered: Deliveries | None
    waits: float | None
    device_class: str
    soon: bool


def lines(store: Store, found: Sequence[Device]) -> list[Line]:
    """Return devices, a page of them, as the list shows them."""
    names, now_s = [device.id for device in found], store.clock()
    placed, delivered = store.placed.of(names), store.delivered.of(names)
    waits = waiting_lately(store, names)
    return [
        Line(
            device,
            status_of(device, now_s),
            placed[device.id],
            delivered.get(device.id),
            waits.get(device.id),
            class_of(device.facts),
            device.certificate_not_after_s - now_s < _SOON_S,
        )
        for device in found
    ]


def every_device(store: Store, wanted: Wanted) -> Iterator[Device]:
    """Yield all devices that somebody wants to see, by name, fetched in parts."""
    after = ""
    while some := store.device_list.page(wanted, limit=_CHUNK, after=after):
        yield from some
        after = some[-1].id


@router.get("/devices", dependencies=[may(Permission.DEVICES_READ)])
def devices(
    request: Request,
    store: StoreOf,
    status: OfStatus = None,
    tag: OfName = None,
    model: OfName = None,
    version: OfVersion = None,
    begins: Begins = None,
    group: OfName = None,
    sort: Sort = "name",
    descending: Annotated[bool, Query()] = False,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    """Show devices."""
    wanted = Wanted(status=status, tag=tag, model=model, version=version, begins=begins, group=group)
    file = export(request, "devices", COLUMNS, _rows(store, wanted))
    if file is not None:
        return file
    last, last_value = last_of(cursor, sort)
    found = store.device_list.page(
        wanted, limit=ROWS + 1, sort=sort, descending=descending, after=last, after_value=last_value
    )
    counted_soon(store, wanted, wait_s=0)  # Beside what follows: the list itself goes first.
    shown = page_of(found, ROWS, key=lambda each: place_of(each, sort), show=lambda each: each)
    return page(
        request,
        "devices.html",
        live="devices",
        lines=lines(store, shown.items),
        next=shown.next,
        facets=counted_soon(store, wanted),
        wanted=wanted,
        groups=[each.name for each in store.groups.all()],
        filter=filter_of(replace(wanted, group=None)),
        sort=sort,
        descending=descending,
        filtered=wanted != Wanted(),
        waiting=len(store.applications.pending()) if _may_admit(request) else 0,
    )


def _may_admit(request: Request) -> bool:
    return Permission.ENROLLMENT_READ in request.state.session.permissions


def _rows(store: Store, wanted: Wanted) -> Iterator[Sequence[object]]:
    some: list[Device] = []
    for device in every_device(store, wanted):
        some.append(device)
        if len(some) == _CHUNK:
            yield from map(_row, lines(store, some))
            some.clear()
    yield from map(_row, lines(store, some))


def _row(line: Line) -> Sequence[object]:
    device, delivered = line.device, line.delivered
    return (
        device.id, line.status, device.last_seen_s, device.enrolled_s, device.certificate_not_after_s,
        _pairs(line.placed.versions), _pairs(line.placed.pins), device.facts.get("engine", ""), line.device_class,
        " ".join(line.placed.tags), line.waits, delivered.sealed if delivered else 0, delivered.rejected if delivered else 0,
        device.quarantine_reason,
    )  # fmt: skip


def _pairs(versions: Mapping[ModelName, int]) -> str:
    return " ".join(f"{model}@{version}" for model, version in versions.items())


def named(names: Sequence[str]) -> list[DeviceId]:
    """Return names of devices, each once, in order."""
    return [DeviceId(name) for name in dict.fromkeys(names)]
