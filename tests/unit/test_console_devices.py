"""Devices in the console: found, shown, and changed as the API changes them, by those who may, knowingly."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator

import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from monitor_world import DAY_S, HOUR_S, Reporters
from service_fleet import PlainDevice
from umbel_proto.histogram import AMOUNT, Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.access.actor import Role, local_actor
from umbel_server.console.screens.devices import ROWS
from umbel_server.console.seen.waiting import waiting_of
from umbel_server.console.words import duration, figures
from umbel_server.store.admission import WaitingError
from umbel_server.store.audit import Entry, Sought
from umbel_server.store.terms import Terms

WHY = {"reason": "it smells"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("console-devices")) as made:
        for name in ("rose", "iris", "lily"):
            made.device(name)
        made.store.placements.tag(DeviceId("rose"), ["greenhouse"], actor=local_actor())
        made.store.placements.has(DeviceId("rose"), {"digits": 7})
        yield made


@pytest.fixture(scope="module")
def operator(world: ConsoleWorld) -> Visitor:
    return world.signed_in(Role.OPERATOR)


def latest(world: ConsoleWorld, name: str) -> Entry:
    return world.store.audit.latest(Sought(object=f"device:{name}"), limit=1)[0]


def hidden(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, name
    return found[1]


def test_a_device_shows_how_many_reports_waited_on_it_and_for_how_long(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with console_world(tmp_path_factory.mktemp("console-spool")) as world:
        reporters = Reporters(world.store, world.clock, count=3)
        slow, quick, silent = reporters.names
        for day, (waiting, age_s) in enumerate(((9, 5000.0), (1, 70.0))):
            age = Histogram.empty("spool_age_s", AMOUNT).observe([age_s])
            counters = {"spool.waiting": waiting}
            reporters.tell(slow, age, ago_s=day * DAY_S + HOUR_S, model="", counters=counters, windows=4)
        reporters.tell(quick, model="", counters={"report.bytes": 900}, windows=3)
        reporters.arrive()
        operator = world.signed_in(Role.OPERATOR)
        told = {name: text_of(operator.get(f"/devices/{name}?range=7d").text) for name in reporters.names}
        found = waiting_of(world.store, slow, since_s=world.clock() - 7 * DAY_S)
    assert found is not None
    assert (found.windows, found.mean, found.newest_mean) == (8, 10 / 8, 9 / 4)
    assert found.longest is not None
    low, high = found.longest
    assert high is not None
    assert low <= 5000.0 <= high <= 1.8 * low
    assert f"{figures(10 / 8)} on average when a window closed n = 8 windows" in told[slow]
    between = f"{duration(low)} to {duration(high)}".replace("\N{NO-BREAK SPACE}", " ")
    assert f"the longest wait {between}" in told[slow]
    assert "none waited when a window closed n = 3 windows" in told[quick]
    assert "longest wait" not in told[quick]
    assert re.search(r"Reports that wait on it [^.]* in whole days no data", told[silent])


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", {"rose", "iris", "lily"}),
        ("?q=ro", {"rose"}),
        ("?tag=greenhouse", {"rose"}),
        ("?model=digits&version=7", {"rose"}),
        ("?model=digits&version=8", set()),
        ("?status=online&tag=&model=&version=", {"rose", "iris", "lily"}),
    ],
)
def test_a_filter_in_the_address_shows_those_it_is_true_of(
    operator: Visitor, query: str, names: set[str]
) -> None:
    page = operator.get(f"/devices{query}").text
    assert set(re.findall(r'<a href="/devices/([a-z]+)">', page)) == names
    told = json.loads(operator.get(f"/devices?{query.removeprefix('?')}&format=json").text)
    assert {each["device"] for each in told} == names


def test_pages_show_every_device_once_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with console_world(tmp_path_factory.mktemp("console-pages")) as world:
        names = [f"d{number:03d}" for number in range(ROWS + 3)]
        for name in names:
            world.device(name)
            world.clock.advance(1)
        visitor = world.signed_in(Role.VIEWER)
        for sort, expected in (("name", names), ("seen&descending=true", names[::-1])):
            path: str | None = f"/devices?sort={sort}"
            seen: list[str] = []
            while path:
                page = visitor.get(path).text
                seen += re.findall(r'<a href="/devices/(d\d+)">', page)
                following = re.search(r'rel="next" href="([^"]+)"', page)
                path = following[1].replace("&amp;", "&") if following else None
            assert seen == expected


def test_who_may_only_look_gets_no_buttons(world: ConsoleWorld) -> None:
    viewer = world.signed_in(Role.VIEWER)
    for path in ("/devices", "/devices/rose"):
        page = viewer.get(path).text
        forms = set(re.findall(r'<form method="post" action="([^"]+)"', page))
        assert forms == {"/theme", "/sign-out"}
    assert "not allowed" in text_of(viewer.get("/devices/rose").text)  # The audit log, for one.


def test_a_device_that_is_not_there_is_said_so(operator: Visitor) -> None:
    answer = operator.get("/devices/nobody")
    assert answer.status_code == 404
    assert "There is no device nobody" in text_of(answer.text)


@pytest.mark.parametrize(
    ("what", "status"), [("quarantine", "quarantined"), ("release", "online"), ("revoke", "revoked")]
)
def test_a_deed_is_done_once_it_is_confirmed_and_is_on_record(
    world: ConsoleWorld, operator: Visitor, what: str, status: str
) -> None:
    world.device(f"deed-{what}")
    name, path = f"deed-{what}", f"/devices/deed-{what}/{what}"
    if what == "release":
        world.store.devices.quarantine(DeviceId(name), reason="before", actor=local_actor())
    asked = operator.get(path)
    assert "1 device touched" in text_of(asked.text)
    state = hidden(asked.text, "state")
    before = latest(world, name)
    if what != "release":
        answer = operator.post(path, state=state, typed="another", **WHY)
        assert answer.status_code == 422
        assert f"type {name} to confirm" in text_of(answer.text)
        assert "it smells" in answer.text  # What was typed is not lost.
    answer = operator.post(path, state=state, typed=name, reason=" ")
    assert answer.status_code == 422
    assert latest(world, name) == before
    answer = operator.post(path, state=state, typed=name, **WHY)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/devices/{name}")
    entry = latest(world, name)
    assert (entry.actor, entry.action, entry.reason) == ("a-operator", f"device.{what}", "it smells")
    page = text_of(operator.get(f"/devices/{name}").text)
    assert name in page
    assert status in page


def test_of_two_operators_the_second_is_told_what_the_first_did(
    world: ConsoleWorld, operator: Visitor
) -> None:
    world.device("both")
    other = world.signed_in(Role.ADMIN)
    path = "/devices/both/quarantine"
    mine, theirs = hidden(operator.get(path).text, "state"), hidden(other.get(path).text, "state")
    assert operator.post(path, state=mine, typed="both", **WHY).status_code == 303
    answer = other.post(path, state=theirs, typed="both", reason="I saw it first")
    assert answer.status_code == 409
    assert "both is quarantined by now" in text_of(answer.text)
    assert "I saw it first" in answer.text
    assert latest(world, "both").reason == "it smells"


def test_tags_are_replaced_unless_somebody_did_meanwhile(world: ConsoleWorld, operator: Visitor) -> None:
    answer = operator.post("/devices/iris/tags", before="", tags="pond, shade", **WHY)
    assert answer.status_code == 303
    assert world.store.placed.of([DeviceId("iris")])[DeviceId("iris")].tags == ["pond", "shade"]
    answer = operator.post("/devices/iris/tags", before="", tags="", **WHY)
    assert answer.status_code == 422
    assert "pond shade by now" in text_of(answer.text)


def test_a_device_is_pinned_to_what_is_released_only(world: ConsoleWorld, operator: Visitor) -> None:
    assert operator.post("/devices/lily/pin", model="digits", version="3", **WHY).status_code == 422
    world.store.placements.pin(DeviceId("lily"), ModelName("digits"), 3, actor=local_actor())
    assert "Pinned: digits at 3" in text_of(operator.get("/devices/lily").text)
    assert operator.post("/devices/lily/pin", model="digits", version="", **WHY).status_code == 303
    assert not world.store.placed.of([DeviceId("lily")])[DeviceId("lily")].pins


def test_many_devices_are_done_one_by_one_after_they_were_shown(
    world: ConsoleWorld, operator: Visitor
) -> None:
    names = ["many-1", "many-2", "many-3"]
    for name in names:
        world.device(name)
    world.store.devices.revoke(DeviceId("many-2"), actor=local_actor())
    chosen = {"action": "quarantine", "device": names, "there": "/devices?q=many"}
    asked = operator.client.post("/bulk/devices", data={"csrf": operator.csrf, **chosen})
    page = asked.headers["location"]
    assert "3 devices touched" in text_of(operator.get(page).text)
    assert latest(world, "many-1").action == "device.enroll"
    assert operator.post(page, count="3", typed="2", **WHY).status_code == 422
    answer = operator.post(page, count="3", typed="3", **WHY)
    assert (answer.status_code, answer.headers["location"]) == (303, "/devices?q=many")
    told = text_of(operator.get("/devices?q=many").text)
    assert "2 of 3 devices done. 1 refused" in told
    assert {name: latest(world, name).action for name in names} == {
        "many-1": "device.quarantine",
        "many-2": "device.revoke",
        "many-3": "device.quarantine",
    }


def test_all_that_a_filter_finds_are_done_if_they_are_as_many_as_were_shown(
    world: ConsoleWorld, operator: Visitor
) -> None:
    for name in ("all-1", "all-2"):
        world.device(name)
    fields = {"action": "tag", "tag": "wet", "all": "1", "filter-q": "all-"}
    page = operator.post("/bulk/devices", **fields).headers["location"]
    assert "2 devices touched" in text_of(operator.get(page).text)
    world.device("all-3")
    answer = operator.post(page, count="2", **WHY)
    assert answer.status_code == 409
    assert "2 devices were so when you looked, and 3 are now" in text_of(answer.text)
    assert operator.post(page, count="3", **WHY).status_code == 303
    assert dict(world.store.device_list.facets().tags)["wet"] == 3
    page = operator.post("/bulk/devices", **{**fields, "action": "untag"}).headers["location"]
    assert operator.post(page, count="3", **WHY).status_code == 303
    assert "wet" not in dict(world.store.device_list.facets().tags)


@pytest.mark.parametrize(
    "fields", [{}, {"action": "tag", "device": "Not a name"}, {"action": "x", "device": "rose"}]
)
def test_a_bulk_form_that_is_none_does_nothing(
    world: ConsoleWorld, operator: Visitor, fields: dict[str, str]
) -> None:
    before = world.store.audit.newest()
    page = operator.post("/bulk/devices", **fields).headers["location"]
    for answer in (operator.get(page), operator.post(page, count="1", typed="1", **WHY)):
        assert answer.status_code in (409, 422)
    assert world.store.audit.newest() == before


def test_what_devices_call_themselves_is_text_and_no_formula(world: ConsoleWorld, operator: Visitor) -> None:
    world.device("nasty")
    facts = json.dumps({"arch": HOSTILE, "os": "=cmd|' /C calc'!A0", "engine": HOSTILE})
    world.store.placements.state_facts(DeviceId("nasty"), facts)
    world.store.devices.quarantine(DeviceId("nasty"), reason=HOSTILE, actor=local_actor())
    for path in ("/devices", "/devices/nasty", "/groups", "/"):
        page = operator.get(path).text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
    world.store.placements.state_facts(DeviceId("nasty"), json.dumps({"engine": "=1+1"}))
    rows = {
        row["device"]: row for row in csv.DictReader(io.StringIO(operator.get("/devices?format=csv").text))
    }
    assert rows["nasty"]["engine"] == "'=1+1"


def test_a_device_that_waits_is_let_in_by_its_fingerprint_or_turned_away(
    world: ConsoleWorld, operator: Visitor
) -> None:
    waiting = []
    for name in ("in", "out"):
        token, device = world.store.tokens.issue(valid_s=60, approval=True), PlainDevice()
        with pytest.raises(WaitingError) as exc:
            world.store.devices.enroll(
                device.application(token, name=name), certificate_life_s=60, terms=Terms(approve=True)
            )
        waiting.append((exc.value.application, device))
    (let_in, device), (out, _) = waiting
    page = text_of(operator.get("/enrollment").text)
    assert let_in in page
    assert out in page
    path = f"/enrollment/{let_in}/approve"
    assert operator.post(path, fingerprint="aaaa", **WHY).status_code == 409
    shown = next(each.fingerprint for each in world.store.applications.pending() if each.id == let_in)
    assert shown not in operator.get(path).text
    assert operator.post(path, fingerprint=shown, **WHY).status_code == 303
    assert operator.post(f"/enrollment/{out}/reject", reason="").status_code == 422
    assert operator.post(f"/enrollment/{out}/reject", reason="not ours").status_code == 303
    assert operator.post(path, fingerprint=shown, **WHY).status_code == 404
    assert not world.store.applications.pending()
    assert device.id == ""


def test_an_invitation_is_shown_once(world: ConsoleWorld, operator: Visitor) -> None:
    page = operator.post("/enrollment/invite", device="tulip", hours="3").text
    token = re.search(r'<pre id="token">([^<]+)</pre>', page)
    assert token
    assert len(token[1]) > 40
    assert token[1] not in operator.get("/enrollment/invite").text
    assert operator.post("/enrollment/invite", hours="0").status_code == 422
