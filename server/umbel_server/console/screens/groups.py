"""Groups and cohorts: what operators put together by tags, and what devices are by themselves, each counted."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from umbel_proto.errors import UmbelError, UsageError
from umbel_proto.ids import DeviceId, check_name
from umbel_server.access.permissions import Permission
from umbel_server.api.service import ServiceOf, StoreOf
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.devices import named
from umbel_server.console.seen.counted import classes, counted
from umbel_server.console.session import ActorOf

router = APIRouter(route_class=ScreenRoute)
MOST = 1000
_SHOWN = 100


@router.get("/groups", dependencies=[may(Permission.DEVICES_READ)])
def groups(request: Request, service: ServiceOf) -> Response:
    """Show the groups of a fleet."""
    store, least = service.store, service.fleet.policy().min_cohort
    facets, by_class = counted(store), classes(store)
    file = export(
        request,
        "groups",
        ("kind", "group", "devices", "fewer_than_cohort"),
        (
            *(("tag", tag, count, count < least) for tag, count in facets.tags),
            *(
                ("version", f"{model}@{version}", count, count < least)
                for model, version, count in facets.versions
            ),
            *(("class", word, count, count < least) for word, count in by_class),
        ),
    )
    if file is not None:
        return file
    return page(
        request,
        "groups.html",
        title="Groups and cohorts",
        live="devices",
        tags=facets.tags,
        versions=facets.versions,
        statuses=facets.statuses,
        classes=by_class[:_SHOWN],
        more_classes=max(len(by_class) - _SHOWN, 0),
        least=least,
        devices=facets.devices,
    )


@router.post("/groups", dependencies=[may(Permission.DEVICES_WRITE)])
def add_to_group(store: StoreOf, actor: ActorOf, form: FormOf) -> Response:
    """Give devices a tag, which makes the group where there is none of that name."""
    tag = check_name(form.text("tag", most=63), "tag")
    names = named(
        [
            check_name(word, "device")
            for word in form.text("devices", most=64 * MOST).replace(",", " ").split()
        ]
    )
    if not names or len(names) > MOST:
        raise UsageError(f"Nothing was done: name 1 to {MOST} devices, or tick them in the list of devices.")
    refused: list[str] = []
    placed = store.placed.of(names)
    for name in names:
        try:
            store.placements.tag(
                DeviceId(name), {*placed[name].tags, tag}, actor=actor, reason=form.text("reason")
            )
        except UmbelError as exc:
            refused.append(str(exc))
    told = f"{len(names) - len(refused)} of {len(names)} devices are in {tag}."
    return done("/groups", told + (f" {len(refused)} are not; the first: {refused[0]}" if refused else ""))
