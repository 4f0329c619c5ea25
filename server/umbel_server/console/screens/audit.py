"""Screen "Audit": who did what to what and why; and whether the record of it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator

from umbel_proto.errors import UsageError, VerificationError
from umbel_server.access import chain
from umbel_server.access.permissions import Permission
from umbel_server.access.reads import Read, on_record
from umbel_server.access.shown import time_text
from umbel_server.api.problems import missing
from umbel_server.api.service import Service, ServiceOf
from umbel_server.api.texts import keepable
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.range import Window, window_of
from umbel_server.console.session import ActorOf
from umbel_server.store.audit import Entry, Sought

router = APIRouter(route_class=ScreenRoute)

ROWS = 100
USUAL = "30d"
"""What is shown unless the URL says otherwise: the log of a calm fleet is thin."""
MAX_KEPT = 200_000
"""Characters of checkpoints that are taken from a form: about 600 of them."""
COLUMNS = ("sequence", "time", "actor", "action", "object", "reason", "before", "after", "hash")
Word = Annotated[str, Query(max_length=255), AfterValidator(keepable)]
_READ = [may(Permission.AUDIT_READ)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the log is what was written.

    Args:
        whole: Whether it is.
        entries: How many there are; 0 where it is not.
        head: The last entry's hash, hexadecimal.
        detail: What is wrong; empty if nothing is.
        against: How many checkpoints that were kept elsewhere it was held against.
    """

    whole: bool
    entries: int
    head: str
    detail: str
    against: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What an entry changed.

    Args:
        name: Which of the object's facts.
        before: How it was; None: it was not.
        after: How it is since; None: it is no more.
    """

    name: str
    before: str | None
    after: str | None

    @property
    def changed(self) -> bool:
        """Whether it is another."""
        return self.before != self.after


def verified(service: Service, others: Sequence[chain.Checkpoint] = ()) -> Verdict:
    """Return whether the log is what was written.

    Args:
        service: The fleet and its store.
        others: Checkpoints that were kept elsewhere.
    """
    try:
        sequence, head = chain.verify(service.fleet, service.store, others)
    except VerificationError as exc:
        return Verdict(False, 0, "", str(exc), len(others))
    return Verdict(True, sequence, head.hex(), "", len(others))


def differences(entry: Entry) -> tuple[Difference, ...]:
    """Return what an entry changed, fact by fact, in the order of their names."""
    before, after = (_facts(json.loads(each)) for each in (entry.before, entry.after))
    return tuple(Difference(name, before.get(name), after.get(name)) for name in sorted({*before, *after}))


def link_of(named: str) -> str:
    """Return the screen of an object as the log calls it; empty: it has none."""
    kind, _, name = named.partition(":")
    match kind:
        case "version":
            model, _, number = name.rpartition("@")
            return f"/models/{model}/{number}" if model and number.isdecimal() else ""
        case "model":
            return f"/models/{name}"
        case "device":
            return f"/devices/{name}"
        case "rollout" | "run" | "experiment":
            return f"/{kind}s/{name}"
        case "user":
            return "/settings/users"
        case "token":
            return "/settings/tokens"
        case "policy":
            return "/settings"
        case _:
            return ""


async def _window(
    request: Request,
    name: Annotated[str, Query(alias="range", max_length=16)] = USUAL,
    begin: Annotated[str, Query(alias="from", max_length=40)] = "",
    end: Annotated[str, Query(alias="to", max_length=40)] = "",
) -> Window:
    return await window_of(request, name, begin, end)


@router.get("/audit", dependencies=_READ)
def show_audit(
    request: Request,
    service: ServiceOf,
    asking: ActorOf,
    window: Annotated[Window, Depends(_window)],
    actor: Word = "",
    action: Word = "",
    object: Word = "",  # noqa: A002  # The word that people who read audit logs know.
    cursor: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """Show what was done, the newest first."""
    audit = service.store.audit
    # What is done at this very moment is in it: only an end that somebody chose is one.
    until_s = window.until_s if request.query_params.get("to") else None
    sought = Sought(actor or None, action or None, object or None, window.since_s, until_s)
    file = export(request, f"audit-{service.fleet.name}", COLUMNS, _cells(audit.all(sought)))
    if file is not None:
        on_record(service.store, asking, Read.AUDIT, fleet=service.fleet.name)
        return file
    found = audit.latest(sought, limit=ROWS + 1, before=cursor)
    newest = audit.newest()
    return page(
        request,
        "audit.html",
        window=window,
        live="audit",
        rows=found[:ROWS],
        next=found[ROWS - 1].sequence if len(found) > ROWS else None,
        sought={"actor": actor, "action": action, "object": object},
        total=0 if newest is None else newest.sequence,
        link_of=link_of,
        actors=sorted({each.actor for each in found}),
        actions=sorted({each.action for each in found}),
        objects=sorted({each.object for each in found}),
    )


@router.get("/audit/verify", dependencies=_READ)
def show_verify(request: Request, service: ServiceOf) -> Response:
    """Show how the record is checked, and the checkpoint to keep elsewhere."""
    return _verify_page(request, service)


@router.post("/audit/verify", dependencies=_READ)
def verify(request: Request, service: ServiceOf, form: FormOf) -> Response:
    """Check that no entry was altered, taken out, put in or moved, and that none is missing at the end."""
    kept = form.text("checkpoints", most=MAX_KEPT)
    try:
        others = chain.read_checkpoints(kept) if kept else []
    except (UsageError, VerificationError) as exc:
        return _verify_page(request, service, kept=kept, problem=str(exc))
    return _verify_page(request, service, kept=kept, verdict=verified(service, others))


@router.get("/audit/{sequence}", dependencies=_READ)
def show_entry(
    request: Request, service: ServiceOf, sequence: Annotated[int, Path(ge=1, lt=1 << 62)]
) -> Response:
    """Show one entry: what it changed, and how it hangs on the one before."""
    entry = service.store.audit.get(sequence)
    if entry is None:
        raise missing(f"entry {sequence} of the audit log")
    newest = service.store.audit.newest()
    return page(
        request,
        "audit_entry.html",
        title=f"Entry {sequence}",
        entry=entry,
        changes=differences(entry),
        link=link_of(entry.object),
        last=newest is not None and newest.sequence == sequence,
    )


def _verify_page(
    request: Request, service: Service, *, kept: str = "", problem: str = "", verdict: Verdict | None = None
) -> Response:
    signed, unsigned = None, ""
    try:
        signed = chain.keep_checkpoint(service.fleet, service.store)
    except VerificationError as exc:
        unsigned = str(exc)
    return page(
        request,
        "audit_verify.html",
        title="Verify the audit log",
        kept=kept,
        problem=problem,
        verdict=verdict,
        signed=signed,
        unsigned=unsigned,
    )


def _cells(entries: Iterable[Entry]) -> Iterator[Sequence[object]]:
    for each in entries:
        yield (
            each.sequence,
            time_text(each.time_ms),
            each.actor,
            each.action,
            each.object,
            each.reason,
            each.before,
            each.after,
            each.hash.hex(),
        )


def _facts(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        return {"": _told(value)}
    return {name: _told(each) for name, each in value.items()}


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
