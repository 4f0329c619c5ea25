"""Screens "Reviews": predictions that wait for a person on devices, answered from here."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from umbel_proto.errors import RefusedError, UnavailableError, UsageError
from umbel_proto.reviews import MAX_WORDS
from umbel_server.access.permissions import Permission
from umbel_server.access.reads import Read, on_record
from umbel_server.api.problems import missing, status_of_error
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.session import ActorOf, session_of
from umbel_server.reviews.answer import answer_by_authority, labels_of
from umbel_server.reviews.shown import agreement_json, review_json
from umbel_server.store.reviews import Review

router = APIRouter(route_class=ScreenRoute)

HERE = "/reviews"
ROWS = 50
COLUMNS = (
    "review", "device", "model", "version", "label", "name", "percent", "predicted_s", "unsure", "flagged", "announced_s",
    "expires_s", "state", "answer", "answer_name", "answered_s", "answered_by", "reason", "ended_s",
)  # fmt: skip
EXPORTED = 10_000
WORDS = {
    "open": ("waits", "warn"),
    "answered": ("on its way", "info"),
    "applied": ("done on the device", "ok"),
    "here": ("decided on the device", "info"),
    "gone": ("gone from the device", "muted"),
    "withdrawn": ("withdrawn", "gone"),
    "refused": ("refused by the device", "bad"),
    "late": ("too late", "muted"),
}
_READ = [may(Permission.REVIEWS_READ)]
_Number = Annotated[int, Path(ge=1, le=1 << 62)]
_Of = Annotated[str, Query(max_length=63)]


@router.get(HERE, dependencies=_READ)
def show_reviews(
    request: Request,
    service: ServiceOf,
    actor: ActorOf,
    show: Literal["waiting", "ended"] = "waiting",
    model: _Of = "",
    device: _Of = "",
    cursor: Annotated[int | None, Query(ge=1, le=1 << 62)] = None,
) -> Response:
    """Show what waits for a person, and how often answers were what the model had said."""
    reviews, waiting = service.store.reviews, show == "waiting"
    of: dict[str, Any] = {"waiting": waiting, "model": model or None, "device": device or None}
    if "format" in request.query_params:
        rows = [_shown(service, each) for each in reviews.page(**of, limit=EXPORTED)]
        file = export(request, "reviews", COLUMNS, ([each[name] for name in COLUMNS] for each in rows))
        if file is not None:
            on_record(service.store, actor, Read.REVIEWS, fleet=service.fleet.name)
            return file
    found = reviews.page(**of, limit=ROWS + 1, after=cursor)
    agreement = [agreement_json(each) for each in reviews.agreement()]
    return page(
        request,
        "reviews.html",
        live="reviews",
        rows=[_shown(service, each) for each in found[:ROWS]],
        next=found[ROWS - 1].id if len(found) > ROWS else None,
        total=reviews.count(**of),
        show=show,
        chosen={"model": model, "device": device},
        models=sorted({each["model"] for each in agreement}),
        agreement=agreement,
        asks=service.fleet.policy().announce_reviews,
    )


@router.get(HERE + "/{number}", dependencies=_READ)
def show_review(request: Request, service: ServiceOf, number: _Number) -> Response:
    """Show a review, and ask for an answer where it waits."""
    return _page(request, service, _found(service, number))


@router.post(HERE + "/{number}", dependencies=[may(Permission.REVIEWS_WRITE)])
def answer_review(request: Request, service: ServiceOf, form: FormOf, number: _Number) -> Response:
    """Say what holds."""
    found = _found(service, number)
    label, reason = form.number("label"), form.text("reason")
    if label is None:
        problem = "Nothing was done: choose the label that holds."
        return _page(request, service, found, problem=problem, reason=reason)
    try:
        secret = session_of(request).secret
        after = answer_by_authority(
            service.fleet, service.store, number, label, reason=reason, session=secret
        )
    except (RefusedError, UnavailableError, UsageError) as exc:
        status = status_of_error(exc) or HTTPStatus.CONFLICT
        told = _found(service, number)
        return _page(
            request,
            service,
            told,
            problem=f"Nothing was done. {exc}",
            label=label,
            reason=reason,
            status=status,
        )
    name = _shown(service, after)["answer_name"]
    return done(HERE, f"Review {number} is answered: {name}. {after.device} is told when it next asks.")


def _page(
    request: Request,
    service: Service,
    found: Review,
    *,
    problem: str = "",
    label: int | None = None,
    reason: str = "",
    status: HTTPStatus | None = None,
) -> Response:
    labels: Sequence[str] = labels_of(service.fleet, service.store, found.model, found.version)
    return page(
        request,
        "review.html",
        title=f"Review {found.id}",
        status=status or (HTTPStatus.UNPROCESSABLE_ENTITY if problem else HTTPStatus.OK),
        live="reviews",
        each=_shown(service, found),
        labels=list(enumerate(labels)),
        most=MAX_WORDS,
        problem=problem,
        label=label,
        reason=reason,
    )


def _found(service: Service, number: int) -> Review:
    try:
        return service.store.reviews.get(number)
    except UsageError:
        raise missing(f"review {number}") from None


def _shown(service: Service, each: Review) -> dict[str, Any]:
    shown = review_json(service.fleet, service.store, each)
    late = each.state == "open" and not shown["waits"]
    return {**shown, "word": WORDS["late" if late else each.state]}
