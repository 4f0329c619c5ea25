"""Who is let in and who is not, from the device to the store: by hand, by number, in another's place, and kept apart."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import grpc
import pytest

from service_fleet import (
    DAY_S,
    HOUR_S,
    ManualClock,
    PlainDevice,
    batch,
    make_csr,
    make_fleet,
    running,
    window,
)
from umbel._fleet.approval import FIRST_PAUSE_S, LAST_PAUSE_S, until_approved
from umbel._fleet.channel import PendingError
from umbel._fleet.enroll import come_back, enroll
from umbel._home.directory import DeviceHome
from umbel._rounds.ledger import Ledger
from umbel_proto.enrollment import fingerprint
from umbel_proto.errors import RefusedError, TokenError, UnavailableError, UsageError
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_proto.wire.telemetry_pb2 import SealedBatch
from umbel_server.access.actor import local_actor
from umbel_server.ca.settings import Enrollment
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.fleet_ledger import Cost, FleetLedger
from umbel_server.monitor.opener import Opener
from umbel_server.store.runs import Outcome, Participation, RoundRecord
from umbel_server.store.store import Store

ROSE = DeviceId("rose")


@dataclass(frozen=True, slots=True)
class World:
    """A fleet whose gateway runs."""

    fleet: FleetDir
    store: Store
    clock: ManualClock
    root: Path

    def home(self, name: str = "rose") -> DeviceHome:
        return DeviceHome(self.root / name)

    def token(self, name: str | None = None, *, approval: bool = False, replaces: bool = False) -> str:
        return invite(self.fleet, self.store, device=name, approval=approval, replaces=replaces).to_text()

    def ask(self, home: DeviceHome, token: str) -> str:
        return enroll(home, token, now_s=self.clock.now_s).device


@contextlib.contextmanager
def world_at(path: Path, **terms: object) -> Iterator[World]:
    clock = ManualClock()
    made = make_fleet(path / "garden", clock=clock)
    settings = replace(made.settings, admission=Enrollment(**terms))  # type: ignore[arg-type]
    fleet = replace(made, settings=settings)
    with running(fleet, clock=clock) as (_, store):
        yield World(fleet, store, clock, path)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path) as made:
        yield made


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), str(caught.value.details())


# By hand


def waiting(world: World, home: DeviceHome, token: str) -> str:
    """Ask, and be told to wait; return what the device shows."""
    with pytest.raises(PendingError):
        world.ask(home, token)
    assert not home.enrolled
    assert home.pending is not None
    return home.pending.fingerprint


def test_a_device_waits_until_its_fingerprint_is_approved_and_is_then_let_in(world: World) -> None:
    home, token = world.home(), world.token("rose", approval=True)
    shown = waiting(world, home, token)
    assert (
        waiting(world, home, token) == shown
    )  # Started again: the same keys, and the same place in the queue.
    (pending,) = world.store.applications.pending()
    assert (pending.name, pending.fingerprint, pending.asked_s) == ("rose", shown, world.clock.now_s)
    assert {"arch", "os", "memory_mib", "engine"} == set(pending.facts)
    assert world.store.devices.all() == ()
    world.clock.advance(2 * DAY_S)  # The token has ended; what waits has not.
    world.store.applications.approve(pending.id, fingerprint=shown.upper(), actor=local_actor())
    assert world.store.applications.pending() == ()
    assert world.ask(home, token) == "rose"
    (device,) = world.store.devices.all()
    assert fingerprint(device.identity_key) == shown
    assert device.facts == pending.facts
    assert (home.pending, home.pending_file.exists()) == (None, False)
    told = [(entry.action, entry.actor.split(":")[0]) for entry in world.store.audit.all()]
    assert ("application.approved", "local") in told
    assert ("device.enroll", "service") in told


def test_another_fingerprint_approves_nobody(world: World) -> None:
    home, token = world.home(), world.token(approval=True)
    shown = waiting(world, home, token)
    (pending,) = world.store.applications.pending()
    for wrong in ("", shown[:-1], shown[:9], "0000" + shown[4:], shown + "0"):
        with pytest.raises(RefusedError, match="another fingerprint"):
            world.store.applications.approve(pending.id, fingerprint=wrong, actor=local_actor())
    waiting(world, home, token)


def test_a_rejected_device_is_told_why_and_stays_out(world: World) -> None:
    home, token = world.home(), world.token(approval=True)
    shown = waiting(world, home, token)
    (pending,) = world.store.applications.pending()
    with pytest.raises(UsageError, match="--reason"):
        world.store.applications.reject(pending.id, actor=local_actor(), reason=" ")
    world.store.applications.reject(pending.id, actor=local_actor(), reason="Not one of ours.")
    with pytest.raises(RefusedError, match=r"rejected this device: Not one of ours\."):
        world.ask(home, token)
    assert home.pending is None
    with pytest.raises(UsageError, match="No device waits"):
        world.store.applications.approve(pending.id, fingerprint=shown, actor=local_actor())
    with pytest.raises(TokenError, match="already used"):
        world.ask(world.home("other"), token)


def test_what_waits_too_long_waits_no_more_and_makes_room(tmp_path: Path) -> None:
    with world_at(tmp_path, mode="approve", max_pending=1, approval_days=3) as world:
        home, token = world.home(), world.token()
        shown = waiting(world, home, token)
        (pending,) = world.store.applications.pending()
        with pytest.raises(UnavailableError, match="1 devices wait for approval already"):
            world.ask(world.home("lily"), world.token())
        world.clock.advance(3 * DAY_S)
        with pytest.raises(RefusedError, match="too long"):
            world.ask(home, token)
        with pytest.raises(UsageError, match="No device waits"):
            world.store.applications.approve(pending.id, fingerprint=shown, actor=local_actor())
        waiting(world, world.home("lily"), world.token())


def test_an_approval_holds_for_a_day_at_least_and_not_for_ever(world: World) -> None:
    homes = {name: (world.home(name), world.token(name, approval=True)) for name in ("rose", "lily")}
    shown = {name: waiting(world, *each) for name, each in homes.items()}
    world.clock.advance(7 * DAY_S - 1)
    for pending in world.store.applications.pending():
        world.store.applications.approve(pending.id, fingerprint=shown[pending.name], actor=local_actor())
    world.clock.advance(DAY_S - 1)
    assert world.ask(*homes["rose"]) == "rose"
    world.clock.advance(1)
    with pytest.raises(RefusedError, match="too long"):
        world.ask(*homes["lily"])


def test_a_taken_name_is_said_before_the_device_waits_and_an_operator_may_give_another(world: World) -> None:
    world.ask(world.home("first"), world.token("rose"))
    with pytest.raises(UsageError, match="already a device rose"):
        enroll(world.home(), world.token(approval=True), name="rose", now_s=world.clock.now_s)
    home, token = world.home("second"), world.token(approval=True)
    shown = waiting(world, home, token)
    (pending,) = world.store.applications.pending()
    world.store.applications.approve(pending.id, fingerprint=shown, actor=local_actor(), name="lily")
    # The device asks under the name it began with; the operator's is the one that counts.
    assert world.ask(home, token) == "lily"


def test_who_waits_goes_on_through_outages_pauses_ever_longer_and_ends_with_the_fleets_word() -> None:
    pending = PendingError("wait", 1.0, "a1")
    answers: list[Exception | str] = [pending, UnavailableError("gone"), *[pending] * 8, "rose"]
    pauses: list[float] = []
    told: list[str] = []

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stopped(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    assert until_approved(ask, tell=lambda exc: told.append(exc.application), stopped=stopped) == "rose"
    assert told == ["a1"]
    assert (pauses[0], pauses[-1], pauses) == (FIRST_PAUSE_S, LAST_PAUSE_S, sorted(pauses))
    answers[:] = [pending]
    assert until_approved(ask, tell=lambda _: None, stopped=lambda _: True) is None
    for final in (UnavailableError("never there"), RefusedError("rejected")):
        answers[:] = [final]
        with pytest.raises(type(final)):
            until_approved(ask, tell=lambda _: None, stopped=lambda _: False)


def test_a_user_sees_what_the_operator_compares_and_is_let_in_without_another_word(world: World) -> None:
    environment = {**os.environ, "UMBEL_TOKEN": world.token("rose", approval=True)}
    command = [sys.executable, "-m", "umbel", "enroll", "--home", str(world.home().path)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Waiting for approval as ")
        shown = process.stderr.readline().strip()
        look = [sys.executable, "-m", "umbel", "status", "--home", str(world.home().path), "--json"]
        status = json.loads(subprocess.run(look, capture_output=True, check=True).stdout)
        (pending,) = world.store.applications.pending()
        assert status == {
            "pending": {
                "application": pending.id,
                "fingerprint": shown,
                "enrollment": world.fleet.settings.enrollment,
            }
        }
        world.store.applications.approve(pending.id, fingerprint=shown, actor=local_actor())
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out.startswith("Enrolled as rose in fleet garden")) == (0, True), err
    assert world.home().enrolled


# By number


def test_a_full_fleet_says_so_takes_back_its_own_and_spends_no_token(tmp_path: Path) -> None:
    with world_at(tmp_path, max_devices=2) as world:
        rose, lily, token = PlainDevice(), PlainDevice(), world.store.tokens.issue(valid_s=HOUR_S)
        rose.enroll(world.fleet, world.store.tokens.issue(valid_s=HOUR_S))
        lily.enroll(world.fleet, world.store.tokens.issue(valid_s=HOUR_S))
        third = PlainDevice()
        code, sentence = refusal(lambda: third.enroll(world.fleet, token))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert sentence.startswith("The fleet has 2 devices, as many as it may")
        rose.enroll(world.fleet, world.store.tokens.issue(valid_s=HOUR_S))
        world.store.devices.revoke(lily.id)
        third.enroll(world.fleet, token)


def test_so_many_enter_in_a_minute_and_the_rest_in_the_next(tmp_path: Path) -> None:
    with world_at(tmp_path, per_minute=3) as world:
        token = world.store.tokens.issue(valid_s=HOUR_S, uses=5)
        for _ in range(3):
            PlainDevice().enroll(world.fleet, token)
        code, sentence = refusal(lambda: PlainDevice().enroll(world.fleet, token))
        assert (code, "within a minute" in sentence) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        world.clock.advance(60)
        for _ in range(2):
            PlainDevice().enroll(world.fleet, token)


# In another's place


def test_a_device_that_lost_its_disk_has_its_name_again_and_the_old_keys_are_out(world: World) -> None:
    old, new, store = PlainDevice(), PlainDevice(), world.store
    old.enroll(world.fleet, store.tokens.issue(valid_s=HOUR_S), name="rose")
    old.upload(world.fleet, [old.sealed(world.fleet, plaintext=batch(window()))])
    store.devices.set_node_id(ROSE, 77)
    reply = new.enroll(world.fleet, store.tokens.issue(valid_s=HOUR_S, device="rose", replaces=True))
    assert reply.device_id == "rose"
    (device,) = store.devices.all()
    assert (device.identity_key, device.node_id, device.active) == (new.identity.public, None, True)
    assert store.devices.retired() == [(old.application(b"").node_key, 77)]
    assert old.application(b"").node_key in store.devices.shut_out()
    for call in (
        lambda: old.check(world.fleet),
        lambda: old.renew(world.fleet),
        lambda: old.upload(world.fleet, [old.sealed(world.fleet)]),
        lambda: old.fetch(world.fleet),
        lambda: old.enroll(world.fleet, store.tokens.issue(valid_s=HOUR_S), name="thorn"),
    ):
        assert refusal(call)[0] == grpc.StatusCode.PERMISSION_DENIED
    new.check(world.fleet)
    new.upload(world.fleet, [new.sealed(world.fleet, plaintext=batch(window()))])
    Opener(store, world.fleet.telemetry_private()).run_once()
    assert [(line.device, line.windows) for line in store.rollups.all()] == [("rose", 2)]


def test_the_one_whose_place_was_taken_does_not_come_back_by_its_identity(world: World) -> None:
    home = world.home()
    world.ask(home, world.token("rose"))
    world.ask(world.home("second"), world.token("rose", replaces=True))
    with pytest.raises(RefusedError, match="knows no device"):
        come_back(home, now_s=world.clock.now_s)


def test_a_name_is_given_away_only_by_a_token_that_says_so(world: World) -> None:
    world.ask(world.home(), world.token("rose"))
    with pytest.raises(UsageError, match="--name rose --replaces"):
        world.ask(world.home("second"), world.token("rose"))
    with pytest.raises(UsageError, match="add  --name"):
        world.store.tokens.issue(valid_s=HOUR_S, replaces=True)


def test_a_successor_stays_in_quarantine_and_a_revoked_name_lives_again(world: World) -> None:
    world.ask(world.home(), world.token("rose"))
    world.store.devices.quarantine(ROSE, reason="odd answers")
    world.ask(world.home("second"), world.token("rose", replaces=True))
    assert world.store.devices.admit(ROSE).quarantined
    world.store.devices.revoke(ROSE)
    world.ask(world.home("third"), world.token("rose", replaces=True))
    assert world.store.devices.admit(ROSE).active


def charged(world: World, run: str, rounds: int) -> None:
    """Put on record that rose was charged for rounds of a run, and dropped from one more."""
    name = RunId(run)
    world.store.runs.create(name, ModelName("digits"), "{}")
    directory = world.fleet.runs / run
    directory.mkdir()
    Cost(bound_sq=2**50, coordinates=64, variance=Fraction(2**52, 3)).save(directory)
    for number in range(1, rounds + 2):
        outcome: Outcome = "summed" if number <= rounds else "dropped"
        parts = (Participation(ROSE, outcome, "" if outcome == "summed" else "late"),)
        world.store.runs.begin_round(name, number, 1)
        world.store.runs.end_round(RoundRecord(name, number, 1, "opened", 1.0, 2.0, participations=parts))
    world.store.runs.finish(name, "finished", "")


def test_a_lost_disk_resets_no_budget(world: World) -> None:
    """The successor's ledger begins with what the fleet has on record for the name, to the last coin."""
    world.ask(world.home(), world.token("rose"))
    charged(world, "first", 3)
    charged(world, "second", 1)
    home = world.home("second")
    assert world.ask(home, world.token("rose", replaces=True)) == "rose"
    with Ledger(home.ledger) as ledger:
        past = [(each.run, each.round, each.attempt) for each in ledger.charges()]
        spent = ledger.spent(1e-6)
    assert past == [("first", 1, 1), ("first", 2, 1), ("first", 3, 1), ("second", 1, 1)]
    fleet = FleetLedger.of(world.store, world.fleet.runs)
    assert spent == pytest.approx(fleet.spent(ROSE, 1e-6), rel=1e-12)
    enroll(home, world.token("rose"), again=True, now_s=world.clock.now_s)
    with Ledger(home.ledger) as ledger:
        assert len(ledger.charges()) == 4  # What is there is not entered twice.


