"""`umbel login`, `logout` and `whoami` against a service that really listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from api_world import ApiWorld, api_world
from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    RemoteProtocolError,
    StorageError,
    UnavailableError,
    UsageError,
    VerificationError,
)
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.passwords import hash_password
from umbel_server.access.permissions import HELD, Permission
from umbel_server.api import problems
from umbel_server.cli import fleet
from umbel_server.remote.client import error_of
from umbel_server.remote.login_command import login, logout, whoami
from umbel_server.remote.logins import Logins, server_of

RUNNER = CliRunner()
PASSWORD = "correct horse battery"
APPS = {"login": login, "logout": logout, "whoami": whoami, "fleet": fleet}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiWorld]:
    with api_world(tmp_path_factory.mktemp("login")) as made:
        made.user("ann", Role.OPERATOR, password=hash_password(PASSWORD))
        yield made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where whoever signs in keeps their settings; nobody is signed in."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("UMBEL_FLEET", "UMBEL_SERVER", "UMBEL_API_TOKEN", "UMBEL_SERVER_CA"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    return tmp_path


def run(words: str, *more: object, stdin: str | None = None) -> str:
    """Run a command, and return what it printed; its error is raised here."""
    name, *rest = words.split()
    result = RUNNER.invoke(APPS[name], [*rest, *map(str, more)], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def address(world: ApiWorld) -> str:
    return str(world.client.base_url).rstrip("/")


def sign_in(world: ApiWorld, home: Path, *more: object) -> str:
    how = ("--user", "ann", "--password-file", home / "password", "--ca", world.fleet.ca_pem)
    return run("login --server", address(world), *how, *more)


def test_who_signs_in_is_known_by_a_token_that_nobody_else_reads_and_that_is_never_shown(
    world: ApiWorld, home: Path
) -> None:
    said = sign_in(world, home)
    file = home / "config" / "umbel" / "logins.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    (kept,) = Logins.of_user().all()
    assert (kept.account, kept.expires_s) == ("ann", world.clock() + 12 * 3600)
    me = run("whoami")
    assert "ann (operator)" in me
    for shown in (said, me, run("whoami --json"), repr(kept)):
        assert kept.token not in shown
        assert PASSWORD not in shown
    assert PASSWORD not in file.read_text()
    assert list(file.parent.iterdir()) == [file]


def test_a_login_that_ends_is_revoked_and_forgotten(world: ApiWorld, home: Path) -> None:
    sign_in(world, home)
    (kept,) = Logins.of_user().all()
    assert world.call(kept.token, "GET", "/me").status_code == 200
    assert "signed out" in run("logout")
    assert world.call(kept.token, "GET", "/me").status_code == 401
    assert Logins.of_user().all() == ()
    assert run("logout") == "You are not signed in.\n"


def test_a_second_login_takes_the_place_of_the_first_and_revokes_it(world: ApiWorld, home: Path) -> None:
    sign_in(world, home)
    (first,) = Logins.of_user().all()
    # The authority is known by now.
    run("login --server", address(world), "--user", "ann", "--password-file", home / "password")
    (second,) = Logins.of_user().all()
    assert second.ca == first.ca
    assert world.call(first.token, "GET", "/me").status_code == 401
    assert world.call(second.token, "GET", "/me").status_code == 200


def test_a_token_is_for_what_was_asked_and_no_more_than_the_account_may(world: ApiWorld, home: Path) -> None:
    sign_in(world, home, "--scope", "devices:read", "--scope", "users", "--scope", "audit")
    may = json.loads(run("whoami --json"))["permissions"]
    assert may == ["audit:read", "devices:read"]
    with pytest.raises(RefusedError, match="may do nothing of what"):
        sign_in(world, home, "--scope", "users")


@pytest.mark.parametrize("narrow", [{Permission.DEVICES_READ}, HELD[Role.OPERATOR]])
def test_a_program_signs_in_with_its_token_from_standard_input_and_takes_it_back(
    world: ApiWorld, home: Path, narrow: set[Permission]
) -> None:
    token = world.token("ann", narrow)
    run("login --server", address(world), "--ca", world.fleet.ca_pem, "--token-file", "-", stdin=f"{token}\n")
    assert json.loads(run("whoami --json"))["permissions"] == sorted(narrow)
    run("logout")
    # Whatever its scopes are: to give itself up, a token needs none.
    assert world.call(token, "GET", "/me").status_code == 401


def test_an_authority_is_pinned_by_the_fingerprint_that_the_service_prints(
    world: ApiWorld, home: Path
) -> None:
    fingerprint = run("fleet fingerprint --fleet", world.fleet.path).strip()
    how = ("--user", "ann", "--password-file", home / "password")
    run("login --server", address(world), *how, "--fingerprint", fingerprint)
    (kept,) = Logins.of_user().all()
    assert kept.ca == world.fleet.ca_pem.read_text()
    run("logout")
    last = "0" if fingerprint[-1] != "0" else "1"
    with pytest.raises(CertificateError, match="which is another"):
        run("login --server", address(world), *how, "--fingerprint", fingerprint[:-1] + last)
    with pytest.raises(CertificateError, match="which is another"):
        run("login --server", address(world), *how, "--fingerprint", fingerprint[:20])
    with pytest.raises(UsageError, match="Nothing says that"):
        run("login --server", address(world), *how)
    assert Logins.of_user().all() == ()


def test_no_password_goes_to_who_is_not_vouched_for(
    world: ApiWorld, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    failed = world.store.audit.newest()
    with api_world(tmp_path_factory.mktemp("other")) as other:
        how = ("--user", "ann", "--password-file", home / "password", "--ca", other.fleet.ca_pem)
        with pytest.raises(CertificateError, match="not vouched for"):
            run("login --server", address(world), *how)
    assert world.store.audit.newest() == failed


def test_a_file_of_logins_that_others_may_read_is_not_used_until_it_is_given_up(
    world: ApiWorld, home: Path
) -> None:
    sign_in(world, home)
    (kept,) = Logins.of_user().all()
    Logins.of_user().path.chmod(0o640)
    with pytest.raises(StorageError, match="others may read it"):
        run("whoami")
    run("logout --all")
    assert world.call(kept.token, "GET", "/me").status_code == 401


def test_a_wrong_password_is_refused_in_a_sentence(world: ApiWorld, home: Path) -> None:
    (home / "password").write_text("something else entirely\n")
    with pytest.raises(RefusedError, match="do not match an account"):
        sign_in(world, home)


def test_a_login_whose_token_ended_says_how_to_sign_in_again(world: ApiWorld, home: Path) -> None:
    sign_in(world, home)
    (kept,) = Logins.of_user().all()
    world.store.api_tokens.revoke(local_actor(), kept.token_id)
    with pytest.raises(RefusedError, match="umbel login --server"):
        run("whoami")
    assert run("logout").startswith("You are signed out")


def test_a_service_that_is_gone_is_said_to_be_and_its_login_can_be_forgotten(
    world: ApiWorld, home: Path
) -> None:
    sign_in(world, home)
    (kept,) = Logins.of_user().all()
    Logins.of_user().keep(replace(kept, server="https://127.0.0.1:1"))
    with pytest.raises(UnavailableError, match="cannot be reached"):
        run("whoami")
    assert "could not be revoked" in run("logout")
    assert [each.server for each in Logins.of_user().all()] == [kept.server]


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("https://fleet.example:8480", "https://fleet.example:8480"),
        ("fleet.example", "https://fleet.example"),
        ("https://[::1]:8480/", "https://[::1]:8480"),
    ],
)
def test_a_service_is_known_by_host_and_port(text: str, server: str) -> None:
    assert server_of(text) == server


@pytest.mark.parametrize(
    "text",
    ["http://fleet.example", "https://", "https://a b", "https://x/path", "https://x:99999", "https://u:p@x"],
)
def test_what_is_no_service_is_not_asked_for_anything(text: str) -> None:
    with pytest.raises(UsageError):
        server_of(text)


def test_who_answers_without_being_a_fleets_service_is_said_to_break_the_rules() -> None:
    asked = httpx.Request("GET", "https://proxy.example")
    for body in (b"<html>", b"[]", b'{"detail": 1', b"null"):
        said = error_of("https://proxy.example", httpx.Response(502, content=body, request=asked))
        assert type(said) is RemoteProtocolError
        assert "\n" not in str(said)


def test_every_kind_of_error_ends_a_command_as_it_does_in_the_fleets_directory() -> None:
    app = FastAPI()
    problems.install(app)
    mappable = [UsageError, RefusedError, VerificationError, UnavailableError, StorageError, CertificateError]
    wanted = {kind.__name__: kind for kind in mappable}

    @app.get("/{kind}")
    def fail(kind: str) -> None:
        raise wanted[kind]("Something is wrong.")

    async def ask(name: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://x") as client:
            return await client.get(f"/{name}")

    for name, kind in wanted.items():
        back = error_of("https://x", asyncio.run(ask(name)))
        assert (back.exit_code, str(back)) == (kind.exit_code, "Something is wrong.")
