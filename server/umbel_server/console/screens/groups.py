"""Groups and cohorts: what operators put together by tags, and what devices are by themselves, each counted."""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter, Request, Response

from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_proto.ids import DeviceId, check_name
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing
from umbel_server.api.service import ServiceOf, StoreOf
from umbel_server.api.texts import Named
from umbel_server.console import confirm
from umbel_server.console.confirm import Deed
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.devices import named
from umbel_server.console.seen.counted import classes, counted
from umbel_server.console.session import ActorOf
from umbel_server.fleet.groups import group_json
from umbel_server.store.store import Store
from umbel_server.store.wanted import Status, Wanted

router = APIRouter(route_class=ScreenRoute)
MOST = 1000
_SHOWN = 100
_STATUSES = get_args(Status)


@router.get("/groups", dependencies=[may(Permission.DEVICES_READ)])
def groups(request: Request, service: ServiceOf) -> Response:
    """Show the groups of a fleet."""
    store, least = service.store, service.fleet.policy().min_cohort
    facets, by_class = counted(store), classes(store)
    saved = [group_json(each, store.groups.count(each), least) for each in store.groups.all()]
    file = export(
        request,
        "groups",
        ("kind", "group", "devices", "fewer_than_cohort"),
        (
            *(("saved", each["name"], each["devices"], each["fewer_than_cohort"]) for each in saved),
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
        saved=saved,
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


@router.post("/groups/saved", dependencies=[may(Permission.DEVICES_WRITE)])
def save_group(store: StoreOf, actor: ActorOf, form: FormOf) -> Response:
    """Save the filter of a list of devices as a group."""
    name = form.text("group", most=63)
    told = {key: form.text(key, most=63) or None for key in ("status", "tag", "model", "begins")}
    wanted = Wanted(
        status=next((each for each in _STATUSES if each == told["status"]), None),
        tag=told["tag"],
        model=told["model"],
        version=form.number("version"),
        begins=told["begins"],
    )
    made = store.groups.save(name, wanted, actor=actor, reason=form.text("reason"))
    return done("/groups", f"{name} is a group of {store.groups.count(made)} devices now.")


@router.get("/groups/saved/{name}/remove", dependencies=[may(Permission.DEVICES_WRITE)])
def ask_removal(request: Request, store: StoreOf, name: Named) -> Response:
    """Ask before a saved filter is forgotten."""
    return confirm.ask(request, _deed(store, name))


@router.post("/groups/saved/{name}/remove", dependencies=[may(Permission.DEVICES_WRITE)])
def remove_group(request: Request, store: StoreOf, actor: ActorOf, name: Named, form: FormOf) -> Response:
    """Forget a saved filter."""
    deed = _deed(store, name)
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    try:
        store.groups.remove(name, actor=actor, reason=form.text(confirm.REASON))
    except RefusedError as exc:
        return confirm.conflict(request, deed, form, f"Nothing was done: {exc}")
    return done("/groups", f"There is no group {name} any more.")


def _deed(store: Store, name: str) -> Deed:
    try:
        group = store.groups.get(name)
    except UsageError:
        raise missing(f"group {name}") from None
    return Deed(
        title=f"Remove group {name}",
        button="Remove the group",
        name="",
        devices=None,
        says=(
            f"The filter is forgotten. Devices in it now: {store.groups.count(group):,}; they stay as they are.",
            "Alert rules that name it look at nobody from then on.",
        ),
        back="/groups",
    )
