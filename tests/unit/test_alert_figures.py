"""What rules find: each figure where it is as it should be, where it is not, and where too few told to judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from monitor_world import DAY_S, Reporters
from rollout_world import ANN, DIGITS, HALF, sha256
from service_fleet import ManualClock, make_fleet
from umbel_proto.histogram import LATENCY_US, Histogram
from umbel_server.access.actor import local_actor
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.evaluate import Evaluator, measure, rules_path
from umbel_server.monitor.alerts.rules import parse_rules
from umbel_server.monitor.alerts.scene import Scene
from umbel_server.rollouts.begin import Proposal
from umbel_server.rollouts.state import Start
from umbel_server.store.batches import Arrival
from umbel_server.store.store import open_store
from umbel_server.store.tables import devices
from umbel_server.store.wanted import Wanted

NOW_S = 1_800_000_000.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetDir:
    return make_fleet(tmp_path_factory.mktemp("figures"))


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Reporters]:
    clock = ManualClock(NOW_S)
    with open_store(tmp_path / "store.db", clock=clock) as store:
        yield Reporters(store, clock)


def found(fleet: FleetDir, told: Reporters, *lines: str) -> dict[str, tuple[bool | None, str]]:
    """Return what a rule finds, by the labels that tell alerts of the rule apart."""
    text = "\n".join(['[[rule]]\nname = "r"', *lines])
    rule = parse_rules(text, rules_path(fleet)).rules["r"]
    readings = measure(Scene(fleet, told.store, told.clock()), rule)
    return {
        " ".join(value for name, value in each.labels.items() if name not in ("model", "version")): (
            each.holds,
            each.why,
        )
        for each in readings
    }


def tell(told: Reporters, counters: Mapping[str, int], *, ago_s: float = 3600.0, least: int = 20) -> None:
    for device in told.names[:least]:
        told.tell(device, counters={"predictions": 100, **counters}, ago_s=ago_s)
    told.arrive()


@pytest.mark.parametrize(
    ("what", "bad", "good", "words"),
    [
        ("error_rate", {"errors": 20}, {"errors": 1}, "% of 2,400 inputs were refused or failed"),
        ("crash_loops", {"model.fell_back": 1}, {}, "failed on 20 devices, which fell back"),
        ("review_queue", {"review.asked": 30}, {"review.asked": 30, "review.resolved": 28}, "600 of 600"),
    ],
)
def test_a_model_in_trouble_is_found_and_one_that_is_well_is_not(
    fleet: FleetDir,
    told: Reporters,
    what: str,
    bad: dict[str, int],
    good: dict[str, int],
    words: str,
) -> None:
    tell(told, good, ago_s=5 * DAY_S)
    tell(told, bad)
    rule = f'what = "{what}"'
    ((holds, why),) = found(fleet, told, rule, 'window = "1d"').values()
    assert holds is True
    assert words in why
    told.clock.advance(-4 * DAY_S)
    ((holds, _),) = found(fleet, told, rule, 'window = "1d"').values()
    assert holds is False


def test_of_few_devices_nothing_is_said(fleet: FleetDir, told: Reporters) -> None:
    tell(told, {"errors": 100}, least=9)
    assert found(fleet, told, 'what = "error_rate"') == {"": (None, "9 devices reported, 10 are needed")}


def test_a_rule_of_a_cohort_looks_at_its_devices_only(fleet: FleetDir, told: Reporters) -> None:
    told.tag("west", told.names[:10])
    for number, device in enumerate(told.names):
        told.tell(device, counters={"predictions": 100, "errors": 40 * (number < 10)})
    told.arrive()
    rule = ('what = "error_rate"', "threshold = 0.2")
    assert found(fleet, told, *rule)[""][0] is False
    assert found(fleet, told, *rule, 'tag = "west"')["west"][0] is True
    # A group is named as a tag is: whoever fulfills its filter.
    told.store.groups.save("mild", Wanted(tag="west", begins=told.names[0]), actor=local_actor())
    told.store.groups.save("all", Wanted(begins=told.names[0][:1]), actor=local_actor())
    assert found(fleet, told, *rule, 'tag = "all"')["all"][0] is False
    assert found(fleet, told, *rule, 'tag = "mild"')["mild"] == (None, "1 devices reported, 10 are needed")


def test_latency_is_compared_in_milliseconds(fleet: FleetDir, told: Reporters) -> None:
    for device in told.names:
        told.tell(device, Histogram.empty("latency_us", LATENCY_US).observe([50_000.0] * 50))
    told.arrive()
    rule = 'what = "latency_ms"'
    assert found(fleet, told, rule, "threshold = 30")[""][0] is True
    assert found(fleet, told, rule, "threshold = 80")[""][0] is False


def test_labels_that_agree_less_than_before_are_found_and_by_how_much(
    fleet: FleetDir, told: Reporters
) -> None:
    tell(told, {"feedback": 100, "feedback.agreed": 95}, ago_s=1.5 * DAY_S)
    tell(told, {"feedback": 100, "feedback.agreed": 80})
    ((holds, why),) = found(fleet, told, 'what = "realized_accuracy"').values()
    assert holds is True
    assert "15 points less than the 95 %" in why


def test_drift_against_the_time_before_names_the_feature(fleet: FleetDir, told: Reporters) -> None:
    for ago_s, low in ((1.5 * DAY_S, 0.0), (3600.0, 0.4)):
        for device in told.names:
            shape = Histogram.empty("column.age", (0.25, 0.5, 0.75)).observe(
                [low + 0.01 * i for i in range(50)]
            )
            told.tell(device, shape, ago_s=ago_s, counters={"predictions": 50})
        told.arrive()
    ((name, (holds, why)),) = found(fleet, told, 'what = "drift"').items()
    assert (name, holds) == ("column.age before", True)
    assert "drifted against the time before" in why


def test_new_labels_are_counted_since_the_last_run(fleet: FleetDir, told: Reporters) -> None:
    tell(told, {"feedback": 50})
    rule = ('what = "new_labels"', "threshold = 1000")
    assert found(fleet, told, *rule)[""][0] is True
    assert found(fleet, told, *rule[:1], "threshold = 1001")[""][0] is False


def test_silent_devices_and_ended_certificates_are_shares_of_those_that_were_there(
    fleet: FleetDir, told: Reporters
) -> None:
    with told.store.database.write() as connection:
        seen = update(devices).values(last_seen_s=NOW_S - 60, certificate_not_after_s=NOW_S + 60)
        connection.execute(seen)
        late = update(devices).where(devices.c.id.in_(told.names[:5]))
        connection.execute(late.values(last_seen_s=NOW_S - 600, certificate_not_after_s=NOW_S - 60))
        connection.execute(late.where(devices.c.id == told.names[0]).values(last_seen_s=NOW_S - 2 * DAY_S))
    assert found(fleet, told, 'what = "devices_offline"', "threshold = 0.04")[""][0] is True
    assert found(fleet, told, 'what = "devices_offline"', "threshold = 0.05")[""][0] is False
    holds, why = found(fleet, told, 'what = "devices_stale"', "threshold = 0.2")[""]
    assert (holds, why.startswith("5 of 20 devices were not heard of for two minutes")) == (True, True)
    assert found(fleet, told, 'what = "device_certificates"')[""][0] is True


def test_a_batch_that_waits_and_one_that_was_refused_are_found(fleet: FleetDir, told: Reporters) -> None:
    lag, refused = ('what = "opener_lag"', "threshold = 60"), ('what = "rejected_batches"', 'window = "1h"')
    assert found(fleet, told, *lag)[""][0] is False
    assert found(fleet, told, *refused)[""] == (False, "no batch came in this time")
    told.store.batches.append(told.names[0], [Arrival(b"i" * 16, "key", b"h", b"s")])
    told.clock.advance(61)
    assert found(fleet, told, *lag)[""][0] is True
    assert found(fleet, told, *refused)[""][0] is False


def test_what_ends_is_named_and_what_renews_itself_only_on_its_last_day(
    fleet: FleetDir, told: Reporters
) -> None:
    # The fleet's certificates are of the machine's own time.
    soon = found(fleet, told, 'what = "expiry"', "threshold = 3650")
    assert {"ca", "server", "root", "targets"} == set(soon)
    assert {"snapshot", "timestamp"} <= set(found(fleet, told, 'what = "expiry"', "threshold = 0.5"))


def test_a_fleet_that_spent_nothing_has_its_budget(fleet: FleetDir, told: Reporters) -> None:
    assert found(fleet, told, 'what = "privacy_budget"')[""][0] is False


def test_a_model_in_trouble_pauses_its_rollout_and_proposes_a_run(fleet: FleetDir, told: Reporters) -> None:
    for version in (1, 2):
        told.store.releases.publish(DIGITS, version, sha256=sha256(version), size=1000)
    proposal = Proposal("digits-2", DIGITS, 1, 2, replace(HALF, least_devices=2))
    made = told.store.rollouts.create("digits-2", DIGITS, (1, 2), proposal.plan, actor=ANN)
    told.store.rollouts.happen(made.id, Start(), actor=ANN)
    (fleet.path / "retrain.toml").write_text('model = "digits"\nrounds = 3\n')
    rules_path(fleet).write_text(
        '[[rule]]\nname = "crashes"\nwhat = "crash_loops"\nactions = ["pause_rollout", "propose_run"]\n'
        'plan = "retrain.toml"\n'
    )
    tell(told, {"model.fell_back": 1})
    Evaluator(fleet, told.store).run_once()
    assert told.store.rollouts.get("digits-2").status == "paused"
    last = told.store.rollouts.events("digits-2")[-1]
    assert (last.actor, "failed on 20 devices" in last.reason) == ("alert:crashes", True)
    (proposed,) = told.store.proposed_runs.all()
    assert (proposed.state, proposed.model, proposed.plan["rounds"]) == ("open", "digits", 3)
    (alert,) = told.store.alerts.all()
    events = [(each.event, each.reason) for each in told.store.alerts.events(alert.fingerprint)][1:]
    assert events == [
        ("pause_rollout", "rollout digits-2 is paused"),
        ("propose_run", "run 1 is proposed"),
    ]
