"""Every screen and button of the console against everybody who has no business there; a new one is here by itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from console_world import PASSWORD, ConsoleWorld, Visitor, console_world, screen_routes
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import HELD, Permission
from umbel_server.console.app import ROUTERS
from umbel_server.console.guard import OpenScreen, ScreenRoute
from umbel_server.console.static_files import FILES, HERE, static, static_files
from umbel_server.store.sessions import IDLE_S, LIFE_S

ROUTES = screen_routes()
OPEN = {
    ("GET", "/sign-in"),
    ("POST", "/sign-in"),
    ("GET", "/sign-in/provider"),
    ("GET", "/api/v1/oidc/callback"),
    ("GET", "/static/{digest}/{name:path}"),
}
"""What nobody signs in for. Another one is a decision, to be written here."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "strict-transport-security": "max-age=31536000",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("console-doors")) as made:
        yield made


@pytest.fixture(scope="module")
def visitors(world: ConsoleWorld) -> dict[Role, Visitor]:
    return {role: world.signed_in(role) for role in Role}


def filled(path: str) -> str:
    """Return a route's path with something in its places that is nowhere."""
    path = re.sub(r"\{(version|other|number|round|round_number|seq|sequence|id)(:int)?\}", "1", path)
    return re.sub(r"\{[^}]*\}", "nobody", path)


def test_nothing_is_open_that_is_not_written_down() -> None:
    open_routes = {
        (method, route.path)
        for router in ROUTERS
        for route in router.routes
        if not isinstance(route, ScreenRoute)
        for method in route.methods
    }
    assert open_routes == OPEN
    assert all(isinstance(route, ScreenRoute | OpenScreen) or "static" in route.path
               for router in ROUTERS for route in router.routes)  # fmt: skip


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _ in ROUTES])
def test_who_is_not_signed_in_is_led_to_the_sign_in(world: ConsoleWorld, method: str, path: str) -> None:
    answer = world.visitor().client.request(method, filled(path))
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/sign-in?")
    assert ("lost=1" in answer.headers["location"]) == (method == "POST")


@pytest.mark.parametrize(
    ("method", "path", "permission"), [(m, p, each) for m, p, each in ROUTES if each is not None]
)
def test_who_may_not_is_told_which_role_may(
    visitors: dict[Role, Visitor], method: str, path: str, permission: Permission
) -> None:
    for role, visitor in visitors.items():
        if permission in HELD[role]:
            continue
        answer = visitor.client.request(
            method, filled(path), data={"csrf": visitor.csrf} if method == "POST" else None
        )
        assert answer.status_code == 403, (role, path)
        assert str(permission) in answer.text
        assert "admin" in answer.text
        assert f"umbel user role a-{role} ROLE" in answer.text


@pytest.mark.parametrize("path", [path for method, path, _ in ROUTES if method == "POST"])
def test_a_form_without_the_sessions_token_does_nothing(
    world: ConsoleWorld, visitors: dict[Role, Visitor], path: str
) -> None:
    admin, other = visitors[Role.ADMIN], visitors[Role.VIEWER]
    before = world.store.audit.newest()
    for data in ({}, {"csrf": ""}, {"csrf": other.csrf}, {"csrf": admin.csrf[:-1]}, {"csrf": "é"}):
        answer = admin.client.post(filled(path), data=data)
        assert answer.status_code == 403
        assert "nothing was done" in answer.text
    foreign = {"sec-fetch-site": "cross-site"}
    answer = admin.client.post(filled(path), data={"csrf": admin.csrf}, headers=foreign)
    assert answer.status_code == 403
    assert world.store.audit.newest() == before


def test_every_kind_of_answer_carries_the_headers(world: ConsoleWorld, visitors: dict[Role, Visitor]) -> None:
    admin = visitors[Role.ADMIN]
    answers = [
        admin.get("/"),
        admin.get("/nowhere"),
        admin.get("/?range=century"),
        admin.post("/sign-out-of-something"),
        world.visitor().get("/"),
        world.visitor().get("/sign-in"),
        admin.get(static("console.js")),
        visitors[Role.CI].get("/"),
    ]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, answer.url
    for answer in answers[:6]:
        assert answer.headers["cache-control"] == "no-store"


def test_the_cookie_is_for_this_host_over_tls_and_for_no_script(world: ConsoleWorld) -> None:
    world.signed_in(Role.ADMIN)
    answer = world.visitor().sign_in("a-admin")
    told = answer.headers["set-cookie"].lower()
    assert told.startswith("__host-umbel-session=")
    for word in ("httponly", "secure", "samesite=strict", "path=/"):
        assert word in told
    assert "domain" not in told


def test_a_session_ends_when_somebody_signs_out(world: ConsoleWorld) -> None:
    visitor = world.signed_in(Role.VIEWER)
    cookie = dict(visitor.client.cookies)
    assert visitor.post("/sign-out").status_code == 303
    # Who kept the cookie has nothing of it.
    stale = world.visitor()
    stale.client.cookies.update(cookie)
    assert stale.get("/").status_code == 303


