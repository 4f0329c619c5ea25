"""Overview, groups and health: what they count is what there is; and what the console tells screens and people."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from umbel.cli import main as program
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import Role, local_actor
from umbel_server.console import words
from umbel_server.console.pulse import MAX_OF_ONE, MAX_STREAMS, Pulse, sign_of
from umbel_server.console.screens.health import endings
from umbel_server.store.tables import batches
from umbel_server.store.wanted import Wanted

TEMPLATES = Path(words.__file__).parent / "templates"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("console-overview")) as made:
        for number in range(4):
            made.device(f"rose-{number}")
            made.store.placements.tag(DeviceId(f"rose-{number}"), ["roses"], actor=local_actor())
        made.device("odd")
        made.store.placements.tag(DeviceId("odd"), ["few"], actor=local_actor())
        yield made


@pytest.fixture(scope="module")
def operator(world: ConsoleWorld) -> Visitor:
    return world.signed_in(Role.OPERATOR)


def batch(world: ConsoleWorld, number: int, state: str, reason: str | None = None) -> None:
    now_s = world.clock()
    row = {
        "device_id": f"rose-{number % 4}",
        "batch_id": number.to_bytes(16, "big"),
        "key_id": "k",
        "header": b"",
        "ciphertext": b"" if state == "sealed" else None,
        "state": state,
        "reason": reason,
        "received_s": now_s - 600,
        "opened_s": None if state == "sealed" else now_s,
        "month": 202601,
    }
    with world.store.database.write() as connection:
        connection.execute(batches.insert().values(row))


def test_groups_are_counted_now_and_small_ones_marked(world: ConsoleWorld, operator: Visitor) -> None:
    page = text_of(operator.get("/groups").text)
    assert "roses 4" in page
    assert "few fewer than 3 1" in page
    world.store.placements.tag(DeviceId("rose-0"), [], actor=local_actor())
    world.store.placements.tag(DeviceId("rose-1"), [], actor=local_actor())
    assert "roses fewer than 3 2" in text_of(operator.get("/groups").text)
    answer = operator.post("/groups", tag="roses", devices="rose-0 rose-1, nobody", reason="back")
    assert answer.status_code == 303
    told = text_of(operator.get("/groups").text)
    assert "2 of 3 devices are in roses. 1 are not; the first: There is no device 'nobody'" in told
    assert "roses 4" in told


def test_the_overview_counts_what_there_is(world: ConsoleWorld, operator: Visitor) -> None:
    world.store.devices.quarantine(DeviceId("odd"), reason="x", actor=local_actor())
    page = text_of(operator.get("/").text)
    assert "Devices 5" in page
    assert "quarantined 1" in page
    assert "Privacy budget left ε 8.00" in page
    assert "not allowed" not in page
    world.store.devices.release(DeviceId("odd"), actor=local_actor())


def test_health_says_what_waits_and_what_was_refused_and_why(world: ConsoleWorld, operator: Visitor) -> None:
    batch(world, 1, "sealed")
    for number in (2, 3, 6):
        batch(world, number, "rejected", "a histogram <b>with</b> NaN")
    page = operator.get("/health")
    assert "Wait for the opener 1 the oldest for 10 min" in text_of(page.text)
    assert "a histogram <b>with</b> NaN 3 2" in text_of(page.text)
    assert "<b>with</b>" not in page.text
    assert operator.get("/health?format=csv").text.splitlines()[1] == "a histogram <b>with</b> NaN,3,2"
    assert operator.get("/health?from=2020-01-01&to=2030-01-01").status_code in (200, 422)


def test_what_ends_soon_is_told_in_time(world: ConsoleWorld) -> None:
    now_s = world.clock()
    ends_s = next(each.ends_s for each in endings(world.fleet, now_s) if each.what == "targets")

    def tone(left_days: float) -> str:
        found = endings(world.fleet, ends_s - left_days * 86400)
        return next(each.tone for each in found if each.what == "targets")

    assert [tone(days) for days in (20, 10, 1, -1)] == ["ok", "warn", "bad", "bad"]


def test_every_command_that_a_screen_names_is_one() -> None:
    """With options and arguments left aside."""
    for path in sorted(TEMPLATES.rglob("*.html")):
        for line in re.findall(r"umbel(?: [a-z][a-z-]*)+", path.read_text()):
            found: click.Command = program
            for word in line.split()[1:]:
                if not isinstance(found, click.Group):
                    break
                inner = found.get_command(click.Context(found), word)
                assert inner is not None, (path.name, line)
                found = inner


def test_a_screen_is_told_of_what_it_is_about_and_of_nothing_else(world: ConsoleWorld) -> None:
    pulse = Pulse(world.store)
    before = pulse.look()
    batch(world, 9, "sealed")
    after = pulse.look()
    assert sign_of(before, "drift") != sign_of(after, "drift")
    assert sign_of(before, "runs") == sign_of(after, "runs")
    assert sign_of(before, "what nobody described") != sign_of(after, "what nobody described")
    world.store.placements.tag(DeviceId("odd"), ["few"], actor=local_actor())
    assert sign_of(after, "runs") != sign_of(pulse.look(), "runs")  # An operator's doing is of everything.


def test_the_line_to_a_screen_says_changed_and_ends_with_the_service(
    world: ConsoleWorld, operator: Visitor
) -> None:
    headers = {"accept": "text/event-stream"}
    with operator.client.stream("GET", "/live?about=runs", headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(lines) == "retry: 5000"
        world.store.placements.tag(DeviceId("odd"), ["few"], actor=local_actor())
        assert next(line for line in lines if line) == "event: changed"


def test_a_filter_of_devices_is_saved_as_a_group_and_is_a_view_of_the_list(
    world: ConsoleWorld, operator: Visitor
) -> None:
    page = operator.get("/devices?q=rose&tag=roses").text
    assert "Save this filter as a group" in text_of(page)
    assert 'name="begins" value="rose"' in page
    assert "Save this filter" not in operator.get("/devices").text
    answer = operator.post("/groups/saved", begins="rose", tag="roses", group="bed", reason="one bed")
    assert answer.headers["location"] == "/groups"
    saved = world.store.groups.get("bed")
    assert saved.wanted == Wanted(begins="rose", tag="roses")
    told = text_of(operator.get("/groups").text)
    assert f"bed tag roses, name begins with rose {world.store.groups.count(saved)}" in told
    found = operator.get("/devices?group=bed").text
    assert "rose-2" in found
    assert 'href="/devices/odd"' not in found
    refused = operator.post("/groups/saved", status="online", group="roses", reason="")
    assert refused.status_code == 409
    assert "have the tag roses" in text_of(refused.text)
    # What is done to all that the filter finds is done to the group's alone.
    asked = operator.post("/bulk/devices", **{"action": "quarantine", "all": "on", "filter-group": "bed"})
    shown = text_of(operator.get(asked.headers["location"]).text)
    assert f"{world.store.groups.count(saved)} devices" in shown
    assert "odd" not in shown
    viewer = world.signed_in(Role.VIEWER)
    assert "Save this filter" not in viewer.get("/devices?q=rose").text
    assert viewer.post("/groups/saved", begins="rose", group="bud").status_code == 403
    assert operator.get("/groups/saved/nobody/remove").status_code == 404
    asked = operator.get("/groups/saved/bed/remove").text
    assert "Remove group bed" in asked
    assert "touched" not in asked  # Devices stay as they are.
    assert operator.post("/groups/saved/bed/remove", reason="").status_code == 422
    assert operator.post("/groups/saved/bed/remove", reason="dug up").status_code == 303
    assert world.store.groups.all() == ()


def test_one_user_opens_so_many_lines_and_leaves_others_room(world: ConsoleWorld) -> None:
    pulse = Pulse(world.store)
    with contextlib.ExitStack() as open_:
        mine = [open_.enter_context(pulse.stream("ann")) for _ in range(MAX_OF_ONE + 1)]
        assert mine == [True] * MAX_OF_ONE + [False]
        assert pulse.full("ann")
        assert not pulse.full("bea")
        others = [open_.enter_context(pulse.stream(f"user-{n}")) for n in range(MAX_STREAMS)]
        assert others.count(True) == MAX_STREAMS - MAX_OF_ONE
        assert pulse.full("carl")
    assert not pulse.full("ann")
    assert not pulse.full("carl")


def test_a_line_too_many_is_refused_and_its_screen_asks_by_itself(
    world: ConsoleWorld, operator: Visitor
) -> None:
    headers = {"accept": "text/event-stream"}
    with contextlib.ExitStack() as open_:
        lines = []  # Whose lines nobody holds any more hangs up.
        for _ in range(MAX_OF_ONE):
            stream = open_.enter_context(operator.client.stream("GET", "/live?about=runs", headers=headers))
            lines.append(stream.iter_lines())
            assert next(lines[-1]) == "retry: 5000"
        with operator.client.stream("GET", "/live?about=runs", headers=headers) as answer:
            assert answer.status_code == 503
            answer.read()
    assert "Too many screens are open" in answer.text


def test_fifty_screens_cost_one_look(world: ConsoleWorld) -> None:
    pulse, looks = Pulse(world.store), 0
    look = pulse.look

    def counted() -> dict[str, str]:
        nonlocal looks
        looks += 1
        return look()

    pulse.look = counted  # type: ignore[method-assign]
    assert len({pulse.sign("devices") for _ in range(50)}) == 1
    assert looks == 1


def test_what_changed_before_the_line_was_there_is_told_at_once(
    world: ConsoleWorld, operator: Visitor
) -> None:
    found = re.search(r'data-live="devices" data-sign="([0-9a-f]{16})"', operator.get("/devices").text)
    assert found
    world.store.placements.tag(DeviceId("odd"), ["few"], actor=local_actor())
    headers = {"accept": "text/event-stream"}
    with operator.client.stream("GET", f"/live?about=devices&seen={found[1]}", headers=headers) as stream:
        assert next(line for line in stream.iter_lines() if line.startswith("event")) == "event: changed"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (words.number(1234567), "1,234,567"),
        (words.number(None), "–"),  # noqa: RUF001
        (words.figures(0.01234), "0.0123"),
        (words.figures(12345.6), "12,346"),
        (words.percent(0.1234), "12.3\xa0%"),
        (words.size(999), "999\xa0B"),
        (words.size(1_234_567), "1.2\xa0MB"),
        (words.duration(0.34), "340\xa0ms"),
        (words.duration(0.000_999_7), "1.00\xa0ms"),
        (words.duration(0.000_999_4), "999\xa0µs"),
        (words.duration(0.999_8), "1.0\xa0s"),
        (words.duration(1.25), "1.2\xa0s"),
        (words.duration(90061), "1\xa0d 1\xa0h"),
        (words.duration(float("nan")), "–"),  # noqa: RUF001
        (words.iso(0), "1970-01-01T00:00:00Z"),
        (words.iso(1e300), "–"),  # noqa: RUF001
        (words.relative(100, 220), "2\xa0min ago"),
        (words.relative(100 + 3 * 86400, 100), "in 3\xa0d"),
        (str(words.when(None, 0)), '<span class="missing">never</span>'),
    ],
)
def test_numbers_are_said_as_people_read_them(made: str, expected: str) -> None:
    assert made == expected


def test_a_range_is_one_that_there_is(operator: Visitor) -> None:
    for query, status in (
        ("range=7d", 200),
        ("range=century", 422),
        ("from=2030-02-30", 422),
        ("from=2&to=1", 422),
    ):
        assert operator.get(f"/health?{query}").status_code == status
    answer = operator.get("/health?from=2026-01-02T00:00&to=2026-01-01T00:00")
    assert "ends before it begins" in text_of(answer.text)
