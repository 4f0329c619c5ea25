"""What happened meanwhile: a session that ended under somebody's hands, and two who act in the same moment."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from console_world import PASSWORD, ConsoleWorld, Visitor, console_world, text_of
from rollout_world import HALF, World
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import Role
from umbel_server.console.guard import MAX_NEXT
from umbel_server.monitor.alerts.state import Timing
from umbel_server.store.alerts import Alert, Reading, Telling
from umbel_server.store.audit import Sought
from umbel_server.store.sessions import IDLE_S

NOBODY = Telling({}, lambda kind, alerts: {})


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("meanwhile")) as made:
        yield made


@pytest.fixture(scope="module")
def rollout(console: ConsoleWorld) -> str:
    made = World.with_candidate(console.store, console.clock)
    return made.start(3, HALF).id


def firing(console: ConsoleWorld, feature: str) -> Alert:
    reading = Reading({"model": "digits", "feature": feature}, True, 0.5, "it drifts")
    console.store.alerts.look("drift", "critical", [reading], Timing(), telling=NOBODY, act=lambda *_: ())
    return next(each for each in console.store.alerts.all() if each.labels == reading.labels)


def from_page(visitor: Visitor, page: str, to: str, **fields: str) -> httpx.Response:
    """Send a form as the browser does that shows a page: of a long address Chromium tells the host alone."""
    referer = str(visitor.client.base_url.join(page))
    referer = referer if len(referer) <= 4096 else str(visitor.client.base_url)
    return visitor.client.post(to, data={"csrf": visitor.csrf, **fields}, headers={"referer": referer})


def sign_in_again(visitor: Visitor, answer: httpx.Response) -> httpx.Response:
    """Fill in the form that somebody is led to, and send it with what is hidden in it."""
    there = answer.headers["location"]
    assert answer.status_code == 303
    assert there.startswith("/sign-in?lost=1")
    shown = visitor.get(there)
    assert shown.status_code == 200
    said = "Your session had ended, so nothing was done. Sign in, and do it again: what you typed is in the form then."
    assert said in text_of(shown.text)
    hidden = re.search(r'name="next" value="([^"]*)"', shown.text)
    assert hidden
    fields = {"name": "a-operator", "password": PASSWORD, "next": html.unescape(hidden[1])}
    return visitor.client.post("/sign-in", data=fields)


def test_a_rollout_is_not_rolled_back_by_a_session_that_ended_and_one_lands_at_its_form(
    console: ConsoleWorld, rollout: str
) -> None:
    visitor, page = console.signed_in(Role.OPERATOR), f"/rollouts/{rollout}/roll-back"
    revision = str(console.store.rollouts.get(rollout).revision)
    console.clock.advance(IDLE_S)
    answer = from_page(visitor, page, page, revision=revision, typed=rollout, reason="it smokes")
    again = sign_in_again(visitor, answer)
    assert again.headers["location"] == page
    assert console.store.rollouts.get(rollout).status == "running"
    assert "to confirm" in visitor.get(page).text


def test_an_alert_is_not_silenced_by_a_session_that_ended_and_one_lands_at_it(console: ConsoleWorld) -> None:
    visitor, alert = console.signed_in(Role.OPERATOR), firing(console, "age")
    page = f"/alerts/{alert.fingerprint}"
    console.clock.advance(IDLE_S)
    answer = from_page(
        visitor, page, f"{page}/silence", revision=str(alert.revision), reason="x", **{"for": "1h"}
    )
    assert sign_in_again(visitor, answer).headers["location"] == page
    assert console.store.alerts.get(alert.fingerprint).revision == alert.revision


def test_devices_are_not_quarantined_by_a_session_that_ended_and_one_lands_at_the_same_ones(
    console: ConsoleWorld,
) -> None:
    names = [f"{place:03d}-{'x' * 59}" for place in range(99)]  # A page of them, whose address is a long one.
    for name in ("attic", "cellar"):
        console.device(name)
    visitor = console.signed_in(Role.OPERATOR)
    for ticked in (["attic", "cellar"], names):
        chosen = visitor.post("/bulk/devices", action="quarantine", device=ticked, there="/devices?q=a")
        page = chosen.headers["location"]
        console.clock.advance(IDLE_S)
        answer = from_page(visitor, page, page, count="2", typed="2", reason="they smoke")
        assert sign_in_again(visitor, answer).headers["location"] == page
        visitor = console.signed_in(Role.OPERATOR)
        if len(ticked) == 2:
            shown = visitor.get(page).text
            assert f'action="{html.escape(page)}"' in shown, (
                "what is typed is given back to the form of the same address"
            )
            assert "2 devices touched" in text_of(shown)
            assert "They are attic, cellar" in text_of(shown)
    device = console.store.devices.get(DeviceId("attic"))
    assert device
    assert not device.quarantined


@pytest.mark.parametrize("lines", [10, 400], ids=("short", "long"))
def test_a_plan_that_was_typed_is_there_again_after_signing_in(console: ConsoleWorld, lines: int) -> None:
    toml = 'model = "digits"\n' + "# because of the new labels\n" * lines
    visitor, page = console.signed_in(Role.OPERATOR), f"/runs/-/new?{urlencode({'toml': toml})}"
    console.clock.advance(IDLE_S)
    answer = from_page(visitor, page, page, name="digits-1", typed="digits-1", reason="x", state="")
    there = sign_in_again(visitor, answer).headers["location"]
    assert parse_qs(urlsplit(there).query)["toml"] == [toml]


def test_an_address_too_long_to_be_led_back_to_leads_to_its_page(console: ConsoleWorld) -> None:
    visitor, page = console.signed_in(Role.OPERATOR), f"/runs/-/new?toml={'x' * MAX_NEXT}"
    console.clock.advance(IDLE_S)
    answer = from_page(visitor, page, page, name="a", typed="a", reason="x", state="")
    assert sign_in_again(visitor, answer).headers["location"] == "/runs/-/new"


def both(console: ConsoleWorld, path: str, *fields: dict[str, str]) -> list[httpx.Response]:
    """Let two operators send a form in the same moment."""
    visitors = [console.signed_in(Role.OPERATOR), console.signed_in(Role.ADMIN)]
    together = threading.Barrier(2)

    def send(visitor: Visitor, own: dict[str, str]) -> httpx.Response:
        together.wait(10)
        return visitor.post(path, **own)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(send, visitors, fields))


def test_of_two_who_pause_a_rollout_in_the_same_moment_one_does_and_the_other_is_told(
    console: ConsoleWorld, rollout: str
) -> None:
    before = console.store.rollouts.get(rollout)
    fields = [{"revision": str(before.revision), "reason": f"reason {who}"} for who in "AB"]
    answers = both(console, f"/rollouts/{rollout}/pause", *fields)
    assert sorted(each.status_code for each in answers) == [303, 409]
    (late,) = (place for place, each in enumerate(answers) if each.status_code == 409)
    told = text_of(answers[late].text)
    assert "was changed meanwhile: it is paused" in told
    assert fields[late]["reason"] in told, "what was typed is kept"
    assert console.store.rollouts.get(rollout).revision == before.revision + 1
    (entry,) = console.store.audit.all(Sought(object=f"rollout:{rollout}", action="rollout.pause"))
    assert entry.reason == fields[1 - late]["reason"]


def test_of_two_who_act_on_an_alert_in_the_same_moment_one_does_and_the_other_is_told(
    console: ConsoleWorld,
) -> None:
    alert = firing(console, "income")
    seen = {"revision": str(alert.revision), "for": "2h"}
    answers = both(
        console,
        f"/alerts/{alert.fingerprint}/silence",
        {**seen, "reason": "reason A"},
        {**seen, "reason": "reason B"},
    )
    assert sorted(each.status_code for each in answers) == [303, 409]
    (late,) = (place for place, each in enumerate(answers) if each.status_code == 409)
    assert "The alert was changed meanwhile: it is silenced" in text_of(answers[late].text)
    assert f'value="reason {"AB"[late]}"' in answers[late].text
    after = console.store.alerts.get(alert.fingerprint)
    assert (after.status, after.revision) == ("silenced", alert.revision + 1)
    assert len(list(console.store.audit.all(Sought(object=f"alert:{alert.fingerprint}")))) == 1
