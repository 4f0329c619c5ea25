"""Screen that starts a federated run: a plan, what it would spend of devices' budgets, and only then the button."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import status_of_error
from umbel_server.api.routes.runs import with_data
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console import confirm
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.rollouts import released_models
from umbel_server.console.seen.asked_run import (
    MAX_TOML,
    Spending,
    read_toml,
    spending,
    starter,
    stored_plans,
)
from umbel_server.console.session import ActorOf
from umbel_server.learning.begin import Checked, check, launch, name_of, pin

router = APIRouter(route_class=ScreenRoute)

NEW = "/runs/-/new"
_WRITE = [may(Permission.RUNS_WRITE)]


@dataclass(frozen=True, slots=True)
class Tried:
    """A plan that policy and budgets cover, as it was looked at.

    Args:
        name: What the run will be called.
        checked: The plan and its cost.
        spending: What it would take of budgets.
    """

    name: str
    checked: Checked
    spending: Spending

    @property
    def state(self) -> str:
        """What somebody agrees to who confirms it: the plan with its release, the name, the cost and who can pay."""
        # What others spend meanwhile is not in it: with a run under way, nobody could ever start another.
        paid = (self.spending.budget, self.spending.delta, self.spending.able)
        told = f"{self.name}/{self.checked.plan.to_json()}/{self.checked.figures}/{paid}"
        return hashlib.sha256(told.encode()).hexdigest()


@router.get(NEW, dependencies=_WRITE)
def plan_new(request: Request, service: ServiceOf) -> Response:
    """Show the form, and what the plan in it would spend."""
    toml, name = _asked(request)
    if not toml:
        return _shown(request, service, toml=_begun_from(request, service), name=name)
    try:
        tried = _try(service, toml, name)
    except UmbelError as exc:
        return _refused(request, service, exc, toml=toml, name=name)
    return _shown(request, service, toml=toml, name=name, tried=tried)


@router.post(NEW, dependencies=_WRITE)
def start_new(request: Request, service: ServiceOf, actor: ActorOf, form: FormOf) -> Response:
    """Start the run that was looked at."""
    toml, name = _asked(request)
    wanted, reason = form.text("name"), form.text(confirm.REASON)
    try:
        if form.text(confirm.TYPED) != wanted or not wanted:
            raise UsageError(f"Nothing was started: type {wanted or 'its name'} to confirm.")
        if not reason:
            raise UsageError("Nothing was started: give a reason, for the audit log.")
        tried = _try(service, toml, wanted)
        if tried.state != form.text("state"):
            raise RefusedError(
                "Nothing was started: what it would spend, or the release it starts from, has changed since you "
                "looked. It is shown anew below."
            )
        run = name_of(service.store, tried.checked.plan, wanted)
        launch(service.fleet, service.store, run, tried.checked, actor=actor, reason=reason)
    except UmbelError as exc:
        return _refused(request, service, exc, toml=toml, name=name, reason=reason)
    return done(f"/runs/{run}", f"Run {run} is started: it waits for devices to be online.")


def _asked(request: Request) -> tuple[str, str]:
    """Return the plan and the name in the URL."""
    query = request.query_params
    return query.get("toml", "")[: MAX_TOML + 1].strip(), query.get("name", "").strip()[:64]


def _begun_from(request: Request, service: Service) -> str:
    """Return the plan to begin with: one that is on record, or a starter."""
    wanted = request.query_params.get("from", "")
    models = released_models(service.store)
    found = next((each.toml for each in stored_plans(service.fleet, service.store) if each.key == wanted), "")
    return found or (starter(service.fleet, service.store, models[0]) if models else "")


def _try(service: Service, toml: str, name: str) -> Tried:
    fleet, store = service.fleet, service.store
    checked = check(fleet, store, pin(with_data(fleet, read_toml(toml)), store))
    run = name_of(store, checked.plan, name)
    if store.runs.get(run) is not None:
        raise UsageError(f"There is already a run {run}: choose another name.")
    return Tried(run, checked, spending(fleet, store, checked))


def _refused(
    request: Request, service: Service, exc: UmbelError, *, toml: str, name: str, reason: str = ""
) -> Response:
    """Return the form again, with what is wrong and what the plan would spend, if that can be told."""
    status = status_of_error(exc)
    if status is None:
        raise exc
    tried = None
    if request.method == "POST":
        try:
            tried = _try(service, toml, name)
        except UmbelError:
            tried = None
    return _shown(
        request, service, toml=toml, name=name, tried=tried, problem=str(exc), status=status, reason=reason
    )


def _shown(
    request: Request,
    service: Service,
    *,
    toml: str,
    name: str,
    tried: Tried | None = None,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    reason: str = "",
) -> Response:
    return page(
        request,
        "run_new.html",
        title="Start a run",
        status=status,
        toml=toml,
        name=name,
        most=MAX_TOML,
        models=released_models(service.store),
        stored=stored_plans(service.fleet, service.store),
        since=request.query_params.get("from", ""),
        tried=tried,
        problem=problem,
        reason=reason,
    )
