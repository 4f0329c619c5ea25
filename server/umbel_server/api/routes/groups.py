"""Groups of devices: tags, and filters that are saved under a name."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from umbel_proto.errors import UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after, page_of
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, Service, ServiceOf
from umbel_server.api.texts import Asked, Name, Named, Reason, Why
from umbel_server.fleet.groups import group_json, groups_json
from umbel_server.store.groups import Group
from umbel_server.store.wanted import Status, Wanted

router = APIRouter(prefix="/api/v1/groups", tags=["devices"], route_class=GuardedRoute)


class GroupShown(BaseModel):
    """A group of devices."""

    name: str
    kind: Literal["static", "dynamic"] = Field(
        description="static: a tag, which devices have until it is taken away; dynamic: a saved filter."
    )
    filter: dict[str, str | int] = Field(description="What its devices fulfill.")
    devices: int = Field(description="How many are in it now.")
    fewer_than_cohort: bool = Field(description="Whether they are too few for figures of their own.")
    saved_s: float | None = Field(description="When it was saved, Unix seconds; null of a tag.")
    saved_by: str | None = Field(description="Who saved it; null of a tag.")


class Filter(Asked):
    """Which devices are in a group: those of which all of it is true."""

    status: Status | None = None
    tag: Name | None = None
    model: Name | None = None
    version: Annotated[int | None, Field(ge=0, lt=2**63, description="With model: its version.")] = None
    begins: Annotated[str | None, Field(min_length=1, max_length=63, description="Of its name.")] = None
    reason: Reason


@router.get("", dependencies=[may(Permission.DEVICES_READ)])
def list_groups(service: ServiceOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Page[GroupShown]:
    """List the groups by name, each with how many devices are in it now."""
    store, last = service.store, after(cursor) or ""
    every = groups_json(store, store.inventory.tags(), service.fleet.policy().min_cohort)
    found = [each for each in every if each["name"] > last]
    return page_of(
        found[: limit + 1], limit, key=lambda each: str(each["name"]), show=GroupShown.model_validate
    )


@router.get("/{name}", dependencies=[may(Permission.DEVICES_READ)])
def get_group(service: ServiceOf, name: Named) -> GroupShown:
    """Show a group that is a saved filter."""
    return _shown(service, _found(service, name))


@router.put("/{name}", dependencies=[may(Permission.DEVICES_WRITE)])
def save_group(service: ServiceOf, actor: ActorOf, name: Named, asked: Filter) -> GroupShown:
    """Save a filter as a group, or in the place of the one that it was."""
    wanted = Wanted(**asked.model_dump(exclude={"reason"}))
    return _shown(service, service.store.groups.save(name, wanted, actor=actor, reason=asked.reason))


@router.post("/{name}/remove", dependencies=[may(Permission.DEVICES_WRITE)])
def remove_group(service: ServiceOf, actor: ActorOf, name: Named, why: Why) -> GroupShown:
    """Forget a saved filter; its devices stay as they are."""
    shown = _shown(service, _found(service, name))
    service.store.groups.remove(name, actor=actor, reason=why.reason)
    return shown


def _found(service: Service, name: str) -> Group:
    try:
        return service.store.groups.get(name)
    except UsageError:
        raise missing(f"group {name}") from None


def _shown(service: Service, group: Group) -> GroupShown:
    count, least = service.store.groups.count(group), service.fleet.policy().min_cohort
    return GroupShown.model_validate(group_json(group, count, least))
