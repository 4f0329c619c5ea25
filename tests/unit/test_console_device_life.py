"""A device's page tells what became of the models on it, and which values broke their contracts; no more than is known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from monitor_world import DAY_S, HOUR_S, Reporters
from rollout_world import ANN, World
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import Role
from umbel_server.console.words import figures
from umbel_server.rollouts.state import RollBack


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("console-life")) as made:
        yield made


@pytest.fixture(scope="module")
def viewer(world: ConsoleWorld) -> Visitor:
    return world.signed_in(Role.VIEWER)


def section(page: str, title: str) -> str:
    """Return what somebody reads of a page's section."""
    found = page.partition(f"<h2>{title}")[2].partition("</section>")[0]
    assert found, title
    return text_of("<h2>" + found).replace(" ,", ",")


def test_a_device_shows_what_rollouts_did_to_it(world: ConsoleWorld, viewer: Visitor) -> None:
    fleet = World.with_candidate(world.store, world.clock)
    rollout = fleet.start(3)
    world.clock.advance(60)
    fleet.check()
    offered = sorted(fleet.with_version(3))
    failed, back, running = offered[0], offered[1], offered[2]
    spared = min(fleet.with_version(2))

    def told(name: DeviceId) -> str:
        return section(viewer.get(f"/devices/{name}").text, "Deployments")

    assert "offered digits@3, digits-3" in told(running)
    assert "answers since then: digits@3, digits-3" in told(running)
    assert "No rollout offered it a version" in told(spared)
    fleet.failed[failed] = {3}
    fleet.ask(failed)
    assert "failed, at that time or later: digits@3, digits-3" in told(failed)
    world.clock.advance(60)
    world.store.rollouts.happen(rollout.id, RollBack("it was slow"), actor=ANN)
    assert "rolled back for all: digits@3" in told(back)
    assert "answers again" not in told(back)
    fleet.check(back)
    assert "answers again: digits@2, digits-3" in told(back)
    assert told(back).index("answers again") < told(back).index("offered")  # The newest first.


def test_a_device_shows_what_it_gave_up_and_which_values_broke_the_contract(
    world: ConsoleWorld, viewer: Visitor
) -> None:
    reporters = Reporters(world.store, world.clock, count=3, kind="told")
    broke, fine, silent = reporters.names
    for day in (1, 2):
        counters = {"predictions": 9, "contract.age.above": 4, "contract.body.mass.missing": 1}
        reporters.tell(broke, ago_s=day * DAY_S, counters=counters, version=2)
    reporters.tell(broke, ago_s=DAY_S, counters={"model.fell_back": 1}, version=3)
    reporters.tell(fine, ago_s=HOUR_S, counters={"predictions": 9}, version=2)
    reporters.arrive()
    pages = {name: viewer.get(f"/devices/{name}?range=7d").text for name in reporters.names}
    told = {name: section(page, "Values that broke a data contract") for name, page in pages.items()}
    assert "digits@2 age above 8 digits@2 body.mass missing 2" in told[broke]
    assert "No value of the inputs that it told of broke one." in told[fine]
    assert "no data" in told[silent]
    assert "given up on that day: digits@3" in section(pages[broke], "Deployments")
    assert "given up" not in section(pages[fine], "Deployments")


def test_the_list_tells_what_waits_on_a_device_from_what_waits_at_the_service(
    world: ConsoleWorld, viewer: Visitor
) -> None:
    reporters = Reporters(world.store, world.clock, count=3, kind="spool")
    full, empty, silent = reporters.names
    reporters.tell(full, model="", counters={"spool.waiting": 10}, windows=4)
    reporters.tell(empty, model="", counters={"report.bytes": 10}, windows=4)
    reporters.tell(full, model="", counters={"spool.waiting": 900}, windows=4, ago_s=3 * DAY_S)
    reporters.arrive()
    rows = csv.DictReader(io.StringIO(viewer.get("/devices?q=spool&format=csv").text))
    waits = {row["device"]: (row["batches_on_device"], row["batches_not_opened"]) for row in rows}
    assert waits == {full: ("2.5", "0"), empty: ("0.0", "0"), silent: ("", "0")}
    told = json.loads(viewer.get("/devices?q=spool&format=json").text)
    assert [each["batches_on_device"] for each in told] == [2.5, 0.0, None]
    page = text_of(viewer.get("/devices?q=spool").text)
    assert "Waiting on it Not opened yet" in page
    assert f"{figures(2.5)} 0 " in page
