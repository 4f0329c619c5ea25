"""Signing in at an OpenID provider that really runs, over TLS: who gets in, as whom, and who does not."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from api_world import ApiWorld, api_world
from openid_provider import CLIENT, SECRET, OpenIdProvider, openid_provider
from service_fleet import ManualClock, make_fleet
from umbel_proto.errors import UsageError
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.oidc import LIFE_S, MAX_ERRANDS
from umbel_server.access.oidc_asking import FAILED_S, KEPT_S, KEYS_S, MAX_BYTES
from umbel_server.access.oidc_settings import OidcSettings
from umbel_server.api.problems import Problem
from umbel_server.api.starts import OF_ADDRESS, OF_ALL, Starts
from umbel_server.fleet.layout import FleetDir

COOKIE = "__Host-umbel-oidc"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> FleetDir:
    """Whose certificate the provider has."""
    return make_fleet(tmp_path_factory.mktemp("elsewhere") / "fleet")


@pytest.fixture(scope="module")
def there(
    elsewhere: FleetDir, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ApiWorld, OpenIdProvider]]:
    path = tmp_path_factory.mktemp("oidc")
    secret = path / "secret"
    secret.write_text(SECRET + "\n")
    clock = ManualClock()
    with openid_provider(elsewhere, clock) as provider:
        oidc = OidcSettings(
            issuer=provider.issuer,
            client_id=CLIENT,
            client_secret_file=str(secret),
            redirect="https://fleet.example/api/v1/oidc/callback",
            ca_file=str(elsewhere.ca_pem),
            roles="ops=operator watchers=viewer",
        )
        with api_world(path, oidc=oidc, clock=clock) as world:
            yield world, provider


@pytest.fixture
def world(there: tuple[ApiWorld, OpenIdProvider]) -> ApiWorld:
    return there[0]


@pytest.fixture
def provider(there: tuple[ApiWorld, OpenIdProvider]) -> Iterator[OpenIdProvider]:
    made = there[1]
    there[0].clock.advance(KEPT_S)  # What was kept of it is believed no more, and who began is forgotten.
    made.asked.clear()
    yield made
    made.spoil, made.sign, made.described, made.broken = lambda claims: claims, None, {}, False


def sent(world: ApiWorld) -> tuple[str, str]:
    """Begin; return where the browser is sent, and its cookie."""
    world.client.cookies.clear()
    answer = world.client.get("/api/v1/oidc/start")
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    for rule in (f"{COOKIE}=", "Secure", "HttpOnly", "SameSite=lax", "Path=/"):
        assert rule in cookie
    assert "Domain" not in cookie
    return answer.headers["location"], answer.cookies[COOKIE]


def back(world: ApiWorld, brought: dict[str, str], cookie: str) -> httpx.Response:
    world.client.cookies.clear()
    headers = {"Cookie": f"{COOKIE}={cookie}"} if cookie else {}
    return world.client.get("/api/v1/oidc/callback", params=brought, headers=headers)


def sign_in(world: ApiWorld, provider: OpenIdProvider, name: str, **claims: Any) -> httpx.Response:
    provider.people[name] = claims
    url, cookie = sent(world)
    return back(world, provider.authorize(url, name), cookie)


def test_who_the_provider_vouches_for_gets_an_account_with_the_roles_it_says(
    world: ApiWorld, provider: OpenIdProvider
) -> None:
    answer = sign_in(world, provider, "ann", preferred_username="Ann Lee", groups=["ops", "staff"])
    assert answer.status_code == 200
    me = world.call(answer.json()["token"], "GET", "/me").json()
    assert (me["name"], me["roles"]) == ("ann-lee", ["operator"])
    # What they are there changes, and what they are called: they stay who they are.
    again = sign_in(world, provider, "ann", preferred_username="Ann Kim", groups="watchers")
    me = world.call(again.json()["token"], "GET", "/me").json()
    assert (me["name"], me["roles"]) == ("ann-lee", ["viewer"])
    assert world.call(answer.json()["token"], "GET", "/me").json()["roles"] == ["viewer"]
    told = [(each.action, each.actor) for each in world.store.audit.all() if each.object == "user:ann-lee"]
    assert told[:2] == [("user.add", "service:oidc"), ("user.sign-in", "ann-lee")]
    assert ("user.role", "service:oidc") in told


def test_nobody_from_elsewhere_becomes_an_account_that_is_there(
    world: ApiWorld, provider: OpenIdProvider
) -> None:
    world.user("root", Role.ADMIN)
    answer = sign_in(world, provider, "mallory", preferred_username="root", groups=["ops"])
    me = world.call(answer.json()["token"], "GET", "/me").json()
    assert me["name"] != "root"
    assert me["roles"] == ["operator"]


def test_without_a_role_or_disabled_nobody_gets_in(world: ApiWorld, provider: OpenIdProvider) -> None:
    for claims in ({}, {"groups": ["else"]}, {"groups": None}, {"groups": {"ops": 1}}, {"groups": [["ops"]]}):
        assert sign_in(world, provider, "bob", preferred_username="bob", **claims).status_code == 401
    assert world.store.accounts.get("bob") is None
    assert sign_in(world, provider, "carl", preferred_username="carl", groups=["ops"]).status_code == 200
    world.store.accounts.set_active(local_actor(), "carl", False)
    assert sign_in(world, provider, "carl", preferred_username="carl", groups=["ops"]).status_code == 401


@pytest.mark.parametrize(
    "spoil",
    [
        {"iss": "https://127.0.0.1:1"},
        {"aud": "another"},
        {"aud": ["another", "more"]},
        {"aud": [CLIENT, "another"], "azp": "another"},
        {"nonce": "of another sign-in"},
        {"nonce": None},
        {"exp": 1},
        {"exp": None},
        {"iat": 4_000_000_000},
        {"sub": None},
    ],
    ids=repr,
)
def test_a_token_that_is_not_for_this_sign_in_is_refused(
    world: ApiWorld, provider: OpenIdProvider, spoil: dict[str, Any]
) -> None:
    def spoiled(claims: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in {**claims, **spoil}.items() if value is not None}

    provider.spoil = spoiled
    answer = sign_in(world, provider, "eve", preferred_username="eve", groups=["ops"])
    assert answer.status_code == 401
    assert world.store.accounts.get("eve") is None


def test_a_token_that_another_key_or_no_key_signed_is_refused(
    world: ApiWorld, provider: OpenIdProvider
) -> None:
    other = ECKey.generate_key("P-256", {"kid": "one"})
    public = provider.key.as_pem(private=False)
    for sign in (
        lambda claims: jwt.encode({"alg": "ES256", "kid": "one"}, claims, other),
        lambda claims: by_hand("HS256", claims, hmac.new(public, digestmod="sha256")),
        lambda claims: by_hand("none", claims, None),
        lambda claims: "not.a.token",
        lambda claims: "",
    ):
        provider.sign = sign
        assert sign_in(world, provider, "eve", preferred_username="eve", groups=["ops"]).status_code == 401
    assert world.store.accounts.get("eve") is None


def by_hand(algorithm: str, claims: dict[str, Any], mac: hmac.HMAC | None) -> str:
    """Return a token as no library makes one: signed with what everybody has, or with nothing."""
    parts = [json.dumps({"alg": algorithm, "kid": "one"}).encode(), json.dumps(claims).encode()]
    body = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    if mac is not None:
        mac.update(body)
    signature = b"" if mac is None else base64.urlsafe_b64encode(mac.digest()).rstrip(b"=")
    return (body + b"." + signature).decode()


def test_a_browser_comes_back_once_and_only_the_one_that_was_sent(
    world: ApiWorld, provider: OpenIdProvider
) -> None:
    provider.people["dora"] = {"preferred_username": "dora", "groups": ["ops"]}
    url, cookie = sent(world)
    brought = provider.authorize(url, "dora")
    _, others = sent(world)
    for wrong in ("", others, cookie[:-1], "x"):
        assert back(world, brought, wrong).status_code == 401
    assert back(world, {**brought, "state": others}, cookie).status_code == 401
    assert back(world, brought, cookie).status_code == 200
    # Not even with another code that the provider gave out for it.
    assert back(world, provider.authorize(url, "dora"), cookie).status_code == 401


def test_a_code_of_another_sign_in_is_refused(world: ApiWorld, provider: OpenIdProvider) -> None:
    """PKCE: whoever steals a code lacks what it was asked for with."""
    provider.people["dora"] = {"preferred_username": "dora", "groups": ["ops"]}
    stolen = provider.authorize(sent(world)[0], "dora")["code"]
    url, cookie = sent(world)
    mine = provider.authorize(url, "dora")
    assert back(world, {**mine, "code": stolen}, cookie).status_code == 401


def test_who_takes_too_long_begins_again(world: ApiWorld, provider: OpenIdProvider) -> None:
    provider.people["dora"] = {"preferred_username": "dora", "groups": ["ops"]}
    url, cookie = sent(world)
    brought = provider.authorize(url, "dora")
    world.clock.advance(LIFE_S)
    assert back(world, brought, cookie).status_code == 401


@pytest.mark.parametrize(
    "described",
    [{"issuer": "https://elsewhere.example"}, {"token_endpoint": "http://127.0.0.1/token"}, {"jwks_uri": 7}],
    ids=repr,
)
def test_a_provider_that_is_another_or_unsafe_is_a_sentence(
    world: ApiWorld, provider: OpenIdProvider, described: dict[str, Any]
) -> None:
    provider.people["dora"] = {"preferred_username": "dora", "groups": ["ops"]}
    url, cookie = sent(world)
    brought = provider.authorize(url, "dora")
    provider.described = described
    world.clock.advance(KEPT_S)
    answer = back(world, brought, cookie)
    assert answer.status_code == 503
    assert "provider" in answer.json()["detail"]


def test_who_begins_makes_the_service_ask_the_provider_once_in_some_minutes(
    world: ApiWorld, provider: OpenIdProvider
) -> None:
    for _ in range(20):
        sent(world)
    assert provider.asked == ["/.well-known/openid-configuration"]
    for name in ("ann", "bea"):
        assert sign_in(world, provider, name, groups=["ops"]).status_code == 200
    assert provider.asked[1:] == ["/token", "/keys", "/token"]


def test_who_begins_too_often_waits(world: ApiWorld, provider: OpenIdProvider) -> None:
    answers = [world.client.get("/api/v1/oidc/start") for _ in range(OF_ADDRESS + 1)]
    assert [each.status_code for each in answers] == [303] * OF_ADDRESS + [429]
    assert answers[-1].headers["retry-after"] == "2"
    world.clock.advance(2)
    assert world.client.get("/api/v1/oidc/start").status_code == 303


def test_a_provider_that_fails_is_not_asked_again_at_once(world: ApiWorld, provider: OpenIdProvider) -> None:
    provider.broken = True
    for _ in range(3):
        answer = world.client.get("/api/v1/oidc/start")
        assert answer.status_code == 503
        assert "500" in answer.json()["detail"]
    assert len(provider.asked) == 1
    provider.broken = False
    world.clock.advance(FAILED_S)
    assert world.client.get("/api/v1/oidc/start").status_code == 303


def test_a_key_that_the_provider_signs_with_from_now_on_is_asked_for(
    world: ApiWorld, provider: OpenIdProvider
) -> None:
    assert sign_in(world, provider, "ann", groups=["ops"]).status_code == 200
    provider.key = ECKey.generate_key("P-256", {"kid": "two"})
    provider.sign = lambda claims: jwt.encode({"alg": "ES256", "kid": "two"}, claims, provider.key)
    # Not at every token that is of no known key.
    assert sign_in(world, provider, "ann", groups=["ops"]).status_code == 401
    world.clock.advance(KEYS_S)
    assert sign_in(world, provider, "ann", groups=["ops"]).status_code == 200
    provider.key = ECKey.generate_key("P-256", {"kid": "one"})


def test_no_proxy_of_the_environment_sees_a_sign_in(
    world: ApiWorld, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert sign_in(world, provider, "ann", groups=["ops"]).status_code == 200


def test_an_answer_of_the_provider_is_read_to_a_size(world: ApiWorld, provider: OpenIdProvider) -> None:
    provider.described = {"more": "x" * MAX_BYTES}
    answer = world.client.get("/api/v1/oidc/start")
    assert answer.status_code == 503
    assert "too long" in answer.json()["detail"]


def test_of_all_addresses_together_so_many_begin_in_a_minute() -> None:
    starts = Starts(ManualClock())
    for number in range(OF_ALL):
        starts.begin(f"10.0.{number // 250}.{number % 250}")
    with pytest.raises(Problem, match="Too many sign in elsewhere"):
        starts.begin("192.0.2.1")
    assert OF_ALL * LIFE_S / 60 <= MAX_ERRANDS, "nobody who may come back is forgotten for others"


def test_where_nobody_signs_in_elsewhere_the_routes_say_so(tmp_path: Path) -> None:
    with api_world(tmp_path) as world:
        assert world.client.get("/api/v1/oidc/start").status_code == 422
        assert world.client.get("/api/v1/oidc/callback?state=a&code=b").status_code == 422


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "http://id.example"},
        {"redirect": "http://fleet.example/"},
        {"client_id": ""},
        {"roles": ""},
        {"roles": "ops=king"},
        {"roles": "ops"},
        {"scope": "profile"},
    ],
    ids=repr,
)
def test_settings_that_would_let_in_the_wrong_people_are_refused(wrong: dict[str, str]) -> None:
    good = OidcSettings(
        issuer="https://id.example",
        client_id="umbel",
        redirect="https://fleet.example/back",
        roles="ops=operator",
    )
    with pytest.raises(UsageError):
        replace(good, **wrong)  # type: ignore[arg-type]
