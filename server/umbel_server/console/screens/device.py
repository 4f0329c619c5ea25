"""A device: what it is, what it runs, what happened to it, and the buttons for it."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from umbel_proto.enrollment import fingerprint
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId, ModelName, check_name
from umbel_proto.report import CONTRACT
from umbel_server.access.permissions import Permission
from umbel_server.access.reads import Read, on_record
from umbel_server.api.problems import missing
from umbel_server.api.service import ServiceOf, StoreOf
from umbel_server.api.texts import Named
from umbel_server.console.confirm import Deed, ask, conflict, refusal
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.range import Window, WindowOf
from umbel_server.console.seen.deployed import deployed
from umbel_server.console.seen.marks import marks_of
from umbel_server.console.seen.waiting import waiting_of
from umbel_server.console.session import ActorOf, SessionOf
from umbel_server.monitor.report import ERRORS, FELL_BACK, LATENCY, PREDICTIONS, status_of
from umbel_server.rollouts.classes import class_of
from umbel_server.store.audit import Sought
from umbel_server.store.device_days import DeviceSum
from umbel_server.store.devices import Device
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)
TIMELINE = 50
SAYS = {
    "offered": "offered",
    "answers": "answers since then:",
    "back": "answers again:",
    "taken back": "rolled back for all:",
    "failed": "failed, at that time or later:",
    "fell back": "given up on that day:",
}
"""What each word of its deployments is on the page."""
_DAY_S = 86400


@dataclass(frozen=True, slots=True)
class Slot:
    """A version of a model on a device.

    Args:
        model: The model.
        version: Its version.
        role: ``active``: it answers; ``previous``: an older one; ``candidate``: a newer one; ``failed``: it failed there.
        variant: ``fp32`` or ``int8``; empty: nothing was reported.
        engine: What ran it.
        predictions: How many it made.
        errors: Inputs that were refused or failed.
        p50_us: Half of its answers took no longer; None: none was reported.
        p99_us: Of a hundred, 99 took no longer.
        until_s: Until when it reported, by the device's clock; 0: nothing.
    """

    model: ModelName
    version: int
    role: str
    variant: str
    engine: str
    predictions: int
    errors: int
    p50_us: float | None
    p99_us: float | None
    until_s: int


SLOT_COLUMNS = tuple(each.name for each in dataclasses.fields(Slot))


def slots(store: Store, device: DeviceId, versions: dict[ModelName, int], *, since_s: float) -> list[Slot]:
    """Return the versions on a device: those that answer by its own word, and those that it reported of."""
    told = [
        each for each in store.device_days.totals([device], since_s=since_s, wanted=(LATENCY,)) if each.model
    ]
    found = [_slot(each, versions.get(each.model)) for each in told]
    reported = {(each.model, each.version) for each in told}
    silent = [
        Slot(model, version, "active", "", "", 0, 0, None, None, 0)
        for model, version in versions.items()
        if (model, version) not in reported
    ]
    return sorted(found + silent, key=lambda each: (each.model, -each.version, each.variant))


def latency(store: Store, device: DeviceId, window: Window, *, marked: bool = False) -> dict[str, Any]:
    """Return how long a device's predictions took, by day, as a chart.

    Args:
        store: The store.
        device: The device.
        window: The time.
        marked: Whether days are marked on which something happened to rollouts of its versions or rounds of its
            models: that is read for each of them.
    """
    days = store.device_days.days(device, since_s=window.since_s - _DAY_S, wanted=(LATENCY,))
    shown: set[tuple[str, int]] = set()
    by_model: dict[str, dict[int, tuple[float | None, float | None, int]]] = defaultdict(dict)
    for each in days:
        p50, p99 = _quantile(each, 0.5), _quantile(each, 0.99)
        name = f"{each.model}@{each.version} {each.variant}"
        if each.model and p50 is not None:
            shown.add((each.model, each.version))
            by_model[name][each.since_s] = (p50, p99, each.counters.get(PREDICTIONS, 0))
    times = sorted({day for points in by_model.values() for day in points})
    series = []
    for name, points in sorted(by_model.items()):
        for place, word in ((0, "p50"), (1, "p99")):
            values = [(points[day][place] or 0) / 1000 if day in points else None for day in times]
            series.append(
                {
                    "name": f"{name} {word}",
                    "values": values,
                    "n": [points[day][2] if day in points else None for day in times],
                    "dashed": place == 1,
                }
            )
    return {
        "kind": "line",
        "x": {"type": "time", "values": times},
        "unit": "ms",
        "series": series,
        "marks": marks(store, shown, times) if marked else [],
        "empty": "The device reported no latency in this range.",
    }


def marks(store: Store, versions: Collection[tuple[str, int]], days: Sequence[int]) -> list[dict[str, Any]]:
    """Return what happened to any of the versions, one mark a day; what is of two of them is told once."""
    found: dict[int, dict[str, None]] = defaultdict(dict)
    for model, version in sorted(versions):
        for mark in marks_of(store, model, version, days):
            found[mark.day_s] |= dict.fromkeys(mark.name.split(", "))
    return [{"at": day_s, "name": ", ".join(names)} for day_s, names in sorted(found.items())]


@dataclass(frozen=True, slots=True)
class Broken:
    """Values of a column that broke a model's data contract on a device.

    Args:
        model: The model.
        version: Its version.
        column: The column, or ``input`` of a model whose contract names none.
        kind: How: ``missing``, ``below``, ``above`` or ``unknown``.
        count: How many values.
    """

    model: ModelName
    version: int
    column: str
    kind: str
    count: int


def broken(days: Sequence[DeviceSum]) -> list[Broken]:
    """Return which values broke data contracts on a device, the most first."""
    counts: Counter[tuple[ModelName, int, str, str]] = Counter()
    for day in days:
        for name, count in day.counters.items():
            if day.model and count and name.startswith(CONTRACT):
                column, _, kind = name.removeprefix(CONTRACT).rpartition(".")
                counts[day.model, day.version, column, kind] += count
    found = [Broken(*of, count) for of, count in counts.items()]
    return sorted(found, key=lambda each: (-each.count, each.model, each.version, each.column, each.kind))


@router.get("/devices/{name}", dependencies=[may(Permission.DEVICES_READ)])
def show_device(
    request: Request, service: ServiceOf, session: SessionOf, name: Named, window: WindowOf
) -> Response:
    """Show a device; its file, what it reported of each model, is on record."""
    store = service.store
    device = _found(store, name)
    placed = store.placed.of([device.id])[device.id]
    days = store.device_days.days(device.id, since_s=window.since_s - _DAY_S, wanted=())
    of_models = slots(store, device.id, placed.versions, since_s=window.since_s - _DAY_S)
    file = export(request, f"device-{name}", SLOT_COLUMNS, map(dataclasses.astuple, of_models))
    if file is not None:
        on_record(store, session.account.actor, Read.TELEMETRY, fleet=service.fleet.name)
        return file
    may_audit = Permission.AUDIT_READ in session.permissions
    return page(
        request,
        "device.html",
        title=name,
        live="devices",
        window=window,
        device=device,
        heard=status_of(device, store.clock()),
        fingerprint=fingerprint(device.identity_key),
        device_class=class_of(device.facts),
        placed=placed,
        delivered=store.delivered.of([device.id]).get(device.id),
        slots=of_models,
        latency=latency(store, device.id, window),
        waiting=waiting_of(store, device.id, since_s=window.since_s - _DAY_S),
        broken=broken(days),
        events=deployed(store, device.id, days),
        says=SAYS,
        rounds=store.runs.ledger([device.id]),
        timeline=store.audit.latest(Sought(object=f"device:{name}"), limit=TIMELINE) if may_audit else None,
        most=TIMELINE,
    )


@router.get("/devices/{name}/latency.json", dependencies=[may(Permission.DEVICES_READ)])
def device_latency(store: StoreOf, name: Named, window: WindowOf) -> dict[str, Any]:
    """Return how long a device's predictions took, as a chart."""
    return latency(store, _found(store, name).id, window, marked=True)


