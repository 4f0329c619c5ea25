"""The console's door for people whom an OpenID provider vouches for: a session for who is meant, for nobody else none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from openid_provider import CLIENT, SECRET, OpenIdProvider, openid_provider
from service_fleet import ManualClock, make_fleet
from umbel_proto.errors import UsageError
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.oidc import LIFE_S
from umbel_server.access.oidc_asking import KEPT_S
from umbel_server.access.oidc_settings import OidcSettings
from umbel_server.api import cookies
from umbel_server.api.starts import OF_ADDRESS

BACK = "https://console.example/api/v1/oidc/callback"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ConsoleWorld, OpenIdProvider]]:
    path = tmp_path_factory.mktemp("oidc-console")
    elsewhere, clock = make_fleet(path / "elsewhere"), ManualClock()
    secret = path / "secret"
    secret.write_text(SECRET + "\n")
    with openid_provider(elsewhere, clock) as provider:
        oidc = OidcSettings(
            issuer=provider.issuer,
            client_id=CLIENT,
            client_secret_file=str(secret),
            redirect="https://api.example/api/v1/oidc/callback",
            console_redirect=BACK,
            ca_file=str(elsewhere.ca_pem),
            roles="ops=operator watchers=viewer",
        )
        with console_world(path, oidc=oidc, clock=clock) as world:
            yield world, provider


@pytest.fixture
def world(there: tuple[ConsoleWorld, OpenIdProvider]) -> ConsoleWorld:
    return there[0]


@pytest.fixture
def provider(there: tuple[ConsoleWorld, OpenIdProvider]) -> Iterator[OpenIdProvider]:
    made = there[1]
    there[0].clock.advance(KEPT_S)  # What was kept of it is believed no more, and who began is forgotten.
    made.people["ann"] = {"preferred_username": "ann", "groups": ["ops"]}
    yield made
    made.spoil, made.described = lambda claims: claims, {}
    made.people.clear()


def sent(visitor: Visitor, path: str = "/sign-in/provider") -> str:
    """Begin in a browser; return where it is led."""
    answer = visitor.get(path)
    assert answer.status_code == 303
    told = answer.headers["set-cookie"].lower()
    for rule in (f"{cookies.SIGN_IN.lower()}=", "secure", "httponly", "samesite=lax", "path=/"):
        assert rule in told
    return answer.headers["location"]


def back(visitor: Visitor, brought: dict[str, str]) -> httpx.Response:
    # As a browser says of a link on the provider's page.
    return visitor.get("/api/v1/oidc/callback", params=brought, headers={"sec-fetch-site": "cross-site"})


def signed_in(visitor: Visitor) -> bool:
    return visitor.get("/").status_code == 200


def refused(answer: httpx.Response, visitor: Visitor, *, says: str, status: int = 401) -> None:
    """Check that nobody was let in, and that the page says why and lets them begin again."""
    assert answer.status_code == status
    assert says in text_of(answer.text)
    assert cookies.SESSION not in answer.headers.get("set-cookie", "")
    assert 'href="/sign-in/provider?next=' in answer.text
    assert not signed_in(visitor)


def test_who_the_provider_vouches_for_is_led_back_to_where_they_were_going(
    world: ConsoleWorld, provider: OpenIdProvider
) -> None:
    visitor = world.visitor()
    asked = visitor.client.get("/devices?q=rose&status=online", follow_redirects=True)
    (link,) = [part.split('"')[0] for part in asked.text.split('href="') if part.startswith("/sign-in/prov")]
    url = sent(visitor, link.replace("&amp;", "&"))
    assert parse_qs(urlsplit(url).query)["redirect_uri"] == [BACK]
    answer = back(visitor, provider.authorize(url, "ann"))
    # No redirect: it would still be the provider's navigation, and come without the strict cookie.
    assert answer.status_code == 200
    assert 'content="0; url=/devices?q=rose&amp;status=online"' in answer.text
    told = answer.headers["set-cookie"].lower()
    assert f"{cookies.SESSION.lower()}=" in told
    assert "samesite=strict" in told
    assert "a-operator" not in visitor.get("/").text
    assert signed_in(visitor)
    account = world.store.accounts.get("ann")
    assert account is not None
    assert account.roles == {Role.OPERATOR}
    told_of = [(each.action, each.actor) for each in world.store.audit.all() if each.object == "user:ann"]
    assert told_of == [("user.add", "service:oidc"), ("user.sign-in", "ann")]


def test_what_somebody_is_at_the_provider_now_is_what_they_may_here(
    world: ConsoleWorld, provider: OpenIdProvider
) -> None:
    for groups, may in (("ops", 200), ("watchers", 403)):
        provider.people["ida"] = {"preferred_username": "ida", "groups": [groups]}
        visitor = world.visitor()
        assert back(visitor, provider.authorize(sent(visitor), "ida")).status_code == 200
        assert visitor.get("/rollouts/-/new").status_code == may


@pytest.mark.parametrize("asked", ["https://evil.example", "//evil.example", "/\\evil.example", "/a\nb"])
def test_nobody_is_led_to_another_site_afterwards(
    world: ConsoleWorld, provider: OpenIdProvider, asked: str
) -> None:
    visitor = world.visitor()
    begun = visitor.get("/sign-in/provider", params={"next": asked}).headers["location"]
    answer = back(visitor, provider.authorize(begun, "ann"))
    assert 'content="0; url=/"' in answer.text


@pytest.mark.parametrize(
    "spoil",
    [
        {"nonce": "of another sign-in"},
        {"aud": "another"},
        {"aud": [CLIENT, "another"], "azp": "another"},
        {"iss": "https://127.0.0.1:1"},
        {"exp": 1},
        {"nonce": None},
    ],
    ids=repr,
)
def test_a_token_that_is_not_for_this_sign_in_opens_no_session(
    world: ConsoleWorld, provider: OpenIdProvider, spoil: dict[str, Any]
) -> None:
    provider.people["eve"] = {"preferred_username": "eve", "groups": ["ops"]}

    def spoiled(claims: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in {**claims, **spoil}.items() if value is not None}

    provider.spoil = spoiled
    visitor = world.visitor()
    answer = back(visitor, provider.authorize(sent(visitor), "eve"))
    refused(answer, visitor, says="not one for this sign-in" if "azp" not in spoil else "another client")
    assert world.store.accounts.get("eve") is None


def test_a_code_opens_one_session_and_only_for_the_browser_that_was_sent(
    world: ConsoleWorld, provider: OpenIdProvider
) -> None:
    ours, other = world.visitor(), world.visitor()
    url = sent(ours)
    brought = provider.authorize(url, "ann")
    # Somebody is made to follow another's link: what they would do then would be in the other's name.
    refused(back(other, brought), other, says="Nobody is expected back")
    theirs = provider.authorize(sent(other), "ann")
    refused(back(ours, {**brought, "state": theirs["state"]}), ours, says="Nobody is expected back")
    refused(back(ours, {**brought, "state": ""}), ours, says="Nobody is expected back")
    assert back(ours, brought).status_code == 200
    assert signed_in(ours)
    again = world.visitor()
    again.client.cookies.update(ours.client.cookies)
    again.client.cookies.delete(cookies.SESSION)
    refused(back(again, brought), again, says="Nobody is expected back")


def test_a_stolen_code_is_worth_nothing_without_what_it_was_asked_for_with(
    world: ConsoleWorld, provider: OpenIdProvider
) -> None:
    """PKCE: the provider compares the code with the verifier of whoever asked for it."""
    stolen = provider.authorize(sent(world.visitor()), "ann")["code"]
    thief = world.visitor()
    mine = provider.authorize(sent(thief), "ann")
    refused(back(thief, {**mine, "code": stolen}), thief, says="does not vouch")


def test_who_says_no_there_or_takes_too_long_is_told_and_may_begin_again(
    world: ConsoleWorld, provider: OpenIdProvider
) -> None:
    visitor = world.visitor()
    state = parse_qs(urlsplit(sent(visitor, "/sign-in/provider?next=/runs")).query)["state"][0]
    answer = back(visitor, {"error": "access_denied", "state": state})
    refused(answer, visitor, says="did not sign you in")
    assert 'href="/sign-in/provider?next=/runs"' in answer.text
    brought = provider.authorize(sent(visitor), "ann")
    world.clock.advance(LIFE_S)
    refused(back(visitor, brought), visitor, says="Nobody is expected back")


def test_without_a_role_or_disabled_nobody_gets_in(world: ConsoleWorld, provider: OpenIdProvider) -> None:
    for claims in ({}, {"groups": ["else"]}, {"groups": {"ops": 1}}):
        provider.people["bob"] = {"preferred_username": "bob", **claims}
        visitor = world.visitor()
        answer = back(visitor, provider.authorize(sent(visitor), "bob"))
        refused(answer, visitor, says="no role in this fleet")
    assert world.store.accounts.get("bob") is None
    provider.people["carl"] = {"preferred_username": "carl", "groups": ["ops"]}
    carl = world.visitor()
    assert back(carl, provider.authorize(sent(carl), "carl")).status_code == 200
    world.store.accounts.set_active(local_actor(), "carl", False)
    assert not signed_in(carl)
    refused(back(carl, provider.authorize(sent(carl), "carl")), carl, says="is disabled")


def test_nobody_from_elsewhere_becomes_an_account_that_is_there(
    world: ConsoleWorld, provider: OpenIdProvider
) -> None:
    admin = world.account(Role.ADMIN)
    provider.people["mallory"] = {"preferred_username": admin.name, "groups": ["ops"]}
    visitor = world.visitor()
    assert back(visitor, provider.authorize(sent(visitor), "mallory")).status_code == 200
    assert visitor.get("/settings/users").status_code == 403


def test_a_provider_that_does_not_answer_as_one_is_a_sentence(
    world: ConsoleWorld, provider: OpenIdProvider
) -> None:
    provider.described = {"issuer": "https://elsewhere.example"}
    answer = world.visitor().get("/sign-in/provider")
    assert answer.status_code == 503
    assert "another issuer" in text_of(answer.text)


def test_who_begins_too_often_waits(world: ConsoleWorld, provider: OpenIdProvider) -> None:
    answers = [world.visitor().get("/sign-in/provider") for _ in range(OF_ADDRESS + 1)]
    assert [each.status_code for each in answers] == [303] * OF_ADDRESS + [429]
    assert "Too many sign in elsewhere: wait 2 s." in text_of(answers[-1].text)
    assert answers[-1].headers["retry-after"] == "2"


def test_a_console_redirect_that_is_no_https_url_is_refused() -> None:
    with pytest.raises(UsageError, match="console_redirect"):
        OidcSettings(
            issuer="https://id.example",
            client_id="umbel",
            redirect=BACK,
            console_redirect="http://console.example/back",
            roles="ops=operator",
        )
