"""Overview: how the fleet is, each figure a way to what is behind it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from umbel_server.access.permissions import Permission
from umbel_server.api.service import StoreOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page

router = APIRouter(route_class=ScreenRoute)


@router.get("/", dependencies=[may(Permission.DEVICES_READ)])
def overview(request: Request, store: StoreOf) -> Response:
    """Show how the fleet is."""
    return page(request, "overview.html", live="devices", facets=store.device_list.facets())
