"""Law: the past that the demo makes up says that it is, and everything in it was decided by what decides everywhere."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lived_in import lived_in
from model_packages import RELEASE
from umbel_proto.package import Package, read_package
from umbel_server.access.chain import verify
from umbel_server.access.permissions import Permission, held
from umbel_server.clock import ManualClock
from umbel_server.demo.past import life
from umbel_server.demo.past.packages import renamed
from umbel_server.demo.past.people import VISITOR, invite_visitor
from umbel_server.demo.past.vans import GENERATED
from umbel_server.experiments.evidence import gather
from umbel_server.experiments.reading import Outcome, read
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.monitor.drift_report import drift
from umbel_server.monitor.fairness import Fairness
from umbel_server.monitor.looks import look_at_fairness
from umbel_server.registry.approval import Verdict
from umbel_server.registry.asking import decide
from umbel_server.rollouts.state import Finished, RolledBack, Running
from umbel_server.store.audit import Sought
from umbel_server.store.rollouts import SERVICE
from umbel_server.store.store import Store

NOW_S = 1_795_000_000.0


@dataclass(frozen=True)
class Lived:
    """A fleet that has its past."""

    fleet: FleetDir
    store: Store
    trained: Package


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    fleet, trained = lived_in(tmp_path_factory.mktemp("lived") / "fleet", now_s=NOW_S)
    with fleet.open_store(clock=ManualClock(NOW_S)) as store:
        yield Lived(fleet, store, trained)


def fairness_of(lived: Lived) -> Fairness:
    found = look_at_fairness(lived.fleet, lived.store, life.PARCELS, label="0").now
    assert isinstance(found, Fairness)
    return found


def test_the_past_says_that_it_is_made_up(lived: Lived) -> None:
    entries = list(lived.store.audit.all())
    assert [entries[0].action, entries[-1].action] == ["demo.past", "demo.present"]
    assert all(life.NOTE in each.reason for each in (entries[0], entries[-1]))
    tags = lived.store.placements.tags()
    assert len(tags) == life.VANS
    assert all(GENERATED in tags[device.id] for device in lived.store.devices.all())
    for release in lived.store.releases.all():
        package = read_package(
            lived.fleet.package(release.sha256).read_bytes(), release_key=lived.fleet.release_public()
        )
        assert "generated" in str(package.manifest.lineage["note"])


def test_its_audit_log_is_whole_and_goes_forward(lived: Lived) -> None:
    entries = list(lived.store.audit.all())
    assert verify(lived.fleet, lived.store)[0] == len(entries)
    times = [each.time_ms for each in entries]
    assert times == sorted(times)
    assert times[-1] <= NOW_S * 1000


def test_its_gates_let_one_rollout_finish_and_took_another_back_and_a_canary_is_under_way(
    lived: Lived,
) -> None:
    second, third, fourth = (lived.store.rollouts.get(f"parcels-{number}") for number in (2, 3, 4))
    assert second is not None
    assert third is not None
    assert fourth is not None
    assert isinstance(second.state, Finished)
    assert isinstance(third.state, RolledBack)
    assert third.state.reason.startswith("gate latency p95: latency rose")
    taken = lived.store.audit.all(Sought(object="rollout:parcels-3"))
    assert [each.actor for each in taken][-1] == SERVICE.name
    assert isinstance(fourth.state, Running)
    assert fourth.state.step == 0
    assert 5 <= len(lived.store.placements.members(fourth)) <= 24
    assert not lived.store.placements.having(life.PARCELS, 3)


def test_inputs_drifted_for_three_days_and_did_not_before(lived: Lived) -> None:
    now = drift(lived.fleet, lived.store, life.PARCELS, 2, days=3)
    assert {"input_mean", "confidence"} <= {line.finding.feature for line in now.drifted}
    before = drift(lived.fleet, lived.store, life.PARCELS, 2, days=3, until_s=NOW_S - 4 * 86400)
    assert before.drifted == ()


def test_two_cohorts_and_no_others_are_treated_otherwise(lived: Lived) -> None:
    findings = {(line.cohort, line.metric) for line in fairness_of(lived).lines if line.finding}
    assert findings == {("north", "selection rate"), ("night", "true positive rate")}


def test_its_rules_found_what_fires_and_somebody_looks_at_one_of_them(lived: Lived) -> None:
    states = {(each.rule, each.status) for each in lived.store.alerts.all()}
    assert {
        ("parcels-drift", "firing"),
        ("parcels-fairness", "firing"),
        ("parcels-slow", "acknowledged"),
    } <= states


def test_its_experiment_has_found_something_out(lived: Lived) -> None:
    (made,) = lived.store.experiments.all()
    rollout = lived.store.rollouts.get(made.id)
    assert rollout is not None
    told = read(made.plan, *gather(lived.store, rollout, made.plan, now_s=NOW_S), now_s=NOW_S)
    assert told.outcome is Outcome.BETTER


def test_a_version_waits_for_the_visitors_approval_and_goes_out_with_it(lived: Lived) -> None:
    password = invite_visitor(lived.store)
    account = lived.store.accounts.get(VISITOR)
    assert account is not None
    assert Permission.REGISTRY_APPROVE in held(account.roles)
    assert len(password) >= 12
    assert password.encode() not in lived.fleet.store_db.read_bytes()
    version, left = decide(
        lived.fleet, lived.store, life.PARCELS, 5, account.actor, Verdict.APPROVE, comment="I have looked"
    )
    assert left == 0
    data = renamed(lived.trained, life.PARCELS, version.version, key=RELEASE)
    assert publish(lived.fleet, lived.store, data, actor=account.actor).version == 5


def test_a_taken_port_is_said_in_one_sentence_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "umbel", "demo", "--keep", "--port", port, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, out.exists()) == (2, "", False)
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"Error: Port {port} is taken")
    assert "--port" in said
