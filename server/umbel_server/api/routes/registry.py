"""The registry: models, their versions, who approves of them, and what is known about them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from umbel_proto.ids import ModelName, RunId
from umbel_server.access.actor import Actor
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, UploadRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after, page_of
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, Service, ServiceOf, StoreOf
from umbel_server.api.texts import Asked, Name, Named, Why, Words
from umbel_server.registry import asking, card, compare, datasheet, overview, releasing, versions
from umbel_server.registry.approval import Verdict
from umbel_server.registry.stages import Event, Stage
from umbel_server.store.registry import Line, Version, line_of, lines, version_of
from umbel_server.store.registry import versions as versions_of
from umbel_server.store.store import Store

router = APIRouter(prefix="/api/v1/models", tags=["registry"], route_class=GuardedRoute)
uploads = APIRouter(prefix="/api/v1/models", tags=["registry"], route_class=UploadRoute)
every = APIRouter(prefix="/api/v1/versions", tags=["registry"], route_class=GuardedRoute)
any_upload = APIRouter(prefix="/api/v1/versions", tags=["registry"], route_class=UploadRoute)

Number = Annotated[int, Path(ge=1, lt=1 << 31, description="The version.")]
Comment = Annotated[Words, Field(min_length=1, description="Why, for the record.")]
_READ = [may(Permission.REGISTRY_READ)]
_WRITE = [may(Permission.REGISTRY_WRITE)]
_APPROVE = [may(Permission.REGISTRY_APPROVE)]
_RELEASE = [may(Permission.RELEASES_WRITE)]
_BINARY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class CycloneDx(Response):
    """A CycloneDX document."""

    media_type = "application/vnd.cyclonedx+json"


class Markdown(Response):
    """A text for people."""

    media_type = "text/markdown"


class Said(Asked):
    """What somebody says with what they do."""

    comment: Comment


class Description(Asked):
    """Who answers for a model, and what it is for."""

    owner: Annotated[Words, Field(max_length=255)] = ""
    purpose: Words = ""
    risk: Literal["unclassified", "minimal", "limited", "high"] = "unclassified"
    review_date: Annotated[str, Field(pattern=r"^(\d{4}-\d{2}-\d{2})?$", description="ISO date.")] = ""
    decommission: Words = ""


class Described(Description):
    """What is said of a model, and why."""

    reason: Words = ""


class ModelShown(Description):
    """A model, of which there are versions."""

    model: str


class VariantShown(BaseModel):
    """A form of a version."""

    engine: str
    bytes: int


class VersionShown(BaseModel):
    """A version."""

    model: str
    version: int
    stage: Stage
    stage_s: float = Field(description="Since when, Unix seconds.")
    sha256: str = Field(description="Of the whole package file, hexadecimal.")
    size: int = Field(description="Bytes.")
    task: str
    contract_sha256: str
    run: str | None
    rounds: int | None
    parent: int | None
    code: str
    variants: dict[str, VariantShown]
    lineage: dict[str, str | int | float]
    added_by: str
    added_s: float = Field(description="Unix seconds.")
    sealed_s: float | None = Field(description="From when on nothing changes but its stage; null: not yet.")


class VersionListed(VersionShown):
    """A version in a list of all."""

    model_line: dict[str, str]
    approvals: str = Field(description="How many have approved, of how many; - where nobody asked.")


class Requested(VersionShown):
    """A version whose approval was asked for."""

    requested_by: str
    request: int = Field(description="The request's number.")
    evidence_sha256: str = Field(description="What approvals will be of, hexadecimal.")
    approvals_needed: int


class Decided(VersionShown):
    """A version that somebody decided on."""

    decided_by: str
    approvals_missing: int = Field(description="How many approvals it still needs.")


class VersionDetail(VersionShown):
    """A version with all that was asked, decided and said of it."""

    model_line: dict[str, str]
    approvals_missing: int | None = Field(description="Of the request that holds; null: none does.")
    lapsed: str | None = Field(description="Why approvals count for nothing any more; null: they count.")
    requests: list[dict[str, Any]]
    comments: list[dict[str, Any]]


@router.get("", dependencies=_READ)
def list_models(store: StoreOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Page[ModelShown]:
    """List the models."""
    with store.database.read() as connection:
        found = [line for line in lines(connection) if line.model > (after(cursor) or "")]
    return page_of(found[: limit + 1], limit, key=lambda line: line.model, show=_model)


@router.get("/{name}", dependencies=_READ)
def get_model(store: StoreOf, name: Named) -> ModelShown:
    """Show a model."""
    return _model(_line(store, name))


@router.put("/{name}", dependencies=_WRITE)
def describe_model(store: StoreOf, actor: ActorOf, name: Named, said: Described) -> ModelShown:
    """Say who answers for a model, what it is for and how risky that is: all of it."""
    line = Line(ModelName(name), **said.model_dump(exclude={"reason"}))
    return _model(versions.describe(store, line, actor, reason=said.reason))


@every.get("", dependencies=_READ)
def list_all_versions(
    service: ServiceOf,
    model: Annotated[Name | None, Query(description="Only this model's.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[VersionListed]:
    """List the versions of every model, and where each stands."""
    last = after(cursor) or ""
    entries = overview.overview(service.store, asking.rules_of(service.fleet), model)
    found = sorted((each for each in entries if _place(each) > last), key=_place)
    return page_of(found[: limit + 1], limit, key=_place, show=lambda each: VersionListed(**each.to_json()))


@any_upload.post("", status_code=201, dependencies=_WRITE, openapi_extra=_BINARY)
async def add_any_version(
    request: Request,
    service: ServiceOf,
    actor: ActorOf,
    run: Annotated[Name | None, Query(description="The run that trained it.")] = None,
    code: Annotated[str, Query(max_length=255, description="Version of the code that made it.")] = "",
) -> VersionShown:
    """Add a package, the whole signed file, of whichever model it is; the same one again is no error."""
    return await _add(request, service, actor, "", run, code)


@router.get("/{name}/versions", dependencies=_READ)
def list_versions(
    store: StoreOf, name: Named, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[VersionShown]:
    """List the versions of a model."""
    last = after(cursor) or ""
    with store.database.read() as connection:
        found = [each for each in versions_of(connection, name) if _key(each) > last]
    return page_of(found[: limit + 1], limit, key=_key, show=_version)


@uploads.post("/{name}/versions", status_code=201, dependencies=_WRITE, openapi_extra=_BINARY)
async def add_version(
    request: Request,
    service: ServiceOf,
    actor: ActorOf,
    name: Named,
    run: Annotated[Name | None, Query(description="The run that trained it.")] = None,
    code: Annotated[str, Query(max_length=255, description="Version of the code that made it.")] = "",
) -> VersionShown:
    """Add a package, the whole signed file, as a draft; the same one again is no error."""
    return await _add(request, service, actor, name, run, code)


@router.get("/{name}/versions/{version}", dependencies=_READ)
def get_version(service: ServiceOf, name: Named, version: Number) -> VersionDetail:
    """Show a version: where it comes from, who approved of it and by what evidence."""
    _found(service.store, name, version)
    return VersionDetail(**overview.detail(service.fleet, service.store, name, version).to_json())


@router.post("/{name}/versions/{version}/request", dependencies=_WRITE)
def request_approval(
    service: ServiceOf, actor: ActorOf, name: Named, version: Number, said: Said
) -> Requested:
    """Ask that a version be approved by the evidence that there is."""
    _found(service.store, name, version)
    asked = asking.request(service.fleet, service.store, name, version, actor, comment=said.comment)
    return Requested(
        **overview.version_json(_found(service.store, name, version)),
        requested_by=asked.requested_by,
        request=asked.number,
        evidence_sha256=asked.evidence_sha256.hex(),
        approvals_needed=asking.rules_of(service.fleet).approvals,
    )


@router.post("/{name}/versions/{version}/approve", dependencies=_APPROVE)
def approve_version(service: ServiceOf, actor: ActorOf, name: Named, version: Number, said: Said) -> Decided:
    """Approve of a version that you neither asked for nor added."""
    _found(service.store, name, version)
    return _decide(service, actor, name, version, Verdict.APPROVE, said.comment)


@router.post("/{name}/versions/{version}/reject", dependencies=_APPROVE)
def reject_version(service: ServiceOf, actor: ActorOf, name: Named, version: Number, said: Said) -> Decided:
    """Say no to a version: it is a draft again."""
    _found(service.store, name, version)
    return _decide(service, actor, name, version, Verdict.REJECT, said.comment)


@router.post("/{name}/versions/{version}/comments", status_code=204, dependencies=_READ)
def comment_on_version(store: StoreOf, actor: ActorOf, name: Named, version: Number, said: Said) -> None:
    """Say something about a version; it stays on record."""
    _found(store, name, version)
    versions.comment(store, name, version, actor, said.comment)


@router.post("/{name}/versions/{version}/deprecate", dependencies=_RELEASE)
def deprecate_version(store: StoreOf, actor: ActorOf, name: Named, version: Number, why: Why) -> VersionShown:
    """Say that nobody should choose a released version any more; devices still may have it."""
    _found(store, name, version)
    return _version(releasing.move(store, name, version, Event.DEPRECATE, actor, reason=why.reason))


@router.post("/{name}/versions/{version}/reinstate", dependencies=_RELEASE)
def reinstate_version(store: StoreOf, actor: ActorOf, name: Named, version: Number, why: Why) -> VersionShown:
    """Say that a deprecated version is as good as before."""
    _found(store, name, version)
    return _version(releasing.move(store, name, version, Event.REINSTATE, actor, reason=why.reason))


@router.post("/{name}/versions/{version}/retire", dependencies=_RELEASE)
def retire_version(
    service: ServiceOf, actor: ActorOf, name: Named, version: Number, why: Why
) -> VersionShown:
    """Let no device fetch a version any more, for good. One that was released needs the release key at the service."""
    _found(service.store, name, version)
    return _version(releasing.retire(service.fleet, service.store, name, version, actor, reason=why.reason))


@router.get("/{name}/versions/{version}/compare/{other}", dependencies=_READ)
def compare_versions(service: ServiceOf, name: Named, version: Number, other: Number) -> dict[str, Any]:
    """Compare a version with another: figures and whether they differ by more than chance, sizes, contracts."""
    both = [_found(service.store, name, number) for number in (version, other)]
    first, second = ((each, versions.package_of(service.fleet, each)) for each in both)
    return compare.compare(first, second).to_json()


@router.get("/{name}/versions/{version}/card", dependencies=_READ, response_class=CycloneDx)
def get_card(service: ServiceOf, name: Named, version: Number) -> CycloneDx:
    """Return a version's model card, CycloneDX 1.6."""
    return CycloneDx(card.complete(_subject(service, name, version)))


