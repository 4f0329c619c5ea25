"""Half of a fleet is offline: alerts and rollouts say so, and the other half goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from rollout_world import ANN, World
from service_fleet import ManualClock, make_fleet
from umbel_server.monitor.alerts.evaluate import measure, rules_path
from umbel_server.monitor.alerts.rules import parse_rules
from umbel_server.monitor.alerts.scene import Scene
from umbel_server.rollouts.decider import Decider
from umbel_server.rollouts.plan import Gate, Kind, RolloutPlan, Step
from umbel_server.rollouts.state import RollBack
from umbel_server.store.device_list import DeviceList
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import devices

NOW_S, DAY_S = 1_800_000_000.0, 86400
PLAN = RolloutPlan(
    steps=(Step("half", 50, least_s=60.0), Step("all", 100, least_s=60.0)),
    gates=(Gate(Kind.ERRORS, 0.2),),
    least_devices=3,
)


def heard(store: Store, names: list[str], at_s: float) -> None:
    """Write down when devices were last heard of."""
    with store.database.write() as connection:
        connection.execute(update(devices).where(devices.c.id.in_(names)).values(last_seen_s=at_s))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_S)


def test_half_a_fleet_that_is_offline_is_told_of_and_holds_up_no_rollout(
    tmp_path: Path, clock: ManualClock
) -> None:
    with open_store(tmp_path / "store.db", clock=clock) as store:
        world = World.with_candidate(store, clock)
        everybody = list(world.names)
        there, away = everybody[::2], everybody[1::2]
        heard(store, away, NOW_S - 3 * DAY_S)
        heard(store, there, NOW_S)
        statuses = dict(DeviceList(store.database, clock).facets().statuses)
        assert (statuses["online"], statuses["offline"]) == (20, 20)
        fleet = make_fleet(tmp_path / "fleet")
        rule = parse_rules('[[rule]]\nname = "away"\nwhat = "devices_offline"', rules_path(fleet))
        (found,) = measure(Scene(fleet, store, clock()), rule.rules["away"])
        assert found.holds is True
        assert "20 of 40 devices were not heard of for a day" in found.why

        made, decider = world.start(3, PLAN), Decider(store)
        for _ in PLAN.steps:
            clock.advance(600)
            heard(store, there, clock())
            world.check(*there)
            world.report({})
            clock.advance(61)
            assert decider.run_once() == 1
        now = store.rollouts.get(made.id)
        assert now.status == "finished"
        reach = store.progress.reach(now)
        assert (reach.running, reach.offered) == (20, 20)
        assert {device for device, version in world.has.items() if version == 3} == set(there)
        # Who comes back gets it then, and nothing waited for that.
        heard(store, away, clock())
        world.check(*away)
        assert set(world.has.values()) == {3}


def test_devices_that_were_offered_a_candidate_and_went_offline_are_counted_as_waiting(
    tmp_path: Path, clock: ManualClock
) -> None:
    with open_store(tmp_path / "store.db", clock=clock) as store:
        world = World.with_candidate(store, clock)
        made = world.start(3, PLAN)
        clock.advance(600)
        for device in world.names:  # They ask, and go offline before they say what became of it.
            world.ask(device)
        offered = store.progress.reach(store.rollouts.get(made.id))
        assert (offered.waiting, offered.running) == (offered.offered, 0)
        assert offered.offered > 0
        store.rollouts.happen(made.id, RollBack("it is not wanted"), actor=ANN)
        back = store.progress.reach(store.rollouts.get(made.id))
        assert (back.waiting, back.running, back.offered) == (offered.offered, 0, offered.offered)
