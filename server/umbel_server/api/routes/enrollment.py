"""Letting devices in: invitations, and who waits for approval."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.service import ActorOf, ServiceOf, StoreOf
from umbel_server.api.texts import Asked, Name, Words
from umbel_server.fleet.invite import invite
from umbel_server.store.applications import Pending
from umbel_server.store.tokens import MAX_USES

router = APIRouter(prefix="/api/v1/enrollment", tags=["enrollment"], route_class=GuardedRoute)
Id = Annotated[str, Path(max_length=63, description="What waits, as the list calls it.")]


class Invitation(Asked):
    """Whom a token is to let in."""

    device: Annotated[Name | None, Field(description="The name its device gets; null: any.")] = None
    uses: Annotated[int, Field(ge=1, le=MAX_USES, description="How many devices it lets in.")] = 1
    hours: Annotated[float, Field(gt=0, le=8760)] = 24.0
    approval: Annotated[bool, Field(description="An operator approves each of its devices.")] = False
    replaces: Annotated[bool, Field(description="Its device replaces the one that has the name.")] = False


class Invited(BaseModel):
    """A token for devices. It is shown once."""

    token: str
    expires_s: float = Field(description="Unix seconds.")


class PendingShown(BaseModel):
    """A device that waits for approval."""

    id: str
    fingerprint: str = Field(description="Of its identity key: what the device shows too.")
    name: str = Field(description="The name it would like; empty: any.")
    facts: dict[str, str | int] = Field(description="What it says it is.")
    asked_s: float = Field(description="Unix seconds.")
    expires_s: float = Field(description="Unix seconds.")


class Waiting(BaseModel):
    """Who waits for approval, the longest first."""

    items: list[PendingShown]


class Approval(Asked):
    """Whom to let in: the fingerprint is what the device itself shows."""

    fingerprint: Annotated[str, Field(max_length=200)]
    name: Annotated[Name | None, Field(description="Instead of what it asked for.")] = None
    reason: Words = ""


class Rejection(Asked):
    """Why a device is turned away; it is told."""

    reason: Annotated[Words, Field(min_length=1)]


@router.post("/tokens", status_code=201, dependencies=[may(Permission.ENROLLMENT_WRITE)])
def create_enrollment_token(service: ServiceOf, actor: ActorOf, asked: Invitation) -> Invited:
    """Make a token that lets devices in."""
    token = invite(
        service.fleet,
        service.store,
        device=asked.device,
        uses=asked.uses,
        valid_s=asked.hours * 3600,
        approval=asked.approval,
        replaces=asked.replaces,
        actor=actor,
    )
    return Invited(token=token.to_text(), expires_s=service.store.clock() + asked.hours * 3600)


@router.get("/pending", dependencies=[may(Permission.ENROLLMENT_READ)])
def list_pending(store: StoreOf) -> Waiting:
    """List who waits for approval."""
    return Waiting(items=[_show(each) for each in store.applications.pending()])


@router.post("/pending/{id}/approve", dependencies=[may(Permission.ENROLLMENT_WRITE)])
def approve_device(store: StoreOf, actor: ActorOf, id: Id, asked: Approval) -> PendingShown:  # noqa: A002
    """Let a device in that waits."""
    return _show(
        store.applications.approve(
            id, fingerprint=asked.fingerprint, actor=actor, reason=asked.reason, name=asked.name or ""
        )
    )


@router.post("/pending/{id}/reject", dependencies=[may(Permission.ENROLLMENT_WRITE)])
def reject_device(store: StoreOf, actor: ActorOf, id: Id, why: Rejection) -> PendingShown:  # noqa: A002
    """Turn a device away that waits."""
    return _show(store.applications.reject(id, actor=actor, reason=why.reason))


def _show(waiting: Pending) -> PendingShown:
    return PendingShown(
        id=waiting.id,
        fingerprint=waiting.fingerprint,
        name=waiting.name,
        facts=dict(waiting.facts),
        asked_s=waiting.asked_s,
        expires_s=waiting.expires_s,
    )
