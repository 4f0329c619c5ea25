"""What the routes work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from umbel_server.access.actor import Actor
from umbel_server.access.oidc import Errands, Provider
from umbel_server.api.failures import Failures
from umbel_server.api.starts import Starts
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.api_tokens import Bearer
from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Service:
    """A fleet as the API serves it.

    Args:
        fleet: Its directory.
        store: Its store.
        failures: Sign-ins that failed lately.
        errands: Who is at the OpenID provider.
        starts: Who was sent there lately.
        provider: The provider; of no use where none is set up.
    """

    fleet: FleetDir
    store: Store
    failures: Failures
    errands: Errands
    starts: Starts
    provider: Provider


def service_for(fleet: FleetDir, store: Store) -> Service:
    """Return what the routes of a fleet work on, when nothing has happened yet."""
    clock, settings = store.clock, fleet.settings
    return Service(
        fleet,
        store,
        Failures(settings.api.failures_per_minute, clock),
        Errands(clock),
        Starts(clock),
        Provider(settings.oidc, clock),
    )


def service_of(request: Request) -> Service:
    """Return what the app of a request serves."""
    return cast(Service, request.app.state.service)


def bearer_of(request: Request) -> Bearer:
    """Return who sent a request that was let in."""
    return cast(Bearer, request.state.bearer)


# What only looks at the request is a coroutine: any other dependency would be sent to a thread, and waited for.


async def _service_of(request: Request) -> Service:
    return service_of(request)


async def _bearer_of(request: Request) -> Bearer:
    return bearer_of(request)


async def _actor_of(request: Request) -> Actor:
    return bearer_of(request).account.actor


async def _token_of(request: Request) -> str:
    """Return the token that a request showed, which let it in."""
    return request.headers["authorization"].partition(" ")[2]


async def _store_of(request: Request) -> Store:
    return service_of(request).store


ServiceOf = Annotated[Service, Depends(_service_of)]
StoreOf = Annotated[Store, Depends(_store_of)]
BearerOf = Annotated[Bearer, Depends(_bearer_of)]
TokenOf = Annotated[str, Depends(_token_of)]
ActorOf = Annotated[Actor, Depends(_actor_of)]
