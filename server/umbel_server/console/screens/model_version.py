"""Screen "Model version": its card, how good it is and for whom, what it costs to fetch, where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing
from umbel_server.api.service import Service, ServiceOf
from umbel_server.api.texts import Named
from umbel_server.console import words
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.screens.models import Speed, speeds
from umbel_server.console.seen.latency import LATENCY_DAYS
from umbel_server.console.session import session_of
from umbel_server.registry import asking, overview
from umbel_server.registry.card import Subject, complete, governance, to_markdown
from umbel_server.registry.compare import compare
from umbel_server.registry.datasheet import to_markdown as datasheet
from umbel_server.registry.downloads import Download, downloads
from umbel_server.registry.figures import COHORT, Metric, card_of, figures_of
from umbel_server.registry.lineage import Lineage, lineage
from umbel_server.registry.stages import Event, Stage, possible
from umbel_server.registry.versions import package_of
from umbel_server.store.registry import Version, version_of
from umbel_server.store.registry import versions as versions_of

router = APIRouter(route_class=ScreenRoute)

Number = Annotated[int, Path(ge=1, lt=1 << 31, description="The version.")]
_READ = [may(Permission.REGISTRY_READ)]
COLUMNS = ("kind", "part", "value", "low", "high")
_BY_HAND = (Event.REQUEST, Event.DEPRECATE, Event.REINSTATE, Event.RETIRE)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure as it is drawn: on a scale of its kind, in 0..1.

    Args:
        metric: The figure.
        value: Where it is.
        low: Where its interval begins; where it is itself, if nobody knows the interval.
        high: Where it ends.
        known: Whether there is an interval.
    """

    metric: Metric
    value: float
    low: float
    high: float
    known: bool


@dataclass(frozen=True, slots=True)
class Card:
    """A model card as a screen shows it, from its CycloneDX document.

    Args:
        purpose: What the model is for, in its maker's words.
        limits: What it cannot do.
        data: What is said of the data, line by line.
        inputs: What it takes.
        outputs: What it answers with.
        governance: What the registry knows, names and texts.
        overall: Figures on all of the data.
        parts: Figures on parts of it, as of each label.
        cohorts: Figures by cohort.
        sections: Other figures, by section and name.
    """

    purpose: str
    limits: tuple[str, ...]
    data: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    governance: tuple[tuple[str, str], ...]
    overall: tuple[Bar, ...]
    parts: tuple[Bar, ...]
    cohorts: tuple[Bar, ...]
    sections: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Shown:
    """A version, as the screen shows it.

    Args:
        detail: The version with all that was asked and said.
        card: Its card.
        way: Where it comes from and went.
        fetched: What devices fetch to get it.
        speeds: How fast it is on devices; None: this is not for whoever looks.
        others: The other versions of the model, the newest first.
    """

    detail: overview.Detail
    card: Card
    way: Lineage
    fetched: tuple[Download, ...]
    speeds: tuple[Speed, ...] | None
    others: tuple[Version, ...]


def shown(service: Service, model: str, version: int, *, telemetry: bool) -> Shown:
    """Return a version with all that the screen shows of it.

    Args:
        service: The fleet and its store.
        model: The model.
        version: The version.
        telemetry: Whether who looks may see what devices report.

    Raises:
        UsageError: There is none.
        StorageError: Its package is missing.
        PackageError: The package's own card is none.
    """
    detail = overview.detail(service.fleet, service.store, model, version)
    with service.store.database.read() as connection:
        others = [each for each in versions_of(connection, model) if each.version != version]
    return Shown(
        detail,
        card_shown(detail.subject),
        lineage(service.store, model, version),
        downloads(service.store, detail.subject.version),
        speeds(service.store, model, version=version) if telemetry else None,
        tuple(reversed(others)),
    )


def card_shown(subject: Subject) -> Card:
    """Return a version's card as the screen shows it.

    Raises:
        PackageError: The package's own card is none.
    """
    figures, document = figures_of(subject.package), card_of(subject.package)
    said = {} if document is None else document["metadata"]["component"]["modelCard"]
    considerations, parameters = said.get("considerations") or {}, said.get("modelParameters") or {}
    bars = drawn(figures.metrics)
    return Card(
        purpose=" ".join(map(str, considerations.get("useCases") or ())),
        limits=tuple(map(str, considerations.get("technicalLimitations") or ())),
        data=tuple(_data(parameters)),
        inputs=tuple(str(each.get("format", "")) for each in parameters.get("inputs") or ()),
        outputs=tuple(str(each.get("format", "")) for each in parameters.get("outputs") or ()),
        governance=tuple(governance(subject)),
        overall=tuple(each for each in bars if not each.metric.part),
        parts=tuple(each for each in bars if each.metric.part and not each.metric.part.startswith(COHORT)),
        cohorts=tuple(each for each in bars if each.metric.part.startswith(COHORT)),
        sections={
            title: {name: told(name, value) for name, value in section.items()}
            for title, section in figures.sections.items()
        },
    )


def told(name: str, value: str) -> str:
    """Return a figure of a card's section as people read it: bytes with their unit, shares as percent."""
    try:
        number = float(value)
    except ValueError:
        return value
    if name.startswith("bytes ") and number >= 0:
        return words.size(number)
    if name.startswith("share ") and 0 <= number <= 1:
        return words.percent(number)
    return value


