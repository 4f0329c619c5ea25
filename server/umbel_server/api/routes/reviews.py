"""Reviews: predictions that devices announced as waiting for a person, and people's answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from umbel_proto.errors import UsageError
from umbel_proto.reviews import MAX_WORDS
from umbel_server.access.permissions import Permission
from umbel_server.access.reads import Read, on_record
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after_number, page_of
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, ServiceOf, StoreOf, TokenOf
from umbel_server.api.texts import NAME, Asked, Words
from umbel_server.reviews.answer import answer_by_authority, labels_of
from umbel_server.reviews.shown import agreement_json, review_json
from umbel_server.store.reviews import Review
from umbel_server.store.store import Store

router = APIRouter(prefix="/api/v1/reviews", tags=["reviews"], route_class=GuardedRoute)
agreement = APIRouter(prefix="/api/v1/review-agreement", tags=["reviews"], route_class=GuardedRoute)

_Number = Annotated[int, Path(ge=1, le=1 << 62, description="Its number.")]
_Of = Annotated[str | None, Query(pattern=NAME)]


class ReviewLine(BaseModel):
    """A prediction that waits for a person on a device, or did. Times are Unix seconds."""

    review: int = Field(description="Its number.")
    device: str
    model: str
    version: int
    label: int | None = Field(description="The label that it gave; null: the device withdrew it.")
    name: str | None = Field(description="Its name.")
    percent: int | None = Field(description="How sure it was, 0 to 100, rounded down.")
    predicted_s: float | None = Field(description="Device clock, rounded down to a minute.")
    unsure: bool = Field(description="It was less sure than it should be.")
    flagged: bool = Field(description="The data contract flags a value of its input.")
    announced_s: float
    expires_s: float = Field(description="Until when it may be answered.")
    state: str = Field(
        description="open; answered: on its way; applied: the device did it; here: somebody decided on the device; gone: "
        "the device has it no more; withdrawn; refused: the device cannot take the answer."
    )
    waits: bool = Field(description="Whether it may be answered now.")
    answer: int | None = Field(description="The label that holds; null: nobody answered.")
    answer_name: str | None
    answered_s: float | None
    answered_by: str | None
    reason: str | None
    ended_s: float | None = Field(description="When the device said that it waits no more.")


class ReviewShown(ReviewLine):
    """A review, and what it may be answered with."""

    labels: list[str] = Field(description="Names of the model's labels, in order.")


class NewAnswer(Asked):
    """What holds."""

    label: Annotated[Words, Field(min_length=1, max_length=200, description="By name or number.")]
    reason: Annotated[
        Words, Field(min_length=1, max_length=MAX_WORDS, description="Why: for the device and the audit log.")
    ]


class AgreementShown(BaseModel):
    """How often answers were what a version had said."""

    model: str
    version: int
    waiting: int = Field(description="How many wait.")
    answered: int
    agreed: int
    rate: float | None = Field(description="Null: none was answered.")
    low: float | None = Field(description="Where the interval of 95 % begins.")
    high: float | None = Field(description="Where it ends.")


class Agreements(BaseModel):
    """Each version that a review is of."""

    items: list[AgreementShown]


@router.get("", dependencies=[may(Permission.REVIEWS_READ)])
def list_reviews(
    service: ServiceOf,
    actor: ActorOf,
    waiting: Annotated[bool | None, Query(description="Only those that wait, or only the others.")] = None,
    model: _Of = None,
    device: _Of = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[ReviewLine]:
    """List what devices announced, those that came last first. It is on record."""
    on_record(service.store, actor, Read.REVIEWS, fleet=service.fleet.name, paged=True)
    found = service.store.reviews.page(
        waiting=waiting, model=model, device=device, limit=limit + 1, after=after_number(cursor)
    )
    return page_of(
        found,
        limit,
        key=lambda each: str(each.id),
        show=lambda each: ReviewLine(**review_json(service.fleet, service.store, each)),
    )


@router.get("/{number}", dependencies=[may(Permission.REVIEWS_READ)])
def get_review(service: ServiceOf, number: _Number) -> ReviewShown:
    """Show a review, and the labels that it may be answered with."""
    return _shown(service, _found(service.store, number))


@router.post("/{number}/answer", dependencies=[may(Permission.REVIEWS_WRITE)])
def answer_review(service: ServiceOf, token: TokenOf, number: _Number, new: NewAnswer) -> ReviewShown:
    """Say what holds. The device is told when it next asks for releases; who comes second is told who was first."""
    _found(service.store, number)
    done = answer_by_authority(
        service.fleet, service.store, number, new.label, reason=new.reason, token=token
    )
    return _shown(service, done)


@agreement.get("", dependencies=[may(Permission.REVIEWS_READ)])
def list_agreement(store: StoreOf) -> Agreements:
    """Show for each version how many wait, and how often answers were what it had said."""
    return Agreements(items=[AgreementShown(**agreement_json(each)) for each in store.reviews.agreement()])


def _shown(service: ServiceOf, review: Review) -> ReviewShown:
    labels = labels_of(service.fleet, service.store, review.model, review.version)
    return ReviewShown(**review_json(service.fleet, service.store, review), labels=list(labels))


def _found(store: Store, number: int) -> Review:
    try:
        return store.reviews.get(number)
    except UsageError:
        raise missing(f"review {number}") from None