@router.get("/devices/{name}/revoke", dependencies=[may(Permission.DEVICES_WRITE)])
@router.get("/devices/{name}/quarantine", dependencies=[may(Permission.DEVICES_WRITE)])
@router.get("/devices/{name}/release", dependencies=[may(Permission.DEVICES_WRITE)])
def ask_device(request: Request, store: StoreOf, name: Named) -> Response:
    """Ask before something is done to a device."""
    return ask(request, _deed(_found(store, name), request.url.path.rpartition("/")[2]))


@router.post("/devices/{name}/revoke", dependencies=[may(Permission.DEVICES_WRITE)])
@router.post("/devices/{name}/quarantine", dependencies=[may(Permission.DEVICES_WRITE)])
@router.post("/devices/{name}/release", dependencies=[may(Permission.DEVICES_WRITE)])
def do_device(request: Request, store: StoreOf, actor: ActorOf, name: Named, form: FormOf) -> Response:
    """Do something to a device."""
    device, what = _found(store, name), request.url.path.rpartition("/")[2]
    deed = _deed(device, what)
    if form.text("state") != _state(device):
        return conflict(
            request,
            deed,
            form,
            f"Nothing was done: {name} is {_state(device)} by now, as somebody else decided.",
        )
    again = refusal(request, deed, form)
    if again is not None:
        return again
    reason = form.text("reason")
    match what:
        case "revoke":
            store.devices.revoke(device.id, actor=actor, reason=reason)
        case "quarantine":
            store.devices.quarantine(device.id, actor=actor, reason=reason)
        case _:
            store.devices.release(device.id, actor=actor, reason=reason)
    word = {"revoke": "is revoked", "quarantine": "is quarantined", "release": "is out of its quarantine"}[
        what
    ]
    return done(deed.back, f"Device {name} {word}.")


