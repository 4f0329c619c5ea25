"""The audit log: who did what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, Field

from umbel_proto.errors import VerificationError
from umbel_server.access import chain
from umbel_server.access.permissions import Permission
from umbel_server.access.reads import Read, on_record
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after_number, page_of
from umbel_server.api.service import ActorOf, Service, ServiceOf
from umbel_server.api.texts import Asked, keepable
from umbel_server.store.audit import Entry, Sought

router = APIRouter(prefix="/api/v1/audit", tags=["audit"], route_class=GuardedRoute)
Word = Annotated[str | None, Query(max_length=255), AfterValidator(lambda text: text and keepable(text))]


class EntryShown(BaseModel):
    """An entry of the audit log."""

    sequence: int
    time_ms: int = Field(description="Unix milliseconds.")
    actor: str
    action: str
    object: str
    reason: str
    before: Any = Field(description="How it was; null: it was not.")
    after: Any = Field(description="How it is since; null: it is no more.")
    hash: str = Field(description="Hexadecimal.")


class Verdict(BaseModel):
    """Whether the log is what was written."""

    whole: bool
    entries: int | None = Field(description="How many there are; null: it is not whole.")
    head: str | None = Field(description="The last entry's hash, hexadecimal.")
    detail: str = Field(description="What is wrong; empty if nothing is.")


class Kept(Asked):
    """What was kept elsewhere."""

    checkpoints: Annotated[
        list[Annotated[str, Field(max_length=2000)]],
        Field(min_length=1, max_length=1000, description="Lines of `umbel audit checkpoint`."),
    ]


class Signed(BaseModel):
    """How far the log goes."""

    line: str | None = Field(description="A checkpoint; null: nothing was ever done.")


@router.get("", dependencies=[may(Permission.AUDIT_READ)])
def list_audit(
    service: ServiceOf,
    asking: ActorOf,
    actor: Word = None,
    action: Word = None,
    object: Word = None,  # noqa: A002  # The word that people who read audit logs know.
    since_s: Annotated[float | None, Query(ge=0, le=4e9, description="Unix seconds.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    oldest_first: Annotated[bool, Query(description="The other way round.")] = False,
) -> Page[EntryShown]:
    """List what was done, the newest first. `action`: a whole one, or its first word. The other way round it is an export, and on record."""
    store = service.store
    if oldest_first:
        on_record(store, asking, Read.AUDIT, fleet=service.fleet.name, paged=True)
    sought, last = Sought(actor, action, object, since_s), after_number(cursor)
    found: Sequence[Entry]
    if oldest_first:
        found = list(islice(store.audit.all(sought, after=last), limit + 1))
    else:
        found = store.audit.latest(sought, limit=limit + 1, before=last)
    return page_of(found, limit, key=lambda entry: str(entry.sequence), show=_show)


@router.get("/verify", dependencies=[may(Permission.AUDIT_READ)])
def verify_audit(service: ServiceOf) -> Verdict:
    """Check that no entry was altered, taken out, put in or moved, and that none is missing at the end."""
    return _verify(service, ())


@router.post("/verify", dependencies=[may(Permission.AUDIT_READ)])
def verify_audit_against(service: ServiceOf, kept: Kept) -> Verdict:
    """Check the same, also against checkpoints that were kept elsewhere."""
    return _verify(service, tuple(map(chain.Checkpoint.from_json, kept.checkpoints)))


@router.post("/checkpoint", dependencies=[may(Permission.AUDIT_READ)])
def sign_audit(service: ServiceOf) -> Signed:
    """Sign how far the log goes, to keep it where nobody can reach who reaches the service."""
    made = chain.keep_checkpoint(service.fleet, service.store)
    return Signed(line=None if made is None else made.to_json())


def _verify(service: Service, others: Sequence[chain.Checkpoint]) -> Verdict:
    try:
        sequence, head = chain.verify(service.fleet, service.store, others)
    except VerificationError as exc:
        return Verdict(whole=False, entries=None, head=None, detail=str(exc))
    return Verdict(whole=True, entries=sequence, head=head.hex(), detail="")


def _show(entry: Entry) -> EntryShown:
    return EntryShown(
        sequence=entry.sequence,
        time_ms=entry.time_ms,
        actor=entry.actor,
        action=entry.action,
        object=entry.object,
        reason=entry.reason,
        before=json.loads(entry.before),
        after=json.loads(entry.after),
        hash=entry.hash.hex(),
    )
