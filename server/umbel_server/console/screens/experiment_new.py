"""Screen that begins an experiment: a form, whom it would draw, and only then the button."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from umbel_proto.errors import UmbelError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import status_of_error
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console import confirm
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.rollouts import released_models
from umbel_server.console.seen.asked import MAX_PLAN, whole
from umbel_server.console.seen.experiments import AskedExperiment
from umbel_server.console.session import ActorOf
from umbel_server.experiments.begin import Drawn, begin, design, draw, require_enough
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.rollouts.begin import Proposal

router = APIRouter(route_class=ScreenRoute)

NEW = "/experiments/-/new"
_WRITE = [may(Permission.ROLLOUTS_WRITE)]


@router.get(NEW, dependencies=_WRITE)
def plan_new(request: Request, service: ServiceOf) -> Response:
    """Show the form, and whom what is in it would draw."""
    asked = asked_of(request)
    if not asked.complete:
        return _shown(request, service, asked)
    return _tried(request, service, asked)


@router.post(NEW, dependencies=_WRITE)
def begin_new(request: Request, service: ServiceOf, actor: ActorOf, form: FormOf) -> Response:
    """Begin the experiment that was looked at."""
    reason = form.text(confirm.REASON)
    try:
        plan = _read(form.text("plan", most=MAX_PLAN))
        proposal = _design(
            service, form.text("model"), whole(form.text("version"), "Version"), plan, form.text("name")
        )
        if form.text(confirm.TYPED) != proposal.name:
            raise UsageError(f"Nothing was done: type {proposal.name} to confirm.")
        if not reason:
            raise UsageError("Nothing was done: give a reason, for the audit log.")
        made, _ = begin(service.store, proposal, plan, actor=actor, reason=reason)
    except UmbelError as exc:
        status = status_of_error(exc)
        if status is None:
            raise
        return _tried(request, service, asked_of(request), problem=str(exc), status=status, reason=reason)
    return done(f"/experiments/{made.id}", f"Experiment {made.id} is started, for {plan.days:g} days.")


def asked_of(request: Request) -> AskedExperiment:
    """Return what the form's fields in the URL say; what is not there is as usual."""
    query = request.query_params
    return AskedExperiment(
        **{
            each.name: query[each.name].strip()[:MAX_PLAN]
            for each in fields(AskedExperiment)
            if each.name in query
        }
    )


def _tried(
    request: Request,
    service: Service,
    asked: AskedExperiment,
    *,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    reason: str = "",
) -> Response:
    """Return the form with whom it would draw, or with what is wrong with it."""
    try:
        plan = asked.plan()
        proposal = _design(service, asked.model, whole(asked.version, "Version"), plan, asked.name)
        drawn = draw(service.store, proposal)
    except UmbelError as exc:
        found = status_of_error(exc)
        if found is None:
            raise
        return _shown(
            request, service, asked, problem=problem or str(exc), status=status if problem else found
        )
    try:
        require_enough(service.store, proposal, plan)
        doubt = ""
    except UsageError as exc:
        doubt = str(exc)
    return _shown(
        request,
        service,
        asked,
        proposal=proposal,
        plan=plan,
        drawn=drawn,
        doubt=doubt,
        problem=problem,
        status=status,
        reason=reason,
    )


def _design(service: Service, model: str, version: int, plan: ExperimentPlan, name: str) -> Proposal:
    kept_days = service.fleet.settings.retention.hours_days
    return design(service.store, model, version, plan, name=name or None, kept_days=kept_days)


def _read(text: str) -> ExperimentPlan:
    try:
        return ExperimentPlan.from_dict(json.loads(text))
    except (ValueError, RecursionError, AttributeError) as exc:
        raise UsageError(
            "The plan of the form cannot be read: look at it again, and start from there."
        ) from exc


def _shown(
    request: Request,
    service: Service,
    asked: AskedExperiment,
    *,
    proposal: Proposal | None = None,
    plan: ExperimentPlan | None = None,
    drawn: Drawn | None = None,
    doubt: str = "",
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    reason: str = "",
) -> Response:
    return page(
        request,
        "experiment_new.html",
        title="Start an experiment",
        status=status,
        asked=asdict(asked),
        models=released_models(service.store),
        proposal=proposal,
        plan=None if plan is None else json.dumps(plan.to_dict(), sort_keys=True),
        meant=plan,
        drawn=drawn,
        doubt=doubt,
        problem=problem,
        reason=reason,
    )
