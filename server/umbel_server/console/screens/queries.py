"""Screen "Private queries": what the fleet was asked, by whom and what for, and what it answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from umbel_proto.analytics.query import KINDS
from umbel_proto.ids import RunId
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing
from umbel_server.api.service import ServiceOf, StoreOf
from umbel_server.api.texts import Named
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.screens.rollouts import ROWS, Place
from umbel_server.console.seen.queries import (
    Line,
    QueryRow,
    QuerySeen,
    answer_chart,
    query_rows,
    query_seen,
)
from umbel_server.console.seen.runs import STATES, WORDS, phases_of
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.queries import QueryRecord
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

COLUMNS = (
    "query",
    "kind",
    "model",
    "version",
    "about",
    "state",
    "epsilon",
    "devices",
    "asked_by",
    "why",
    "created_s",
    "finished_s",
    "reason",
)
FIGURES = ("of", "what", "count", "count_low", "count_high", "value", "low", "high", "noise", "sampling")
_READ = [may(Permission.PRIVACY_READ)]

State = Literal["", "running", "finished", "stopped", "failed"]


@router.get("/queries", dependencies=_READ)
def show_queries(
    request: Request,
    store: StoreOf,
    state: State = "",
    kind: Annotated[str, Query(max_length=20)] = "",
    model: Annotated[str, Query(max_length=63)] = "",
    cursor: Place = 0,
) -> Response:
    """Show every query, the newest first."""
    rows = query_rows(store, state=state, kind=kind, model=model)
    file = export(request, "queries", COLUMNS, map(_cells, rows))
    if file is not None:
        return file
    return page(
        request,
        "queries.html",
        live="queries",
        rows=rows[cursor : cursor + ROWS],
        total=len(rows),
        next=cursor + ROWS if len(rows) > cursor + ROWS else None,
        chosen={"state": state, "kind": kind, "model": model},
        states=STATES,
        kinds=KINDS,
        models=sorted({each.model for each in store.queries.all()}),
        words=WORDS,
        any=bool(rows) or bool(store.queries.all()),
    )


@router.get("/queries/{name}", dependencies=_READ)
def show_query(request: Request, service: ServiceOf, name: Named) -> Response:
    """Show a query, how far it is, and what it answered."""
    seen = _seen(service.fleet, service.store, name)
    file = export(request, f"query-{name}", FIGURES, map(_figures, seen.lines))
    if file is not None:
        return file
    running = service.store.runs.running_attempt(seen.record.id)
    return page(
        request,
        "query.html",
        title=name,
        live="queries",
        seen=seen,
        word=WORDS[seen.record.state],
        phases=phases_of(running),
    )


@router.get("/queries/{name}/answer.json", dependencies=_READ)
def show_chart(service: ServiceOf, name: Named) -> Response:
    """Return a query's answer as a chart."""
    return JSONResponse(answer_chart(_seen(service.fleet, service.store, name)))


def _seen(fleet: FleetDir, store: Store, name: str) -> QuerySeen:
    record = store.queries.get(RunId(name))
    if record is None:
        raise missing(f"query {name}")
    return query_seen(fleet, store, record)


def _cells(row: QueryRow) -> Sequence[Any]:
    record: QueryRecord = row.record
    return (
        record.id,
        record.kind,
        record.model,
        row.version,
        row.about,
        record.state,
        row.epsilon,
        row.devices,
        record.asked_by,
        record.why,
        record.created_s,
        record.finished_s,
        record.reason,
    )


def _figures(line: Line) -> Sequence[Any]:
    count, figure = line.count or {}, line.figure or {}
    return (
        line.of,
        line.what,
        *(count.get(name) for name in ("value", "low", "high")),
        *(figure.get(name) for name in ("value", "low", "high", "noise", "sampling")),
    )