def drawn(metrics: Sequence[Metric]) -> tuple[Bar, ...]:
    """Return figures as they are drawn: each kind on one scale, which is 0..1 wherever all of it fits there."""
    ends: dict[str, tuple[float, float]] = {}
    for each in metrics:
        low, high = each.interval or (each.value, each.value)
        least, most = ends.get(each.kind, (0.0, 1.0))
        ends[each.kind] = min(least, low, each.value), max(most, high, each.value)
    made = []
    for each in metrics:
        least, most = ends[each.kind]
        low, high = each.interval or (each.value, each.value)
        value, low, high = ((one - least) / (most - least) for one in (each.value, low, high))
        made.append(Bar(each, value, low, high, each.interval is not None))
    return tuple(made)


@router.get("/models/{name}/compare", dependencies=_READ)
def compare_versions(
    request: Request,
    service: ServiceOf,
    name: Named,
    before: Annotated[int, Query(ge=1, lt=1 << 31)],
    after: Annotated[int, Query(ge=1, lt=1 << 31)],
) -> Response:
    """Show two versions side by side: figures and whether they differ by more than chance, sizes, contracts."""
    both = [found_version(service, name, number) for number in (before, after)]
    first, second = ((each, package_of(service.fleet, each)) for each in both)
    found = compare(first, second)
    columns = ("kind", "part", "before", "after", "low", "high", "verdict")
    rows = (
        (
            each.kind,
            each.part,
            None if each.before is None else each.before.value,
            None if each.after is None else each.after.value,
            *(each.interval or (None, None)),
            each.verdict,
        )
        for each in found.metrics
    )
    file = export(request, f"{name}-{before}-{after}", columns, rows)
    if file is not None:
        return file
    with service.store.database.read() as connection:
        numbers = [each.version for each in reversed(versions_of(connection, name))]
    return page(
        request,
        "compare.html",
        title=f"{found.before} and {found.after}",
        model=name,
        before=both[0],
        after=both[1],
        found=found,
        numbers=numbers,
    )


@router.get("/models/{name}/{version}", dependencies=_READ)
def show_version(request: Request, service: ServiceOf, name: Named, version: Number) -> Response:
    """Show a version."""
    found_version(service, name, version)
    permissions = session_of(request).permissions
    seen = shown(service, name, version, telemetry=Permission.TELEMETRY_READ in permissions)
    file = export(request, f"{name}-{version}", COLUMNS, _cells(seen.card))
    if file is not None:
        return file
    stage = seen.detail.subject.version.stage
    return page(
        request,
        "model_version.html",
        title=seen.detail.subject.version.name,
        seen=seen,
        version=seen.detail.subject.version,
        line=seen.detail.subject.line,
        acts=[each.value for each in _BY_HAND if each in possible(stage)],
        needed=asking.rules_of(service.fleet).approvals,
        latency_days=LATENCY_DAYS,
        key_here=service.fleet.release_key.exists(),
        signed_out=stage in (Stage.RELEASED, Stage.DEPRECATED),
    )


@router.get("/models/{name}/{version}/lineage.json", dependencies=_READ)
def get_lineage(service: ServiceOf, name: Named, version: Number) -> dict[str, Any]:
    """Return where a version comes from and where it went."""
    found_version(service, name, version)
    return lineage(service.store, name, version).to_json()


@router.get("/models/{name}/{version}/card.json", dependencies=_READ)
def get_card(service: ServiceOf, name: Named, version: Number) -> Response:
    """Return a version's card as a file: CycloneDX 1.6."""
    return _file(
        complete(_subject(service, name, version)), f"{name}-{version}-card.json", "application/json"
    )


@router.get("/models/{name}/{version}/card.md", dependencies=_READ)
def get_card_text(service: ServiceOf, name: Named, version: Number) -> Response:
    """Return a version's card as a file: Markdown."""
    made = to_markdown(_subject(service, name, version)).encode()
    return _file(made, f"{name}-{version}-card.md", "text/markdown; charset=utf-8")


@router.get("/models/{name}/{version}/datasheet.md", dependencies=_READ)
def get_datasheet(service: ServiceOf, name: Named, version: Number) -> Response:
    """Return a version's data sheet as a file: Markdown."""
    made = datasheet(_subject(service, name, version)).encode()
    return _file(made, f"{name}-{version}-datasheet.md", "text/markdown; charset=utf-8")


def _data(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for each in parameters.get("datasets") or ():
        yield "data", str(each.get("description", each.get("name", "")))
        for item in (each.get("contents") or {}).get("properties") or ():
            name = str(item.get("name", "")).rpartition(":")[2].replace("-", " ")
            yield name, str(item.get("value", ""))


def _cells(card: Card) -> Iterator[Sequence[object]]:
    for bar in (*card.overall, *card.parts, *card.cohorts):
        each = bar.metric
        yield each.kind, each.part, each.value, *(each.interval or (None, None))


def _file(data: bytes, name: str, kind: str) -> Response:
    return Response(data, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _subject(service: Service, model: str, version: int) -> Subject:
    found_version(service, model, version)
    return overview.subject_of(service.fleet, service.store, model, version)


def found_version(service: Service, model: str, version: int) -> Version:
    """Return a version.

    Raises:
        Problem: There is none.
    """
    with service.store.database.read() as connection:
        found = version_of(connection, model, version)
    if found is None:
        raise missing(f"version {version} of model {model} in the registry")
    return found
