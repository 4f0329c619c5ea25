"""Screen "Models": each model with who answers for it, and its versions with where each stands."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing, status_of_error
from umbel_server.api.service import Service, ServiceOf
from umbel_server.api.texts import Named
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.seen.counted import answering
from umbel_server.console.seen.latency import LATENCY_DAYS, LEAST, latencies
from umbel_server.console.seen.watched import Made, made
from umbel_server.console.session import ActorOf, session_of
from umbel_server.monitor.report import LATENCY, PREDICTIONS
from umbel_server.registry import asking, overview, versions
from umbel_server.registry.stages import Stage
from umbel_server.store.audit import canonical
from umbel_server.store.registry import RISKS, Line, line_of, lines
from umbel_server.store.registry import versions as versions_of
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

ROWS = 50
DAY_S = 86400.0
MOST_VERSIONS = 4
"""Of so many versions, those that devices use most, latency is told by class."""
COLUMNS = (
    "model",
    "version",
    "stage",
    "stage_s",
    "approvals",
    "bytes",
    "task",
    "run",
    "parent",
    "devices",
    "sha256",
)
_SAID = ("owner", "purpose", "risk", "review_date", "decommission")
_READ = [may(Permission.REGISTRY_READ)]
_WRITE = [may(Permission.REGISTRY_WRITE)]


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model in the list.

    Args:
        line: What is said of it.
        versions: How many versions there are.
        newest: The highest; None: there is none yet.
        in_use: The highest that devices may have; None: none.
        waiting: How many wait for approval.
        devices: On how many devices any version answers.
        overdue: Whether it should have been looked at again by now.
    """

    line: Line
    versions: int
    newest: int | None
    in_use: int | None
    waiting: int
    devices: int
    overdue: bool


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version in the list.

    Args:
        entry: The version.
        devices: On how many devices it answers.
    """

    entry: overview.Entry
    devices: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How long predictions of a version take on devices that run it the same way.

    Args:
        version: The version.
        variant: The form that they run.
        engine: What they run it with.
        p50_us: Half of all predictions take at most so long, microseconds; None: nobody told.
        p95_us: All but a twentieth do.
        predictions: Of how many predictions.
        bytes: The form's graph and weights; None: the registry has no such form.
    """

    version: int
    variant: str
    engine: str
    p50_us: float | None
    p95_us: float | None
    predictions: int
    bytes: int | None


def model_rows(store: Store, answering: Mapping[tuple[str, int], int]) -> tuple[ModelRow, ...]:
    """Return every model, by name.

    Args:
        store: The store.
        answering: On how many devices which version of which model answers.
    """
    with store.database.read() as connection:
        known = lines(connection)
        found = versions_of(connection)
    today = datetime.fromtimestamp(store.clock(), UTC).date()
    rows = []
    for line in known:
        own = [each for each in found if each.model == line.model]
        out = [each.version for each in own if each.stage in (Stage.RELEASED, Stage.DEPRECATED)]
        rows.append(
            ModelRow(
                line,
                len(own),
                max((each.version for each in own), default=None),
                max(out, default=None),
                sum(each.stage is Stage.CANDIDATE for each in own),
                sum(count for (model, _), count in answering.items() if model == line.model),
                bool(line.review_date) and date.fromisoformat(line.review_date) < today,
            )
        )
    return tuple(rows)


def version_rows(
    service: Service,
    answering: Mapping[tuple[str, int], int],
    *,
    model: str | None = None,
    stage: Stage | None = None,
) -> tuple[VersionRow, ...]:
    """Return versions, by model, the newest of each first."""
    entries = overview.overview(service.store, asking.rules_of(service.fleet), model)
    found = [each for each in entries if stage is None or each.version.stage is stage]
    found.sort(key=lambda each: (each.version.model, -each.version.version))
    return tuple(
        VersionRow(each, answering.get((each.version.model, each.version.version), 0)) for each in found
    )


def speeds(store: Store, model: str, *, version: int | None = None) -> tuple[Speed, ...]:
    """Return how fast versions of a model are, as devices told in the last days."""
    now_s = store.clock()
    told = store.cohorts.totals(
        model,
        span="day",
        since_s=now_s - LATENCY_DAYS * DAY_S,
        until_s=now_s + DAY_S,
        version=version,
        wanted=(LATENCY,),
    )
    with store.database.read() as connection:
        forms = {each.version: each.variants for each in versions_of(connection, model)}
    found = []
    for each in told:
        histogram = each.histogram(LATENCY)
        p50, p95 = (None, None) if histogram is None else (histogram.quantile(0.5), histogram.quantile(0.95))
        form = forms.get(each.version, {}).get(each.variant)
        found.append(
            Speed(
                each.version,
                each.variant,
                each.engine,
                p50,
                p95,
                each.counters.get(PREDICTIONS, 0),
                None if form is None else form["bytes"],
            )
        )
    return tuple(found)


