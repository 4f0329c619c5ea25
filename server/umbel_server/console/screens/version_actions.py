"""What people do with a version from its screen: ask for approval, deprecate, reinstate, retire, comment."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import status_of_error
from umbel_server.api.service import Service, ServiceOf, StoreOf
from umbel_server.api.texts import Named
from umbel_server.console.confirm import REASON, Deed, ask, conflict, refusal
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done
from umbel_server.console.screens.model_version import Number, found_version
from umbel_server.console.session import ActorOf
from umbel_server.registry import asking, releasing, versions
from umbel_server.registry.stages import Event, Stage
from umbel_server.store.registry import Version

router = APIRouter(route_class=ScreenRoute)

Move = Annotated[Literal["deprecate", "reinstate", "retire"], Path()]
_WRITE = [may(Permission.REGISTRY_WRITE)]
_RELEASE = [may(Permission.RELEASES_WRITE)]
_READ = [may(Permission.REGISTRY_READ)]
_MOVED = {"deprecate": "deprecated", "reinstate": "reinstated", "retire": "retired"}
_SAYS = {
    "deprecate": "Nobody should choose this version any more. Devices that run it keep it, and may still fetch it.",
    "reinstate": "The version is as good as before: devices may have it, and nobody is told off it.",
    "retire": "No device fetches this version any more, for good. Devices that run it keep running it until they get another.",
}


@router.get("/models/{name}/{version}/request", dependencies=_WRITE)
def confirm_request(request: Request, service: ServiceOf, name: Named, version: Number) -> Response:
    """Ask before approval is asked for."""
    return ask(request, _request_deed(service, found_version(service, name, version)))


@router.post("/models/{name}/{version}/request", dependencies=_WRITE)
def request_approval(
    request: Request, service: ServiceOf, actor: ActorOf, form: FormOf, name: Named, version: Number
) -> Response:
    """Ask that a version be approved by the evidence that there is."""
    deed = _request_deed(service, found_version(service, name, version))
    undone = refusal(request, deed, form)
    if undone is not None:
        return undone
    try:
        asked = asking.request(service.fleet, service.store, name, version, actor, comment=form.text(REASON))
    except RefusedError as exc:
        return conflict(request, deed, form, str(exc))
    needed = asking.rules_of(service.fleet).approvals
    return done(
        f"/models/{name}/{version}", f"Request {asked.number} waits: {needed} accounts must approve of it."
    )


@router.post("/models/{name}/{version}/comment", dependencies=_READ)
def comment_on_version(
    store: StoreOf, service: ServiceOf, actor: ActorOf, form: FormOf, name: Named, version: Number
) -> Response:
    """Say something about a version; it stays on record."""
    found_version(service, name, version)
    versions.comment(store, name, version, actor, form.text("comment"))
    return done(f"/models/{name}/{version}#comments", "Your comment is kept.")


@router.get("/models/{name}/{version}/{move}", dependencies=_RELEASE)
def confirm_move(request: Request, service: ServiceOf, name: Named, version: Number, move: Move) -> Response:
    """Ask before a version is deprecated, reinstated or retired."""
    return ask(request, _move_deed(service, found_version(service, name, version), move))


@router.post("/models/{name}/{version}/{move}", dependencies=_RELEASE)
def move_version(
    request: Request,
    service: ServiceOf,
    actor: ActorOf,
    form: FormOf,
    name: Named,
    version: Number,
    move: Move,
) -> Response:
    """Deprecate, reinstate or retire a version."""
    found = found_version(service, name, version)
    deed = _move_deed(service, found, move)
    undone = refusal(request, deed, form)
    if undone is not None:
        return undone
    seen, reason = form.text("seen", most=32), form.text(REASON)
    try:
        stage = Stage(seen)
    except ValueError:
        raise UsageError(
            "The form does not say which stage you saw: open the version, and do it again."
        ) from None
    fleet, store = service.fleet, service.store
    try:
        if move == "retire":
            releasing.retire(fleet, store, name, version, actor, reason=reason, seen=stage)
        else:
            releasing.move(store, name, version, Event(move), actor, reason=reason, seen=stage)
    except (RefusedError, UsageError) as exc:
        status = status_of_error(exc) or HTTPStatus.CONFLICT
        return ask(request, deed, problem=str(exc), status=status, reason=reason)
    return done(f"/models/{name}/{version}", f"{found.name} is {_MOVED[move]}.")


def _request_deed(service: Service, version: Version) -> Deed:
    rules = asking.rules_of(service.fleet)
    return Deed(
        title=f"Ask for approval of {version.name}",
        button="Ask for approval",
        name="",
        devices=None,
        says=(
            "The evidence there is now is bound to the request.",
            f"{rules.approvals} accounts besides you and whoever added it must approve within {rules.days:g} days.",
            "Tell the reviewers why this version should go out. A request that holds already is given up.",
        ),
        back=f"/models/{version.model}/{version.version}",
    )


def _move_deed(service: Service, version: Version, move: str) -> Deed:
    says = [_SAYS[move]]
    if move == "retire" and version.sealed_s is not None and not service.fleet.release_key.exists():
        says.append(
            "It is signed for devices, and the release key is not at this service: it is retired where the key is, "
            f"with  umbel registry retire {version.name} --key release.key."
        )
    return Deed(
        title=f"{move.capitalize()} {version.name}",
        button=move.capitalize(),
        name=version.name,
        devices=service.store.inventory.answering(version.model, version.version),
        says=tuple(says),
        back=f"/models/{version.model}/{version.version}",
        carries=(("seen", version.stage),),
    )