def test_a_session_that_expired_does_nothing_and_says_so(world: ConsoleWorld) -> None:
    visitor = world.signed_in(Role.VIEWER)
    world.clock.advance(IDLE_S)
    answer = visitor.client.post(
        "/theme", data={"csrf": visitor.csrf, "theme": "dark"}, headers={"referer": f"{world.url}/?range=1h"}
    )
    assert answer.status_code == 303
    assert "set-cookie" not in answer.headers
    there = answer.headers["location"]
    assert there == "/sign-in?lost=1&next=/%3Frange%3D1h"
    page = visitor.get(there).text
    assert "nothing was done" in page
    again = visitor.client.post(
        "/sign-in", data={"name": "a-viewer", "password": PASSWORD, "next": "/?range=1h"}
    )
    assert again.headers["location"] == "/?range=1h"


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example", "//evil.example?range=1h"])
def test_an_address_that_looks_like_a_page_of_ours_leads_to_no_other_host(
    world: ConsoleWorld, path: str
) -> None:
    visitor = world.signed_in(Role.VIEWER)
    for name in ("referer", "hx-current-url"):
        told = {name: f"{world.url}{path}"}
        changed = visitor.client.post("/theme", data={"csrf": visitor.csrf, "theme": "dark"}, headers=told)
        assert changed.headers["location"] == "/"
        assert "evil" not in visitor.get("/nowhere", headers=told).text


def test_a_screen_left_alone_ends_its_session_though_it_refreshes_itself(world: ConsoleWorld) -> None:
    visitor = world.signed_in(Role.VIEWER)
    for _ in range(4):
        world.clock.advance(IDLE_S / 4)
        answer = visitor.get("/", headers={"X-Umbel-Refresh": "1", "HX-Request": "true"})
    assert answer.status_code == 401
    assert answer.headers["hx-redirect"].startswith("/sign-in?")
    busy = world.signed_in(Role.VIEWER)
    for _ in range(4):
        world.clock.advance(IDLE_S / 4)
        assert busy.get("/").status_code == 200
    world.clock.advance(LIFE_S)
    assert busy.get("/").status_code == 303


def test_who_is_disabled_is_out_at_once(world: ConsoleWorld) -> None:
    visitor = world.signed_in(Role.REVIEWER)
    world.store.accounts.set_active(local_actor(), "a-reviewer", False)
    assert visitor.get("/").status_code == 303
    world.store.accounts.set_active(local_actor(), "a-reviewer", True)
    assert visitor.get("/").status_code == 303


@pytest.mark.parametrize("there", ["https://evil.example", "//evil.example", "/\\evil.example", "x", "/a\nb"])
def test_a_sign_in_leads_nowhere_else(world: ConsoleWorld, there: str) -> None:
    world.signed_in(Role.VIEWER)
    answer = world.visitor().client.post(
        "/sign-in", data={"name": "a-viewer", "password": PASSWORD, "next": there}
    )
    assert answer.headers["location"] == "/"


def test_a_link_from_another_site_arrives_by_way_of_a_page_of_ours(world: ConsoleWorld) -> None:
    arriving = world.visitor().get("/?range=7d", headers={"sec-fetch-site": "cross-site"})
    answer = world.visitor().get(arriving.headers["location"], headers={"sec-fetch-site": "cross-site"})
    assert 'content="0; url=/?range=7d"' in answer.text


def test_who_guesses_waits(tmp_path: Path) -> None:
    with console_world(tmp_path, failures_per_minute=3) as world:
        visitor = world.visitor()
        answers = [visitor.sign_in("nobody", "wrong") for _ in range(4)]
        assert [each.status_code for each in answers] == [401, 401, 401, 429]
        assert int(answers[-1].headers["retry-after"]) > 0


def test_vendored_files_are_those_that_were_looked_at() -> None:
    vendor = HERE / "vendor"
    listed = json.loads((vendor / "VENDOR.json").read_text())
    licenses = {each for one in listed.values() for each in one["license_files"]}
    assert {each.name for each in vendor.iterdir()} == {"VENDOR.json", *listed, *licenses}
    for name, one in listed.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == one["sha256"], name


def test_files_are_kept_by_browsers_for_good_and_weigh_little(visitors: dict[Role, Visitor]) -> None:
    for name in FILES:
        answer = visitors[Role.ADMIN].get(static(name), headers={"accept-encoding": "gzip"})
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.content == static_files()[name].plain
    assert sum(len(each.packed) for each in static_files().values()) < 420_000


def test_no_template_marks_data_as_safe_or_carries_script_or_style() -> None:
    templates = HERE.parent / "templates"
    for path in templates.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"\|\s*safe\b|autoescape|<style|\sstyle=|\son[a-z]+=|javascript:", text), path
        assert all("src=" in each for each in re.findall(r"<script[^>]*>", text)), path
