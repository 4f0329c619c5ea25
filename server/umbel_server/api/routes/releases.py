"""Releases: what devices may install."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, UploadRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after, page_of
from umbel_server.api.service import ActorOf, ServiceOf, StoreOf
from umbel_server.fleet.publish import publish
from umbel_server.store.releases import Release

router = APIRouter(prefix="/api/v1/releases", tags=["releases"], route_class=GuardedRoute)
uploads = APIRouter(prefix="/api/v1/releases", tags=["releases"], route_class=UploadRoute)


class ReleaseShown(BaseModel):
    """A released package."""

    model: str
    version: int
    sha256: str = Field(description="Of the whole package file, hexadecimal.")
    size: int = Field(description="Bytes.")
    published_s: float = Field(description="Unix seconds.")


@router.get("", dependencies=[may(Permission.RELEASES_READ)])
def list_releases(store: StoreOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Page[ReleaseShown]:
    """List the releases by model and version."""
    last = after(cursor) or ""
    found = [each for each in store.releases.all() if _key(each) > last][: limit + 1]
    return page_of(found, limit, key=_key, show=_show)


@uploads.post(
    "",
    status_code=201,
    dependencies=[may(Permission.RELEASES_WRITE)],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def publish_release(request: Request, service: ServiceOf, actor: ActorOf) -> ReleaseShown:
    """Release a package, the whole signed file; the same one again is no error."""
    data = await request.body()
    return _show(await run_in_threadpool(publish, service.fleet, service.store, data, actor=actor))


def _key(release: Release) -> str:
    return f"{release.model}@{release.version:019d}"


def _show(release: Release) -> ReleaseShown:
    return ReleaseShown(
        model=release.model,
        version=release.version,
        sha256=release.sha256.hex(),
        size=release.size,
        published_s=release.published_s,
    )
