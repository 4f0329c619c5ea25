"""The registry over the REST API: the same rules, for accounts by their tokens."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry_world import World, make_world, package
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import held
from umbel_server.api.server import ApiServer

ROLES = {"anna": Role.RELEASE_MANAGER, "ben": Role.REVIEWER, "carl": Role.REVIEWER, "vera": Role.VIEWER}
LINE = {"owner": "anna", "purpose": "reads digits", "risk": "minimal", "review_date": "", "decommission": ""}


@dataclass
class Caller:
    world: World
    client: httpx.Client
    tokens: dict[str, str]

    def __call__(self, who: str, method: str, path: str, status: int = 200, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        answer = self.client.request(method, f"/api/v1/models{path}", headers=headers, **more)
        assert answer.status_code == status, answer.text
        is_json = answer.content and "json" in answer.headers["content-type"]
        return answer.json() if is_json else answer.text


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Caller]:
    world, tokens = make_world(tmp_path, tmp_path / "store.db", described=False, now_s=time.time()), {}
    for name, role in ROLES.items():
        world.store.accounts.add(local_actor(), name, roles=frozenset({role}))
        tokens[name], _ = world.store.api_tokens.create(
            local_actor(), name, scopes=held({role}), valid_s=3600
        )
    trust = ssl.create_default_context(cafile=world.fleet.ca_pem)
    with (
        world.store,
        ApiServer(world.fleet, world.store, port=0) as server,
        httpx.Client(base_url=f"https://{server.address}", verify=trust, timeout=60) as client,
    ):
        yield Caller(world, client, tokens)


def test_a_version_goes_from_an_upload_to_two_approvals_and_a_release(call: Caller) -> None:
    call("vera", "GET", "/digits", 404)
    call("vera", "PUT", "/digits", 403, json=LINE)
    assert call("anna", "PUT", "/digits", json=LINE) == {"model": "digits", **LINE}
    assert call("anna", "POST", "/other/versions", 422, content=package(1))["detail"].endswith(
        "not of other."
    )
    made = call("anna", "POST", "/digits/versions", 201, params={"code": "git:1"}, content=package(1))
    assert (made["stage"], made["added_by"], made["code"]) == ("draft", "anna", "git:1")
    said = {"json": {"comment": "looked at it"}}
    call("ben", "POST", "/digits/versions/1/approve", 409, **said)
    call("ben", "POST", "/digits/versions/1/request", 403, **said)
    assert call("anna", "POST", "/digits/versions/1/request", **said)["stage"] == "candidate"
    assert "asked for this" in call("anna", "POST", "/digits/versions/1/approve", 409, **said)["detail"]
    call("vera", "POST", "/digits/versions/1/approve", 403, **said)
    assert call("ben", "POST", "/digits/versions/1/approve", **said)["stage"] == "candidate"
    call("vera", "POST", "/digits/versions/1/comments", 204, **said)
    told = call("vera", "GET", "/digits/versions/1")
    assert (told["approvals_missing"], told["comments"][0]["author"]) == (1, "vera")
    assert told["requests"][0]["evidence"]["evaluation"]
    assert call("carl", "POST", "/digits/versions/1/approve", **said)["stage"] == "approved"
    call.world.publish()
    why = {"json": {"reason": "old"}}
    call("ben", "POST", "/digits/versions/1/deprecate", 403, **why)
    assert call("anna", "POST", "/digits/versions/1/deprecate", **why)["stage"] == "deprecated"
    assert call("anna", "POST", "/digits/versions/1/reinstate", **why)["stage"] == "released"
    assert call("anna", "POST", "/digits/versions/1/retire", **why)["stage"] == "retired"
    call("vera", "POST", "/digits/versions/9/comments", 404, **said)


def test_lists_cards_and_comparisons_are_for_everybody_who_may_look(call: Caller) -> None:
    for number in (1, 2, 3):
        call("anna", "POST", "/digits/versions", 201, content=package(number))
    assert [each["model"] for each in call("vera", "GET", "")["items"]] == ["digits"]
    first = call("vera", "GET", "/digits/versions", params={"limit": 2})
    rest = call("vera", "GET", "/digits/versions", params={"limit": 2, "cursor": first["next"]})
    assert [each["version"] for each in first["items"] + rest["items"]] == [1, 2, 3]
    assert rest["next"] is None
    assert call("vera", "GET", "/digits/versions/1/card")["bomFormat"] == "CycloneDX"
    assert call("vera", "GET", "/digits/versions/1/card.md").startswith("---\n")
    assert call("vera", "GET", "/digits/versions/1/datasheet.md").startswith("# Data sheet of digits@1")
    told = call("vera", "GET", "/digits/versions/1/compare/2")
    assert (told["before"], told["after"]) == ("digits@1", "digits@2")
    call("vera", "GET", "/digits/versions/1/compare/9", 404)
