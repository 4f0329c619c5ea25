"""What the console's screens copy as calls of the API are calls of the API."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections import deque
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

import pytest

from console_seed import seed
from console_world import Visitor, console_world
from umbel_server.console.app import ROUTERS
from umbel_server.console.guard import ScreenRoute
from umbel_server.console.static_files import HERE

ROOT = Path(__file__).resolve().parents[2]
PATHS = json.loads((ROOT / "docs/reference/openapi.json").read_text())["paths"]
ROUTES = [
    route
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, ScreenRoute) and "GET" in route.methods and not route.path.endswith(".json")
]
FILTERED = {
    "/devices?q=ro&status=online&tag=&sort=seen&descending=true&refresh=off": {
        "begins": "ro",
        "status": "online",
        "sort": "seen",
        "descending": "true",
    },
    "/audit?actor=a-admin&action=version&range=24h": {"actor": "a-admin", "action": "version"},
    "/reviews?show=ended&model=digits": {"waiting": "false", "model": "digits"},
    "/settings/tokens?user=a-admin": {"user": "a-admin"},
    "/alerts?state=silenced": {"state": "silenced"},
}
"""Lists as somebody filters them, and what the API is to be asked."""
BY_FORM = "/models/digits/compare?before=2&after=3"
"""The screen to which a form leads, and no link."""
HOST = "fleet.example"
"""As the browser calls the machine; the fleet's settings call it otherwise."""


def copied(page: str) -> SplitResult | None:
    """Return the URL of the command that a screen copies; None: it copies none."""
    found = re.search(r'data-copy="(curl [^"]*)"', page)
    if found is None:
        return None
    *options, url = shlex.split(html.unescape(found[1]))
    token = "Authorization: Bearer $UMBEL_API_TOKEN"
    assert options == ["curl", "--cacert", "ca/ca.pem", "-H", token]
    return urlsplit(url)


def crawl(visitor: Visitor) -> dict[str, SplitResult]:
    """Return what the screens copy, by the screen's path; one page of each screen that links lead to is looked at."""
    calls: dict[str, SplitResult] = {}
    seen, ahead = set[str](), deque(["/", BY_FORM])
    while ahead:
        there = ahead.popleft()
        screen = next((each for each in ROUTES if each.path_regex.match(urlsplit(there).path)), None)
        if screen is None or screen.path in seen or "format=" in there:
            continue
        seen.add(screen.path)
        answer = visitor.get(there)
        assert answer.status_code == 200, there
        ahead += [html.unescape(each) for each in re.findall(r'href="(/[^"#]*)"', answer.text)]
        call = copied(answer.text)
        if call is not None:
            calls[screen.path] = call
    return calls


def parameters(path: str) -> set[str] | None:
    """Return what may be asked of a path that the API's description says can be read; None: it says of none."""
    for form, methods in PATHS.items():
        if "get" in methods and re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", form), path):
            return {each["name"] for each in methods["get"].get("parameters", []) if each["in"] == "query"}
    return None


def test_what_every_screen_copies_is_a_call_that_the_api_knows(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with console_world(tmp_path_factory.mktemp("console-calls"), approvals=2) as world:
        seed(world)
        visitor = world.signed_in()
        visitor.client.headers["host"] = f"{HOST}:9443"
        calls = crawl(visitor)
        filtered = {path: copied(visitor.get(path).text) for path in FILTERED}
        there = ("https", f"{HOST}:{world.fleet.settings.api.port}")
    templates = (HERE.parent / "templates").glob("*.html")
    assert len(calls) == sum(bool(re.search(r"\bexports\([^)]", each.read_text())) for each in templates)
    wrong = set()
    for screen, call in (calls | filtered).items():
        assert call is not None, screen
        known = parameters(call.path)
        asked = dict(parse_qsl(call.query))
        described = known is not None and asked.keys() <= known
        complete = FILTERED.get(screen, {}).items() <= asked.items()
        if (call.scheme, call.netloc) != there or not described or not complete:
            wrong.add(f"{screen}: {call.geturl()}")
    assert not wrong
