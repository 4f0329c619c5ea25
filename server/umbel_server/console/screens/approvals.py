"""Screens "Approvals": versions that wait for people, with the evidence; and what people do with predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.actor import Actor
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import status_of_error
from umbel_server.api.service import Service, ServiceOf
from umbel_server.api.texts import Named
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.range import WindowOf
from umbel_server.console.screens.model_version import Bar, Number, drawn, found_version, told
from umbel_server.console.session import ActorOf, session_of
from umbel_server.monitor.reviews import reviews
from umbel_server.registry import asking
from umbel_server.registry.approval import Request as Asked
from umbel_server.registry.approval import Verdict
from umbel_server.registry.compare import Change, compare, contract_differences
from umbel_server.registry.figures import Metric
from umbel_server.registry.stages import Stage
from umbel_server.registry.versions import package_of
from umbel_server.registry.waiting import refusal, waiting
from umbel_server.store.registry import Version, open_request, requests_of
from umbel_server.store.registry import versions as versions_of

router = APIRouter(route_class=ScreenRoute)

_READ = [may(Permission.REGISTRY_READ)]
_APPROVE = [may(Permission.REGISTRY_APPROVE)]
EVIDENCE = ("figure", "on", "value", "low", "high")
COLUMNS = (
    "model",
    "version",
    "stage",
    "risk",
    "request",
    "requested_by",
    "requested_s",
    "comment",
    "approved_by",
    "missing",
    "ends_s",
)


@dataclass(frozen=True, slots=True)
class Beside:
    """What a version would take the place of, beside it.

    Args:
        version: The version that devices have now.
        metrics: Figures of both.
        sizes: By name, what each says, where they differ.
        contract: What their data contracts say differently.
    """

    version: Version
    metrics: tuple[Change, ...]
    sizes: Mapping[str, tuple[Any, Any]]
    contract: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """What somebody decides on.

    Args:
        version: The version.
        asked: The request that holds.
        approved_by: The accounts whose approvals count.
        missing: How many more it needs.
        lapsed: Why approvals count for nothing any more; None: they count.
        overall: Figures of the evidence, on all data and its parts.
        cohorts: The same by cohort.
        claims: What the package says of its privacy.
        recorded: What the fleet's own records say of the run that trained it; None: no run is on record.
        notes: Other evidence, by section.
        beside: The version that devices have now; None: none is released.
        may_approve: Why who looks may not approve; None: they may.
        may_reject: Why they may not reject; None: they may.
    """

    version: Version
    asked: Asked
    approved_by: tuple[str, ...]
    missing: int
    lapsed: str | None
    overall: tuple[Bar, ...]
    cohorts: tuple[Bar, ...]
    claims: Mapping[str, Any]
    recorded: Mapping[str, Any] | None
    notes: Mapping[str, Mapping[str, Any]]
    beside: Beside | None
    may_approve: str | None
    may_reject: str | None


def case(service: Service, model: str, version: int, actor: Actor) -> Case | None:
    """Return what somebody decides on; None: nobody asks for approval.

    Raises:
        UsageError: There is no such version.
        StorageError: Its package is missing.
    """
    fleet, store = service.fleet, service.store
    evidence, found = asking.evidence_of(fleet, store, model, version)
    with store.database.read() as connection:
        asked = open_request(connection, found)
        out = [
            each
            for each in versions_of(connection, model)
            if each.stage is Stage.RELEASED and each.version != version
        ]
    if asked is None or found.stage not in (Stage.CANDIDATE, Stage.APPROVED):
        return None
    given, left, lapsed = asking.standing(store, found, asked, evidence, asking.rules_of(fleet))
    body = evidence.body
    return Case(
        found,
        asked,
        tuple(sorted(given)),
        left,
        lapsed,
        drawn([_metric(each) for each in body["evaluation"]]),
        drawn([_metric(each) for each in body["cohorts"]]),
        body["privacy"]["claimed"],
        body["privacy"]["run"],
        {
            title: {name: told(name, value) for name, value in body[title].items()}
            for title in ("quantization", "fairness")
            if body[title]
        },
        _beside(service, found, out[-1]) if out else None,
        refusal(found, asked, actor, Verdict.APPROVE),
        refusal(found, asked, actor, Verdict.REJECT),
    )


@router.get("/approvals", dependencies=_READ)
def show_approvals(request: Request, service: ServiceOf, window: WindowOf) -> Response:
    """Show what waits for people, and what people do with predictions that waited for them."""
    rules = asking.rules_of(service.fleet)
    found = waiting(service.store, rules)
    cells = [each.to_json() for each in found]
    file = export(
        request,
        "approvals",
        COLUMNS,
        (
            [each[name] if name != "approved_by" else " ".join(each[name]) for name in COLUMNS]
            for each in cells
        ),
    )
    if file is not None:
        return file
    session = session_of(request)
    reviewed = None
    if Permission.TELEMETRY_READ in session.permissions:
        reviewed = reviews(service.store, since_s=window.since_s, until_s=window.until_s)
    mine = {
        each.version.name: refusal(each.version, each.asked, session.account.actor, Verdict.APPROVE)
        for each in found
    }
    return page(
        request,
        "approvals.html",
        live="approvals",
        waiting=found,
        mine=mine,
        rules=rules,
        reviews=reviewed,
        window=window,
    )


@router.get("/approvals/{name}/{version}", dependencies=_READ)
def show_case(request: Request, service: ServiceOf, actor: ActorOf, name: Named, version: Number) -> Response:
    """Show the evidence for a version, beside the one that devices have."""
    return _case(request, service, actor, name, version)


@router.post("/approvals/{name}/{version}", dependencies=_APPROVE)
def decide(
    request: Request, service: ServiceOf, actor: ActorOf, form: FormOf, name: Named, version: Number
) -> Response:
    """Approve or reject a version by the evidence that was shown."""
    found_version(service, name, version)
    comment = form.text("reason")
    try:
        verdict = Verdict(form.text("verdict", most=16))
    except ValueError:
        raise UsageError("The form says neither approve nor reject: use the buttons of the page.") from None
    try:
        now, left = asking.decide(
            service.fleet,
            service.store,
            name,
            version,
            actor,
            verdict,
            comment=comment,
            number=form.number("number"),
        )
    except (RefusedError, UsageError) as exc:
        status = status_of_error(exc) or HTTPStatus.CONFLICT
        return _case(request, service, actor, name, version, problem=str(exc), status=status, comment=comment)
    if verdict is Verdict.REJECT:
        return done("/approvals", f"{now.name} is rejected: it is a draft again.")
    if left:
        return done(f"/approvals/{name}/{version}", f"You approved {now.name}: it needs {left} more.")
    return done(
        f"/approvals/{name}/{version}", f"You approved {now.name}: it has all it needs, and may be released."
    )


def _case(
    request: Request,
    service: Service,
    actor: Actor,
    name: str,
    version: int,
    *,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    comment: str = "",
) -> Response:
    found = found_version(service, name, version)
    seen = case(service, name, version, actor)
    file = export(request, f"evidence-{name}-{version}", EVIDENCE, _figures(seen) if seen else ())
    if file is not None:
        return file
    with service.store.database.read() as connection:
        earlier = [each for each in requests_of(connection, found) if each.closed]
    return page(
        request,
        "approval.html",
        title=f"Approve {found.name}?" if seen else found.name,
        status=status,
        case=seen,
        version=found,
        earlier=earlier,
        rules=asking.rules_of(service.fleet),
        problem=problem,
        comment=comment,
    )


def _figures(seen: Case) -> Iterator[Sequence[object]]:
    """Yield the figures of the evidence: kind, what it is on, value, and its interval."""
    for bar in (*seen.overall, *seen.cohorts):
        low, high = bar.metric.interval or (None, None)
        yield bar.metric.kind, bar.metric.part, bar.metric.value, low, high


def _beside(service: Service, found: Version, other: Version) -> Beside:
    old, new = (package_of(service.fleet, each) for each in (other, found))
    both = compare((other, old), (found, new))
    return Beside(other, both.metrics, both.facts["sizes"], dict(contract_differences(old, new)))


def _metric(figure: Mapping[str, Any]) -> Metric:
    interval = figure["interval"]
    return Metric(
        figure["kind"], figure["value"], figure["part"], None if interval is None else tuple(interval)
    )
