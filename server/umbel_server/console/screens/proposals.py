"""The tab of proposed runs: what alerts propose to train anew, and somebody's word on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing
from umbel_server.api.service import ServiceOf, StoreOf
from umbel_server.console import confirm
from umbel_server.console.confirm import Deed
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.session import ActorOf
from umbel_server.monitor.alerts.act import require_possible
from umbel_server.store.proposed_runs import OPEN, ProposedRun
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

HERE = "/runs/-/proposals"
COLUMNS = (
    "number",
    "rule",
    "alert",
    "model",
    "state",
    "why",
    "made_s",
    "decided_s",
    "decided_by",
    "said",
    "run",
)
_WRITE = [may(Permission.RUNS_WRITE)]
_Number = Annotated[int, Path(ge=1, le=1 << 62)]

What = Literal["accept", "decline"]


@router.get(HERE, dependencies=[may(Permission.RUNS_READ)])
def show_proposals(request: Request, store: StoreOf) -> Response:
    """Show the runs that alerts propose, those that wait first."""
    found = store.proposed_runs.all()
    file = export(request, "proposed-runs", COLUMNS, map(_cells, found))
    if file is not None:
        return file
    rows = sorted(found, key=lambda each: each.state != OPEN)
    return page(
        request,
        "proposals.html",
        title="Federated runs",
        live="runs",
        tab="proposals",
        rows=[(each, json.dumps(dict(each.plan), indent=2, sort_keys=True)) for each in rows[:200]],
        paths=request.app.state.paths,
    )


@router.get(HERE + "/{number}/{what}", dependencies=_WRITE)
def ask_proposal(request: Request, store: StoreOf, number: _Number, what: What) -> Response:
    """Ask before a proposed run is accepted or declined."""
    return confirm.ask(request, _deed(_found(store, number), what))


@router.post(HERE + "/{number}/{what}", dependencies=_WRITE)
def decide_proposal(
    request: Request, service: ServiceOf, actor: ActorOf, number: _Number, what: What, form: FormOf
) -> Response:
    """Accept a proposed run, or let it be."""
    store = service.store
    proposed = _found(store, number)
    deed = _deed(proposed, what)
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    reason = form.text(confirm.REASON)
    try:
        if what == "accept":
            require_possible(service.fleet, store, dict(proposed.plan))
            after = store.proposed_runs.accept(number, actor=actor, reason=reason)
            told = f"Run {after.run} begins as soon as umbel serve runs looks."
        else:
            store.proposed_runs.decline(number, actor=actor, reason=reason)
            told = f"Proposed run {number} is declined."
    except (RefusedError, UsageError) as exc:
        return confirm.conflict(request, deed, form, f"Nothing was done. {exc}")
    return done(HERE, told)


def _found(store: Store, number: int) -> ProposedRun:
    try:
        return store.proposed_runs.get(number)
    except UsageError:
        raise missing(f"proposed run {number}") from None


def _deed(proposed: ProposedRun, what: str) -> Deed:
    if what == "accept":
        says = "It is checked against the fleet's policy and budget, and begins as soon as umbel serve runs looks."
        title = f"Train {proposed.model} anew"
    else:
        says = "Nothing is trained. The rule may propose another run later."
        title = f"Decline to train {proposed.model} anew"
    devices = proposed.plan.get("devices")
    return Deed(
        title=title,
        button="Accept" if what == "accept" else "Decline",
        name=str(proposed.model) if what == "accept" else "",
        devices=devices if what == "accept" and isinstance(devices, int) else None,
        says=(f"Rule {proposed.rule} proposes it: {proposed.why}", says),
        back=HERE,
    )


def _cells(each: ProposedRun) -> Sequence[Any]:
    return (
        each.id,
        each.rule,
        each.fingerprint,
        each.model,
        each.state,
        each.why,
        each.made_s,
        each.decided_s,
        each.decided_by,
        each.said,
        each.run,
    )