@router.post("/devices/{name}/tags", dependencies=[may(Permission.DEVICES_WRITE)])
def tag_device(store: StoreOf, actor: ActorOf, name: Named, form: FormOf) -> Response:
    """Give a device these tags and no others."""
    device = _found(store, name)
    before = store.placed.of([device.id])[device.id].tags
    if form.text("before") != " ".join(before):
        raise UsageError(
            f"Nothing was done: the tags of {name} are {' '.join(before) or 'none'} by now, as somebody else decided. Look again."
        )
    tags = form.text("tags").replace(",", " ").split()
    store.placements.tag(device.id, tags, actor=actor, reason=form.text("reason"))
    return done(f"/devices/{name}", f"The tags of {name} are {' '.join(sorted(set(tags))) or 'none'}.")


@router.post("/devices/{name}/pin", dependencies=[may(Permission.ROLLOUTS_WRITE)])
def pin_device(store: StoreOf, actor: ActorOf, name: Named, form: FormOf) -> Response:
    """Let a device stay at a version of a model, or be as the others again."""
    device = _found(store, name)
    model = ModelName(check_name(form.text("model", most=63), "model"))
    version = form.number("version")
    if version is not None and not any(
        each.version == version for each in store.releases.all() if each.model == model
    ):
        raise UsageError(
            f"Nothing was done: no version {version} of {model} is released. See Models for which are."
        )
    store.placements.pin(device.id, model, version, actor=actor, reason=form.text("reason"))
    word = f"stays at {model} {version}" if version is not None else f"gets what the others get of {model}"
    return done(f"/devices/{name}", f"Device {name} {word}.")


def _found(store: Store, name: str) -> Device:
    device = store.devices.get(DeviceId(name))
    if device is None:
        raise missing(f"device {name}: see the list of devices")
    return device


def _state(device: Device) -> str:
    if not device.active:
        return "revoked"
    return "quarantined" if device.quarantined else "trusted"


def _deed(device: Device, what: str) -> Deed:
    says = {
        "revoke": "Every further call of it is refused, for good: its name is never given out again.",
        "quarantine": "Nothing it sends counts, and it takes no part in rounds. It may renew, and fetch releases.",
        "release": "What it sends counts again from now on; what it sent meanwhile stays apart.",
    }
    words = {"revoke": "Revoke", "quarantine": "Quarantine", "release": "End the quarantine"}
    title = f"{words[what]}{' of' if what == 'release' else ''} {device.id}"
    return Deed(
        title,
        words[what],
        "" if what == "release" else device.id,
        1,
        (says[what],),
        f"/devices/{device.id}",
        (("state", _state(device)),),
    )


def _slot(told: DeviceSum, active: int | None) -> Slot:
    if FELL_BACK in told.counters:
        role = "failed"
    elif active is None or told.version == active:
        role = "active" if active is not None else "reported"
    else:
        role = "previous" if told.version < active else "candidate"
    return Slot(
        told.model,
        told.version,
        role,
        told.variant,
        told.engine,
        told.counters.get(PREDICTIONS, 0),
        told.counters.get(ERRORS, 0),
        _quantile(told, 0.5),
        _quantile(told, 0.99),
        told.until_s,
    )


def _quantile(told: DeviceSum, q: float) -> float | None:
    found = [each for each in told.histograms if each.name == LATENCY]
    return max(found, key=lambda each: each.count).quantile(q) if found else None