def used_most(told: Sequence[Speed]) -> tuple[int, ...]:
    """Return the versions that made the most predictions of late, the newest first."""
    made_of = Counter[int]()
    for each in told:
        made_of[each.version] += each.predictions
    return tuple(sorted((version for version, _ in made_of.most_common(MOST_VERSIONS)), reverse=True))


@router.get("/models", dependencies=_READ)
def show_models(
    request: Request,
    service: ServiceOf,
    stage: Annotated[Stage | None, Query()] = None,
    cursor: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Response:
    """Show every model, and every version."""
    devices = answering(service.store)
    rows = version_rows(service, devices, stage=stage)
    file = export(request, "versions", COLUMNS, _cells(rows))
    if file is not None:
        return file
    return page(
        request,
        "models.html",
        live="models",
        models=model_rows(service.store, devices),
        **_listed(rows, stage, cursor),
    )


@router.get("/models/{name}", dependencies=_READ)
def show_model(
    request: Request,
    service: ServiceOf,
    name: Named,
    stage: Annotated[Stage | None, Query()] = None,
    cursor: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Response:
    """Show a model: who answers for it, what it is for, and its versions."""
    rows = version_rows(service, answering(service.store), model=name, stage=stage)
    file = export(request, f"versions-{name}", COLUMNS, _cells(rows))
    if file is not None:
        return file
    return _model(request, service, _line(service.store, name), rows, stage=stage, cursor=cursor)


@router.post("/models/{name}", dependencies=_WRITE)
def describe_model(
    request: Request, service: ServiceOf, actor: ActorOf, name: Named, form: FormOf
) -> Response:
    """Say who answers for a model, what it is for and how risky that is."""
    before, seen = _line(service.store, name), form.text("seen", most=64)
    said = Line(before.model, **{field: form.text(field, most=4000) for field in _SAID})

    def check(now: Line | None) -> None:
        if now is None or mark_of(now) != seen:
            raise RefusedError(
                f"Somebody else has just said something of {name}, which is shown now: yours was not kept."
            )

    try:
        versions.describe(service.store, said, actor, reason=form.text("reason"), check=check)
    except (UsageError, RefusedError) as exc:
        # What was typed stays in the form.
        status = status_of_error(exc) or HTTPStatus.CONFLICT
        rows = version_rows(service, answering(service.store), model=name)
        return _model(
            request, service, _line(service.store, name), rows, said=said, problem=str(exc), status=status
        )
    return done(f"/models/{name}", f"What you said of {name} is kept.")


def mark_of(line: Line) -> str:
    """Return what tells a line as it is from the same line changed."""
    return hashlib.sha256(canonical([getattr(line, field) for field in _SAID]).encode()).hexdigest()


def _model(
    request: Request,
    service: Service,
    line: Line,
    rows: Sequence[VersionRow],
    *,
    stage: Stage | None = None,
    cursor: int = 0,
    said: Line | None = None,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    telemetry = Permission.TELEMETRY_READ in session_of(request).permissions
    told = speeds(service.store, line.model) if telemetry else None
    return page(
        request,
        "model.html",
        title=line.model,
        status=status,
        line=line,
        said=said or line,
        mark=mark_of(line),
        problem=problem,
        risks=RISKS,
        **_listed(rows, stage, cursor),
        speeds=told,
        by_class=_by_class(service, line.model, used_most(told)) if told else Made(None),
        versions_told=len({each.version for each in told or ()}),
        latency_days=LATENCY_DAYS,
        least=LEAST,
    )


def _by_class(service: Service, model: str, of: tuple[int, ...]) -> Made:
    return made(service.fleet, service.store, ("latency by class", model, of), latencies, model, of)


def _listed(rows: Sequence[VersionRow], stage: Stage | None, cursor: int) -> dict[str, Any]:
    return {
        "rows": rows[cursor : cursor + ROWS],
        "total": len(rows),
        "next": cursor + ROWS if len(rows) > cursor + ROWS else None,
        "stage": stage,
        "stages": tuple(Stage),
    }


def _cells(rows: Sequence[VersionRow]) -> Iterator[Sequence[object]]:
    for row in rows:
        each = row.entry.version
        yield (
            each.model,
            each.version,
            each.stage,
            each.stage_s,
            row.entry.approvals,
            each.size,
            each.task,
            each.run,
            each.parent,
            row.devices,
            each.sha256.hex(),
        )


def _line(store: Store, name: str) -> Line:
    with store.database.read() as connection:
        found = line_of(connection, name)
    if found is None:
        raise missing(f"model {name} in the registry")
    return found
