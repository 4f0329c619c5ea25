"""Screen that asks the fleet: a form, what the answer would cost and how exact it would be, and only then the button."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response

from umbel_proto.analytics.query import KINDS
from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import status_of_error
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console import confirm
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.rollouts import released_models
from umbel_server.console.seen.asked_query import MAX_TEXT, AskedQuery
from umbel_server.console.session import ActorOf, session_of
from umbel_server.queries.ask import ask
from umbel_server.queries.sign import by_authority

router = APIRouter(route_class=ScreenRoute)

NEW = "/queries/-/new"
_WRITE = [may(Permission.QUERIES_WRITE)]


@router.get(NEW, dependencies=_WRITE)
def plan_new(request: Request, service: ServiceOf) -> Response:
    """Show the form, and what the question in it would cost."""
    asked = asked_of(request)
    return _tried(request, service, asked) if asked.complete else _shown(request, service, asked)


@router.post(NEW, dependencies=_WRITE)
def ask_new(request: Request, service: ServiceOf, actor: ActorOf, form: FormOf) -> Response:
    """Ask the question that was looked at."""
    asked = asked_of(request)
    # What devices' users read as the purpose is what the audit log keeps as the reason: there is one.
    meant = replace(asked, why=form.text(confirm.REASON), name=form.text("name"))
    try:
        if form.text(confirm.TYPED) != meant.name or not meant.name:
            raise UsageError(f"Nobody was asked: type {meant.name or 'its name'} to confirm.")
        if not meant.why:
            raise UsageError("Nobody was asked: say what for; devices' users read it.")
        question = meant.question()
        figures = ask(service.fleet, service.store, question, dry_run=True, actor=actor)
        if state_of(figures) != form.text("state"):
            raise RefusedError(
                "Nobody was asked: what the answer would cost has changed since you looked. It is shown anew below."
            )
        sign = by_authority(service.fleet, service.store, session=session_of(request).secret)
        made = ask(service.fleet, service.store, question, dry_run=False, actor=actor, sign=sign)
    except UmbelError as exc:
        status = status_of_error(exc)
        if status is None:
            raise
        shown = replace(asked, why=meant.why or asked.why)
        return _tried(request, service, shown, problem=str(exc), status=status)
    return done(f"/queries/{made['query']}", f"Query {made['query']} is put to {made['devices']} devices.")


def asked_of(request: Request) -> AskedQuery:
    """Return what the form's fields in the URL say; what is not there is as usual."""
    query = request.query_params
    return AskedQuery(
        **{
            each.name: query[each.name].strip()[:MAX_TEXT]
            for each in fields(AskedQuery)
            if each.name in query
        }
    )


def state_of(figures: dict[str, Any]) -> str:
    """Return what somebody agreed to who confirms it: the version, who is asked, and the cost."""
    return "/".join(
        str(figures[name])
        for name in ("kind", "model", "version", "devices", "min_cohort", "epsilon", "epsilon_after")
    )


def _tried(
    request: Request,
    service: Service,
    asked: AskedQuery,
    *,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    """Return the form with what it would cost, or with what is wrong with it."""
    actor = session_of(request).account.actor
    try:
        figures = ask(service.fleet, service.store, asked.question(), dry_run=True, actor=actor)
    except UmbelError as exc:
        found = status_of_error(exc)
        if found is None:
            raise
        return _shown(
            request, service, asked, problem=problem or str(exc), status=status if problem else found
        )
    return _shown(request, service, asked, figures=figures, problem=problem, status=status)


def _shown(
    request: Request,
    service: Service,
    asked: AskedQuery,
    *,
    figures: dict[str, Any] | None = None,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    return page(
        request,
        "query_new.html",
        title="Ask the fleet",
        status=status,
        asked=asdict(asked),
        kinds=KINDS,
        models=released_models(service.store),
        figures=figures,
        state="" if figures is None else state_of(figures),
        problem=problem,
    )
