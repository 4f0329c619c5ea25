"""The settings: accounts and tokens are made and ended by clicking; of keys and policy nothing secret is shown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.oidc_settings import OidcSettings
from umbel_server.access.permissions import HELD, Permission
from umbel_server.console.screens.settings import TABS
from umbel_server.store.api_tokens import SignInError
from umbel_server.store.audit import Sought

TOKEN = re.compile(r"umbel_[A-Za-z0-9_-]+")
OIDC = OidcSettings(
    issuer="https://id.example.org",
    client_id="umbel",
    client_secret_file="oidc.secret",
    redirect="https://fleet.example.org/api/v1/oidc/callback",
    roles="umbel-admins=admin staff=viewer",
)


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("settings"), oidc=OIDC) as made:
        made.store.accounts.add(local_actor(), "robot", roles=frozenset({Role.CI}))
        yield made


@pytest.fixture(scope="module")
def admin(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.ADMIN)


@pytest.fixture(scope="module")
def viewer(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.VIEWER)


def made_by(visitor: Visitor, **fields: str | list[str]) -> tuple[str, str]:
    """Make a token by its form, and return it with its id."""
    answer = visitor.post("/settings/tokens", days="7", **fields)
    assert answer.status_code == 200
    (text,) = set(TOKEN.findall(answer.text))
    (name,) = set(re.findall(r"tok-[0-9a-f]{10}", answer.text))
    return text, name


# Tokens


def test_a_token_is_shown_once_works_and_is_revoked_by_its_typed_name(
    console: ConsoleWorld, viewer: Visitor
) -> None:
    text, name = made_by(viewer, purpose="nightly export", scope=["devices:read", "runs:read"])
    bearer = console.store.api_tokens.bearer(text)
    assert bearer.permissions == {Permission.DEVICES_READ, Permission.RUNS_READ}
    page = viewer.get("/settings/tokens").text
    assert name in page
    assert "nightly export" in page
    assert not TOKEN.findall(page)
    ask = text_of(viewer.get(f"/settings/tokens/{name}/revoke").text)
    assert "It stands for a-viewer, for nightly export" in ask
    wrong = viewer.post(f"/settings/tokens/{name}/revoke", typed="tok-0", reason="lost")
    assert wrong.status_code == 422
    assert console.store.api_tokens.bearer(text)
    gone = viewer.post(f"/settings/tokens/{name}/revoke", typed=name, reason="the laptop was lost")
    assert (gone.status_code, gone.headers["location"]) == (303, "/settings/tokens")
    with pytest.raises(SignInError):
        console.store.api_tokens.bearer(text)
    entries = console.store.audit.latest(Sought(object=f"token:{name}"), limit=9)
    assert [(each.actor, each.action, each.reason) for each in entries] == [
        ("a-viewer", "token.revoke", "the laptop was lost"),
        ("a-viewer", "token.create", ""),
    ]
    assert "revoked" in text_of(viewer.get("/settings/tokens").text)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"days": "7", "scope": ["users:write"]}, "You may not do users:write yourself"),
        ({"days": "7"}, "A token needs a scope"),
        ({"days": "7", "scope": ["everything"]}, "is not a scope"),
        ({"days": "9999", "scope": ["runs:read"]}, "choose up to 366 days"),
        ({"days": "0", "scope": ["runs:read"]}, "cannot be valid for 0 s"),
        ({"days": "week", "scope": ["runs:read"]}, "no whole number"),
        ({"days": "7", "scope": ["runs:read"], "user": "robot"}, "no program robot that you look after"),
    ],
)
def test_what_is_no_token_is_said_and_none_is_made(
    console: ConsoleWorld, viewer: Visitor, fields: dict[str, str | list[str]], sentence: str
) -> None:
    before = console.store.api_tokens.all(account="a-viewer")
    answer = viewer.post("/settings/tokens", purpose="trial", **fields)
    assert answer.status_code in (409, 422)
    assert sentence in text_of(answer.text)
    assert console.store.api_tokens.all(account="a-viewer") == before


def test_a_program_gets_its_token_from_who_looks_after_it_and_a_person_does_not(
    console: ConsoleWorld, admin: Visitor
) -> None:
    text, _ = made_by(admin, user="robot", scope=["registry:write"], purpose="pipeline")
    assert console.store.api_tokens.bearer(text).account.name == "robot"
    person = admin.post("/settings/tokens", days="7", user="a-viewer", scope=["runs:read"])
    assert person.status_code == 409
    assert "makes tokens of their own" in text_of(person.text)


def test_nobody_sees_or_ends_the_tokens_of_others_who_does_not_look_after_them(
    console: ConsoleWorld, admin: Visitor, viewer: Visitor
) -> None:
    _, name = made_by(admin, scope=["runs:read"], purpose="of the admin")
    assert name not in viewer.get("/settings/tokens").text
    assert name not in viewer.get("/settings/tokens?user=a-admin").text
    assert name not in viewer.get("/settings/tokens?user=a-admin&format=json").text
    assert viewer.post(f"/settings/tokens/{name}/revoke", typed=name, reason="x").status_code == 404
    assert console.store.api_tokens.get(name).revoked_s is None  # type: ignore[union-attr]
    _, theirs = made_by(viewer, scope=["runs:read"], purpose="of the viewer")
    assert theirs in admin.get("/settings/tokens?user=a-viewer").text
    assert admin.post(f"/settings/tokens/{theirs}/revoke", typed=theirs, reason="left").status_code == 303


# Accounts


def test_an_account_is_made_changed_refused_and_let_in_again(console: ConsoleWorld, admin: Visitor) -> None:
    short = admin.post("/settings/users", name="rose", role=["viewer"], password="short", reason="new")
    assert short.status_code == 422
    assert "choose 12 to 256" in text_of(short.text)
    assert 'value="rose"' in short.text  # What was typed is still there, and no password is.
    assert "short" not in short.text
    made = admin.post(
        "/settings/users",
        name="rose",
        role=["viewer", "reviewer"],
        password="longer than twelve",
        reason="new",
    )
    assert made.status_code == 303
    visitor = console.visitor()
    assert visitor.sign_in("rose", "longer than twelve").status_code == 303
    page = admin.get("/settings/users/rose").text
    assert re.findall(r'name="seen" value="([a-z]+)"', page) == ["reviewer", "viewer"]
    late = admin.post("/settings/users/rose/roles", seen=["viewer"], role=["operator"], reason="moved")
    assert late.status_code == 409
    assert "Somebody else has just changed the roles of rose" in text_of(late.text)
    kept = admin.post(
        "/settings/users/rose/roles", seen=["viewer", "reviewer"], role=["operator"], reason="moved"
    )
    assert kept.status_code == 303
    account = console.store.accounts.get("rose")
    assert account is not None
    assert account.roles == {Role.OPERATOR}
    assert admin.post("/settings/users/rose/disable", typed="rose", reason="left").status_code == 303
    assert visitor.get("/settings/tokens").status_code == 303  # Signed out, on the way to the sign-in.
    assert admin.post("/settings/users/rose/enable", typed="rose", reason="back").status_code == 303
    actions = [each.action for each in console.store.audit.latest(Sought(object="user:rose"), limit=9)]
    assert actions == ["user.enable", "user.disable", "user.role", "user.sign-in", "user.add"]


def test_another_password_ends_what_was_signed_in_with_the_old(console: ConsoleWorld, admin: Visitor) -> None:
    admin.post("/settings/users", name="iris", role=["viewer"], password="first of its kind", reason="new")
    visitor = console.visitor()
    assert visitor.sign_in("iris", "first of its kind").status_code == 303
    assert admin.post("/settings/users/iris/password", password="second of its kind").status_code == 422
    done = admin.post("/settings/users/iris/password", password="second of its kind", reason="lost")
    assert done.status_code == 303
    assert visitor.get("/settings/tokens").status_code == 303
    assert console.visitor().sign_in("iris", "second of its kind").status_code == 303


def test_nobody_shuts_themselves_out(console: ConsoleWorld, admin: Visitor) -> None:
    answer = admin.post("/settings/users/a-admin/disable", typed="a-admin", reason="oops")
    assert answer.status_code == 409
    assert "You would shut yourself out" in text_of(answer.text)
    less = admin.post("/settings/users/a-admin/roles", seen=["admin"], role=["viewer"], reason="oops")
    assert less.status_code == 409
    account = console.store.accounts.get("a-admin")
    assert account is not None
    assert account.active
    assert account.roles == {Role.ADMIN}


def test_accounts_are_for_administrators_only(console: ConsoleWorld, viewer: Visitor) -> None:
    for path in ("/settings/users", "/settings/users/robot", "/settings/users?format=csv"):
        assert viewer.get(path).status_code == 403
    for path in ("/settings/users", "/settings/users/robot/roles", "/settings/users/robot/disable"):
        answer = viewer.post(path, name="eve", role=["admin"], typed="robot", reason="x")
        assert answer.status_code == 403
    assert console.store.accounts.get("eve") is None
    assert "/settings/users" not in viewer.get("/settings").text


def test_accounts_are_exported_without_a_password(console: ConsoleWorld, admin: Visitor) -> None:
    page = admin.get("/settings/users?format=csv").text
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(page))}
    assert rows["robot"]["signs_in"] == "tokens"
    assert rows["a-admin"]["signs_in"] == "password"
    assert "argon2" not in page


# What only shows


def test_each_page_of_the_settings_opens_and_leads_to_the_others(admin: Visitor) -> None:
    for tab in TABS:
        page = admin.get(tab.path)
        assert page.status_code == 200, tab.path
        assert all(f'href="{other.path}"' in page.text for other in TABS)


def test_the_policy_and_retention_are_shown_with_the_command_that_changes_them(
    console: ConsoleWorld, viewer: Visitor
) -> None:
    told = text_of(viewer.get("/settings").text)
    for words in (
        "3 devices",
        "ε 8.00 at δ 1e-06",
        "umbel fleet policy --charging",
        "raw_days 60",
        "fleet.toml",
    ):
        assert words in told, words


def test_keys_are_told_with_who_has_them_and_none_is_shown(console: ConsoleWorld, viewer: Visitor) -> None:
    page = viewer.get("/settings/keys").text
    told = text_of(page)
    assert "umbel fleet rotate" in told
    assert console.fleet.telemetry_public().key_id in told
    for role in ("root", "targets", "snapshot", "timestamp"):
        assert role in told
    rows = viewer.get("/settings/keys?format=json").json()
    assert {row["name"]: row["held"] for row in rows}["root"] == "here"
    for path in (console.fleet.path / "keys").glob("*.key"):
        secret = path.read_bytes()
        if b"PRIVATE" in secret:
            assert secret.splitlines()[1].decode() not in page


def test_a_fleet_without_signed_metadata_still_shows_its_keys(console: ConsoleWorld, viewer: Visitor) -> None:
    kept = console.fleet.trust.rename(console.fleet.trust.with_name("trust-away"))
    try:
        page = viewer.get("/settings/keys")
        assert page.status_code == 200
        assert "telemetry" in page.text
    finally:
        if console.fleet.trust.exists():
            import shutil

            shutil.rmtree(console.fleet.trust)
        kept.rename(console.fleet.trust)


def test_the_roles_are_those_that_decide(viewer: Visitor) -> None:
    rows = {row["permission"]: row for row in viewer.get("/settings/roles?format=json").json()}
    assert {role for role in Role if rows["registry:approve"][role]} == {
        role for role in Role if Permission.REGISTRY_APPROVE in HELD[role]
    }


def test_the_provider_is_shown_without_its_secret(console: ConsoleWorld, viewer: Visitor) -> None:
    page = viewer.get("/settings/sign-in").text
    assert "https://id.example.org" in page
    assert "umbel-admins" in page
    assert "oidc.secret" not in page


def test_the_privacy_of_a_fleet_that_never_trained_is_unspent(console: ConsoleWorld, viewer: Visitor) -> None:
    told = text_of(viewer.get("/settings/privacy").text)
    assert "No run is under way" in told
    assert "Most that one has spent nothing" in told
    assert viewer.get("/settings/privacy?format=json").json() == []