# Kept apart


def test_what_a_quarantined_device_reports_is_kept_apart_and_in_no_sum(world: World) -> None:
    rose, store = PlainDevice(), world.store
    rose.enroll(world.fleet, store.tokens.issue(valid_s=HOUR_S), name="rose")

    def report() -> SealedBatch:
        return rose.sealed(world.fleet, plaintext=batch(window()))

    rose.upload(world.fleet, [report()])
    store.devices.quarantine(ROSE, reason="odd answers")
    odd = [report(), report()]
    for _ in range(2):  # Sent again because the answer was lost: kept once.
        assert len(rose.upload(world.fleet, odd).acknowledged) == 2
    assert store.quarantine.counts() == {ROSE: 2}
    store.devices.release(ROSE, reason="mended")
    rose.upload(world.fleet, [report()])
    opener = Opener(store, world.fleet.telemetry_private())
    while opener.run_once():
        pass
    assert [line.windows for line in store.rollups.all()] == [2]
    assert store.quarantine.counts() == {ROSE: 2}
    actions = [entry.action for entry in store.audit.all() if entry.object == "device:rose"]
    assert actions == ["device.enroll", "device.quarantine", "device.release"]


def test_a_quarantined_device_renews_and_asks_for_releases_and_is_trusted_with_no_round(world: World) -> None:
    rose = PlainDevice()
    rose.enroll(world.fleet, world.store.tokens.issue(valid_s=HOUR_S), name="rose")
    assert world.store.devices.untrusted() == frozenset()
    world.store.devices.quarantine(ROSE, reason="odd answers")
    rose.check(world.fleet)
    rose.certificate = rose.renew(world.fleet, csr=make_csr(rose.tls)).certificate
    assert world.store.devices.untrusted() == {ROSE}
    assert rose.application(b"").node_key in world.store.devices.shut_out()
    world.store.devices.release(ROSE)
    assert (world.store.devices.untrusted(), world.store.devices.shut_out()) == (frozenset(), frozenset())


def test_a_quarantine_has_a_reason_and_a_device(world: World) -> None:
    with pytest.raises(UsageError, match="--reason"):
        world.store.devices.quarantine(ROSE, reason="")
    with pytest.raises(UsageError, match="There is no device rose"):
        world.store.devices.quarantine(ROSE, reason="odd")
    with pytest.raises(UsageError, match="There is no device rose"):
        world.store.devices.release(ROSE)