@router.get("/{name}/versions/{version}/card.md", dependencies=_READ, response_class=Markdown)
def get_card_markdown(service: ServiceOf, name: Named, version: Number) -> Markdown:
    """Return a version's model card, Markdown."""
    return Markdown(card.to_markdown(_subject(service, name, version)))


@router.get("/{name}/versions/{version}/datasheet.md", dependencies=_READ, response_class=Markdown)
def get_datasheet(service: ServiceOf, name: Named, version: Number) -> Markdown:
    """Return a version's data sheet, Markdown."""
    return Markdown(datasheet.to_markdown(_subject(service, name, version)))


async def _add(
    request: Request, service: Service, actor: Actor, name: str, run: str | None, code: str
) -> VersionShown:
    data = await request.body()

    def add() -> Version:
        return versions.add(
            service.fleet,
            service.store,
            data,
            actor,
            run=None if run is None else RunId(run),
            code=code,
            model=name,
        )

    return _version(await run_in_threadpool(add))


def _subject(service: ServiceOf, name: str, version: int) -> card.Subject:
    _found(service.store, name, version)
    return overview.subject_of(service.fleet, service.store, name, version)


def _decide(
    service: Service, actor: Actor, name: str, version: int, verdict: Verdict, comment: str
) -> Decided:
    now, left = asking.decide(service.fleet, service.store, name, version, actor, verdict, comment=comment)
    return Decided(**overview.version_json(now), decided_by=actor.name, approvals_missing=left)


def _line(store: Store, name: str) -> Line:
    with store.database.read() as connection:
        found = line_of(connection, name)
    if found is None:
        raise missing(f"model {name} in the registry")
    return found


def _found(store: Store, name: str, version: int) -> Version:
    with store.database.read() as connection:
        found = version_of(connection, name, version)
    if found is None:
        raise missing(f"version {version} of model {name} in the registry")
    return found


def _key(version: Version) -> str:
    return f"{version.version:019d}"


def _place(entry: overview.Entry) -> str:
    return f"{entry.version.model}@{_key(entry.version)}"


def _model(line: Line) -> ModelShown:
    return ModelShown(**asdict(line))


def _version(version: Version) -> VersionShown:
    return VersionShown(**overview.version_json(version))
