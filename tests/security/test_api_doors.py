"""Every route of the API against everybody who has no business there; a new route is here by itself."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi import APIRouter

from api_world import ApiWorld, api_world, filled, guarded_routes
from umbel_proto.errors import LocalProtocolError
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import HELD, Permission
from umbel_server.api.app import ROUTERS, make_app
from umbel_server.api.guard import GuardedRoute, OpenRoute

ROUTES = guarded_routes()
OPEN = {
    ("POST", "/api/v1/sign-in"),
    ("GET", "/api/v1/oidc/start"),
    ("GET", "/api/v1/oidc/callback"),
    ("GET", "/api/v1/authority"),  # Its certificate only, which every TLS handshake shows.
}
"""What nobody signs in for. Another one is a decision, to be written here."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiWorld]:
    with api_world(tmp_path_factory.mktemp("doors")) as made:
        made.user("root", Role.ADMIN)
        for role in Role:
            made.user(f"a-{role}", role)
        yield made


@pytest.fixture(scope="module")
def refused(world: ApiWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """Everything that is not in force, by name, as header fields."""
    everything = HELD[Role.ADMIN]
    good = world.token("root", everything)
    last = "A" if good[-1] != "A" else "B"
    expired = world.token("root", everything, valid_s=60)
    world.clock.advance(60)
    revoked = world.token("root", everything)
    world.store.api_tokens.revoke(
        local_actor(), max(world.store.api_tokens.all(), key=lambda each: each.created_s).id
    )
    world.user("gone", Role.ADMIN)
    disabled = world.token("gone", everything)
    world.store.accounts.set_active(local_actor(), "gone", False)
    # Active again, but not what was out before.
    world.store.accounts.set_active(local_actor(), "gone", True)
    with api_world(tmp_path_factory.mktemp("elsewhere")) as other:
        other.user("root", Role.ADMIN)
        foreign = other.token("root", everything)

    def bearer(token: str) -> list[tuple[str, str]]:
        return [("Authorization", f"Bearer {token}")]

    return {
        "no credentials": [],
        "an empty header": [("Authorization", "")],
        "another scheme": [("Authorization", f"Basic {good}")],
        "no scheme": [("Authorization", good)],
        "not a token": bearer("' OR 1=1 --"),
        "a token with another letter": bearer(good[:-1] + last),
        "half a token": bearer(good[:30]),
        "a token and another": bearer(good) + bearer(good),
        "two tokens in one": [("Authorization", f"Bearer {good}, Bearer {good}")],
        "an expired token": bearer(expired),
        "a revoked token": bearer(revoked),
        "a disabled account's token": bearer(disabled),
        "another fleet's token": bearer(foreign),
    }


def test_the_routes_are_those_of_the_app() -> None:
    paths = make_app().openapi()["paths"]
    told = {(method.upper(), path) for path, item in paths.items() for method in item}
    assert told == {(method, path) for method, path, _ in ROUTES} | OPEN
    open_routes = {
        (method, route.path)
        for router in ROUTERS
        for route in router.routes
        if type(route) is OpenRoute
        for method in route.methods
    }
    assert open_routes == OPEN
    assert all(
        type(route) is OpenRoute or isinstance(route, GuardedRoute) for r in ROUTERS for route in r.routes
    )


def test_a_route_that_does_not_say_whom_it_is_for_cannot_be_made() -> None:
    router = APIRouter(route_class=GuardedRoute)
    with pytest.raises(LocalProtocolError, match="does not say whom it is for"):
        router.get("/forgotten")(lambda: None)


@pytest.mark.parametrize(("method", "path", "permission"), ROUTES, ids=[f"{m} {p}" for m, p, _ in ROUTES])
def test_nobody_gets_in_without_a_token_that_is_in_force(
    world: ApiWorld,
    refused: dict[str, list[tuple[str, str]]],
    method: str,
    path: str,
    permission: Permission | None,
) -> None:
    for who, headers in refused.items():
        # What is sent is not even looked at.
        answer = world.client.request(method, filled(path), headers=headers, content=b"{not json")
        assert (answer.status_code, who) == (401, who)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        is_a_problem(answer)


@pytest.mark.parametrize(("method", "path", "permission"), ROUTES, ids=[f"{m} {p}" for m, p, _ in ROUTES])
def test_a_token_gets_in_where_its_scope_and_its_account_allow_it_and_nowhere_else(
    world: ApiWorld, method: str, path: str, permission: Permission | None
) -> None:
    if permission is None:
        assert path in ("/api/v1/me", "/api/v1/openapi.json", "/api/v1/sign-out")
        return
    others = world.token("root", HELD[Role.ADMIN] - {permission})
    answer = world.call(others, method, filled(path).removeprefix("/api/v1"), content=b"{not json")
    assert answer.status_code == 403
    assert permission in is_a_problem(answer)
    for role in Role:
        token = world.token(f"a-{role}", HELD[role])
        answer = world.call(token, method, filled(path).removeprefix("/api/v1"))
        assert (answer.status_code in (401, 403), role) == (permission not in HELD[role], role)
        assert answer.status_code < 500
    alone = world.token("root", {permission})
    assert world.call(alone, method, filled(path).removeprefix("/api/v1")).status_code not in (401, 403, 500)


def test_who_loses_a_role_loses_it_in_tokens_that_are_out(world: ApiWorld) -> None:
    world.user("falls", Role.ADMIN)
    token = world.token("falls", HELD[Role.ADMIN])
    assert world.call(token, "GET", "/users").status_code == 200
    world.store.accounts.set_roles(local_actor(), "falls", frozenset({Role.VIEWER}))
    assert world.call(token, "GET", "/users").status_code == 403
    assert world.call(token, "GET", "/devices").status_code == 200


def test_a_token_makes_none_that_may_more_than_itself(world: ApiWorld) -> None:
    narrow = world.token("root", {Permission.TOKENS_WRITE, Permission.DEVICES_READ})
    wider = world.call(narrow, "POST", "/tokens", json={"scopes": ["users:write"]})
    assert wider.status_code == 403
    same = world.call(narrow, "POST", "/tokens", json={"scopes": ["devices:read"]})
    assert same.status_code == 201
    assert world.call(same.json()["token"], "GET", "/devices").status_code == 200


def test_a_viewer_sees_and_revokes_only_tokens_of_its_own(world: ApiWorld) -> None:
    mine = world.token("a-viewer", HELD[Role.VIEWER])
    world.token("root", HELD[Role.ADMIN])
    theirs = next(each for each in world.store.api_tokens.all(account="root") if each.revoked_s is None)
    listed = world.call(mine, "GET", "/tokens", params={"limit": 1000}).json()["items"]
    assert {each["user"] for each in listed} == {"a-viewer"}
    answer = world.call(mine, "POST", f"/tokens/{theirs.id}/revoke", json={"reason": "spite"})
    assert answer.status_code == 404
    unchanged = world.store.api_tokens.get(theirs.id)
    assert unchanged is not None
    assert unchanged.revoked_s is None


def is_a_problem(answer: httpx.Response) -> str:
    """Check that an answer is a problem in one sentence, and return that."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body.keys() == {"type", "title", "status", "detail", "kind"}
    assert body["status"] == answer.status_code
    assert "\n" not in body["detail"]
    assert "Traceback" not in answer.text
    detail: str = body["detail"]
    return detail
