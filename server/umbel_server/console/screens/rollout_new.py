"""Screen that begins a rollout: a form, whom it would reach, and only then the button."""

from __future__ import annotations

import json
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response

from umbel_proto.errors import UmbelError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import status_of_error
from umbel_server.api.service import StoreOf
from umbel_server.console import confirm
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.rollouts import holds_seen
from umbel_server.console.seen.asked import GATES, MAX_PLAN, Asked, read_plan, whole
from umbel_server.console.seen.rollouts import plan_words
from umbel_server.console.session import ActorOf
from umbel_server.rollouts.begin import Proposal, begin, propose
from umbel_server.rollouts.dry_run import dry_run
from umbel_server.rollouts.plan import OnFailure
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

NEW = "/rollouts/-/new"
SHOWN = 50
_WRITE = [may(Permission.ROLLOUTS_WRITE)]
_TEXTS = (
    "model",
    "version",
    "since",
    "name",
    "steps",
    "hours",
    "longest",
    "shadow",
    "tags",
    "rate",
    "on_failure",
    "least_devices",
    "toml",
)


@router.get(NEW, dependencies=_WRITE)
def plan_new(request: Request, store: StoreOf) -> Response:
    """Show the form, and whom what is in it would reach."""
    asked = asked_of(request)
    if not asked.complete:
        return _shown(request, store, asked)
    try:
        proposal = _propose(store, asked)
        tried = dry_run(store, proposal)
    except UmbelError as exc:
        return _refused(request, store, asked, exc)
    return _shown(request, store, asked, proposal=proposal, tried=tried)


@router.post(NEW, dependencies=_WRITE)
def begin_new(request: Request, store: StoreOf, actor: ActorOf, form: FormOf) -> Response:
    """Begin the rollout that was looked at."""
    asked = asked_of(request)
    reason, name = form.text(confirm.REASON), form.text("name")
    try:
        proposal = propose(
            store,
            form.text("model"),
            whole(form.text("version"), "Version"),
            read_plan(form.text("plan", most=MAX_PLAN)),
            name=name,
            since=whole(form.text("since"), "From version"),
        )
        if form.text(confirm.TYPED) != proposal.name:
            raise UsageError(f"Nothing was done: type {proposal.name} to confirm.")
        if not reason:
            raise UsageError("Nothing was done: give a reason, for the audit log.")
        made = begin(store, proposal, actor=actor, reason=reason)
    except UmbelError as exc:
        return _refused(request, store, asked, exc, reason=reason)
    return done(f"/rollouts/{made.id}", f"Rollout {made.id} is started: {plan_words(made.plan)}.")


def asked_of(request: Request) -> Asked:
    """Return what the form's fields in the URL say; what is not there is as usual."""
    query = request.query_params
    texts = {name: query[name].strip()[:MAX_PLAN] for name in _TEXTS if name in query}
    gates = None
    if "filled" in query:
        gates = {
            kind.value: query.get(f"tolerance.{kind}", "").strip()
            for kind, _ in GATES
            if f"gate.{kind}" in query
        }
    return Asked(**texts, gates=gates)


def _propose(store: Store, asked: Asked) -> Proposal:
    return propose(
        store,
        asked.model,
        whole(asked.version, "Version"),
        asked.plan(),
        name=asked.name or None,
        since=whole(asked.since, "From version") if asked.since else None,
    )


def _refused(request: Request, store: Store, asked: Asked, exc: UmbelError, *, reason: str = "") -> Response:
    """Return the form again, with what is wrong with it and what it would do, if that can be told."""
    status = status_of_error(exc)
    if status is None:
        raise exc
    proposal, tried = None, None
    if reason or request.method == "POST":
        try:
            proposal = _propose(store, asked)
            tried = dry_run(store, proposal)
        except UmbelError:
            proposal = None
    return _shown(
        request, store, asked, proposal=proposal, tried=tried, problem=str(exc), status=status, reason=reason
    )


def _shown(
    request: Request,
    store: Store,
    asked: Asked,
    *,
    proposal: Proposal | None = None,
    tried: dict[str, Any] | None = None,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    reason: str = "",
) -> Response:
    plan = None if proposal is None else json.dumps(proposal.plan.to_dict(), sort_keys=True)
    return page(
        request,
        "rollout_new.html",
        title="Start a rollout",
        status=status,
        asked=asdict(asked),
        ticked=asked.ticked,
        gates=GATES,
        on_failures=tuple(OnFailure),
        models=holds_seen(store),
        releases=sorted(
            ((each.model, each.version) for each in store.releases.all()),
            key=lambda each: (each[0], -each[1]),
        ),
        proposal=proposal,
        tried=tried,
        plan=plan,
        plan_words="" if proposal is None else plan_words(proposal.plan),
        problem=problem,
        reason=reason,
        shown=SHOWN,
        eligible=store.progress.eligible(),
    )
