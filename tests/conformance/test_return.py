"""A device that was away for longer than its certificate holds, and the gateway that takes it back.

Laws: it comes back by its identity key alone, without an operator, as itself and with everything that waited; nobody
else comes back in its place, whatever they have seen; and the fleet decides for how long, and for whom not.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from service_fleet import DAY_S, HOUR_S, ManualClock, make_csr, make_fleet, running
from umbel import Device
from umbel._doctor import Finding, examine
from umbel._fleet.channel import Gateway
from umbel._fleet.enroll import come_back, enroll, renew
from umbel._home.directory import DeviceHome
from umbel_proto.enrollment import prove_return
from umbel_proto.errors import CertificateError, RefusedError, UnavailableError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_server.fleet.ca import generate_key
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.settings import FleetSettings, Ports
from umbel_server.gateway.enrollment import Enrollment
from umbel_server.gateway.papers import Issuer
from umbel_server.gateway.readmission import CHALLENGE_LIFE_S, PACE_S, Readmission
from umbel_server.gateway.rpc import BusyError, serve_on
from umbel_server.monitor.opener import Opener
from umbel_server.store.store import Store

UMBEL = Path(sys.executable).with_name("umbel")


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """A fleet whose gateway runs, by a clock that the test sets."""

    fleet: FleetDir
    store: Store
    clock: ManualClock
    root: Path

    def device(self, name: str = "rose", *, away_days: float) -> DeviceHome:
        """A device that was last heard of when its certificate had so long to wait for its end."""
        away_s = (away_days + 1) * DAY_S
        self.clock.advance(-away_s)
        home = DeviceHome(self.root / name)
        enroll(home, invite(self.fleet, self.store).to_text(), name=name, now_s=self.clock.now_s)
        self.clock.advance(away_s)
        return home


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    with running(fleet, clock=clock) as (_, store):
        yield World(fleet, store, clock, tmp_path)


def test_after_a_week_offline_a_device_is_back_with_all_that_waited(world: World) -> None:
    home = world.device(away_days=7)
    before, keys = home.identity, (home.tls_key.read_bytes(), home.identity_key.read_bytes())
    with Device.open(home.path, online=False) as device:
        device.telemetry.count("visit")
        device.sync()
        assert device.status().spooled_batches == 0
    assert home.certificate_validity().ends_s == pytest.approx(time.time() + DAY_S, abs=60)
    assert home.open_credential(time.time()).not_after_s > time.time()
    assert (home.identity, (home.tls_key.read_bytes(), home.identity_key.read_bytes())) == (before, keys)
    Opener(world.store, world.fleet.telemetry_private()).run_once()
    assert [rollup.counters["app.visit"] for rollup in world.store.rollups.all()] == [1]
    kept = world.store.devices.get(DeviceId("rose"))
    assert kept is not None
    assert kept.certificate_not_after_s == pytest.approx(home.certificate_validity().ends_s, abs=1)


def test_the_background_thread_comes_back_by_itself(world: World) -> None:
    home = world.device(away_days=3)
    with Device.open(home.path, poll_s=0.1) as device:
        device.telemetry.count("visit")
        device.close(timeout_s=20)
    with Device.open(home.path, online=False) as device:
        assert device.status().certificate_ends_s > time.time()
        assert device.status().spooled_batches == 0


def test_the_agent_starts_without_the_network_and_refuses_to_without_hope(
    world: World, tmp_path: Path
) -> None:
    late = world.device("late", away_days=31)
    done = subprocess.run(
        [UMBEL, "run", "--home", late.path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, "was away for more than 30 days" in done.stderr) == (3, "", True)
    alone = world.device("alone", away_days=2)
    alone.write_identity(dataclasses.replace(alone.identity, gateway="127.0.0.1:1", enrollment="127.0.0.1:1"))
    agent = subprocess.Popen(
        [UMBEL, "run", "--home", alone.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready alone\n"
    finally:
        agent.terminate()
        _, said = agent.communicate(timeout=60)
    assert agent.returncode == 0
    assert "127.0.0.1:1 does not answer" in said


@pytest.mark.parametrize(
    ("days", "away_days", "back"), [(30, 29.9, True), (30, 30.1, False), (0, 0.1, False), (2, 1.9, True)]
)
def test_the_fleet_says_for_how_long(tmp_path: Path, days: int, away_days: float, back: bool) -> None:
    clock = ManualClock()
    made = make_fleet(tmp_path / "garden", clock=clock)
    settings = dataclasses.replace(made.settings, return_days=days)
    (made.path / "fleet.toml").write_text(settings.to_toml())
    fleet = FleetDir.open(made.path)
    assert fleet.settings == settings
    with running(fleet, clock=clock) as (_, store):
        home = World(fleet, store, clock, tmp_path).device(away_days=away_days)
        if back:
            come_back(home, now_s=clock.now_s)
            assert home.certificate_validity().ends_s > clock.now_s
            return
        with pytest.raises(RefusedError, match=f"more than {days} days: ask .* umbel enroll TOKEN --again"):
            come_back(home, now_s=clock.now_s)


def test_a_fleet_of_before_takes_back_for_thirty_days() -> None:
    text = FleetSettings(FleetId("garden"), "h", "h", Ports(1, 2, 3, 4)).to_toml()
    older = "\n".join(line for line in text.splitlines() if not line.startswith("return_days"))
    assert FleetSettings.from_toml(older).return_days == 30


# Attacks


def test_a_revoked_device_does_not_come_back_and_loses_nothing(world: World) -> None:
    home = world.device(away_days=2)
    world.store.devices.revoke(DeviceId("rose"))
    before = home.tls_certificate.read_bytes()
    with Device.open(home.path, online=False) as device:
        device.telemetry.count("visit")
        with pytest.raises(RefusedError, match="rose is revoked"):
            device.sync()
    with Device.open(home.path, online=False) as device:
        assert device.status().spooled_batches == 1
    assert home.tls_certificate.read_bytes() == before


def test_only_the_devices_own_key_brings_it_back(world: World) -> None:
    """Another device's key, no key, an unknown name: one answer to all, so that names cannot be found out."""
    home, other = world.device(away_days=2), world.device("other", away_days=2)
    said = set()
    stolen = {"rose": other.signing_key(), "nobody": home.signing_key(), "other": SigningKey.generate()}
    for name, key in stolen.items():
        home.write_identity(dataclasses.replace(home.identity, device=DeviceId(name)))
        home.write(home.identity_key, key.to_pem(), secret=True)
        with pytest.raises(RefusedError) as caught:
            come_back(home, now_s=world.clock.now_s)
        said.add(str(caught.value))
    assert len(said) == 1
    world.store.devices.revoke(DeviceId("other"))
    with pytest.raises(RefusedError) as caught:
        come_back(home, now_s=world.clock.now_s)  # Signed as "other", with a key that is not its own.
    assert str(caught.value) in said


@dataclasses.dataclass(slots=True)
class Wire:
    """Readmission without the network, and a device's key: requests as they were sent, sent again or changed."""

    service: Readmission
    key: SigningKey
    device: str = "rose"
    fleet: str = "garden"

    def challenge(self) -> bytes:
        reply: pb.ChallengeReply = self.service.challenge(pb.ChallengeRequest(), None)  # type: ignore[arg-type]
        return reply.challenge

    def request(self, challenge: bytes, csr: bytes = b"") -> pb.ReadmitRequest:
        csr = csr or make_csr(generate_key())
        proof = prove_return(
            self.key, fleet=FleetId(self.fleet), device=DeviceId(self.device), challenge=challenge, csr=csr
        )
        return pb.ReadmitRequest(device_id=self.device, challenge=challenge, csr=csr, proof=proof)

    def send(self, request: pb.ReadmitRequest) -> pb.RenewReply:
        return self.service.readmit(request, None)  # type: ignore[arg-type]


@pytest.fixture
def wire(world: World) -> Wire:
    home = world.device(away_days=2)
    issuer = Issuer.open(world.fleet, world.store, clock=world.clock)
    return Wire(Readmission(issuer, world.store.devices, days=30), home.signing_key())


def test_a_request_counts_once(world: World, wire: Wire) -> None:
    request, spare = wire.request(wire.challenge()), wire.request(wire.challenge())
    assert wire.send(request).certificate
    for again in (request, spare):  # Seen on the way, or signed at the same time: for another certificate.
        for wait_s in (0, PACE_S - 1, CHALLENGE_LIFE_S, DAY_S):
            world.clock.advance(wait_s)
            with pytest.raises(BusyError):
                wire.send(again)
    assert wire.send(wire.request(wire.challenge())).certificate


def test_a_device_comes_back_once_in_a_minute(world: World, wire: Wire) -> None:
    wire.send(wire.request(wire.challenge()))
    world.clock.advance(PACE_S - 1)
    with pytest.raises(BusyError, match="a moment ago"):
        wire.send(wire.request(wire.challenge()))
    world.clock.advance(1)
    wire.send(wire.request(wire.challenge()))


def test_a_challenge_is_the_gateways_own_and_young(world: World, wire: Wire) -> None:
    challenge = wire.challenge()
    older = Wire(
        Readmission(Issuer.open(world.fleet, world.store, clock=world.clock), world.store.devices, days=30),
        wire.key,
    )
    forged = [b"", b"x" * 32, challenge[:-1], challenge + b"x", bytes(len(challenge)), older.challenge()]
    forged += [
        challenge[:place] + bytes([challenge[place] ^ 1]) + challenge[place + 1 :]
        for place in range(len(challenge))
    ]
    for each in forged:
        with pytest.raises(BusyError, match="none of this gateway's"):
            wire.send(wire.request(each))
    request = wire.request(challenge)
    world.clock.advance(CHALLENGE_LIFE_S)
    with pytest.raises(BusyError, match="too old"):
        wire.send(request)
    world.clock.advance(-CHALLENGE_LIFE_S - 5)  # A clock that went back makes no challenge of the future.
    with pytest.raises(BusyError):
        wire.send(request)


def test_what_was_signed_is_what_counts(wire: Wire) -> None:
    """Its certificate for another's TLS key, its name, its fleet: none can be put into what a device signed."""
    request = wire.request(wire.challenge())
    for name, value in (
        ("csr", make_csr(generate_key())),
        ("challenge", wire.challenge()),
        ("proof", bytes(64)),
    ):
        altered = pb.ReadmitRequest.FromString(request.SerializeToString())
        setattr(altered, name, value)
        with pytest.raises(RefusedError):
            wire.send(altered)
    foreign = dataclasses.replace(wire, fleet="meadow")
    with pytest.raises(RefusedError):
        wire.send(foreign.request(wire.challenge()))
    assert wire.send(request).certificate


def test_the_members_door_stays_shut_to_an_expired_certificate(world: World) -> None:
    home = world.device(away_days=2)
    with (
        Gateway(home, now_s=home.certificate_validity().begins_s) as gateway,
        pytest.raises((UnavailableError, CertificateError)),
    ):
        renew(home, gateway, now_s=world.clock.now_s)


# Older and newer umbel


def test_a_home_of_before_learns_where_to_come_back_when_it_renews(world: World) -> None:
    world.clock.advance(-17 * HOUR_S)
    home = DeviceHome(world.root / "rose")
    enroll(home, invite(world.fleet, world.store).to_text(), now_s=world.clock.now_s)
    world.clock.advance(17 * HOUR_S)
    fields = json.loads(home.identity_file.read_text())
    address = fields.pop("enrollment")
    home.identity_file.write_text(json.dumps(fields))
    assert home.identity.enrollment == ""
    with Device.open(home.path, online=False) as device:
        device.sync()
    assert home.identity.enrollment == address == world.fleet.settings.enrollment


def test_without_an_address_an_expired_device_asks_for_a_token(world: World) -> None:
    home = world.device(away_days=2)
    home.write_identity(dataclasses.replace(home.identity, enrollment=""))
    with (
        Device.open(home.path, online=False) as device,
        pytest.raises(CertificateError, match="or else ask the fleet's"),
    ):
        device.sync()


def test_a_gateway_of_before_takes_nobody_back(world: World) -> None:
    home = world.device(away_days=2)
    before = grpc.server(ThreadPoolExecutor(2))
    enrollment = Enrollment(Issuer.open(world.fleet, world.store, clock=world.clock))
    serve_on(before, enrollment.descriptor, enrollment.methods)
    pair = (world.fleet.server_key.read_bytes(), world.fleet.server_pem.read_bytes())
    port = before.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    before.start()
    try:
        home.write_identity(dataclasses.replace(home.identity, enrollment=f"127.0.0.1:{port}"))
        with pytest.raises(CertificateError, match="umbel enroll TOKEN --again"):
            come_back(home, now_s=world.clock.now_s)
    finally:
        before.stop(0).wait()


# What its user is told


def look(home: DeviceHome, *, online: bool) -> dict[str, Finding]:
    return {each.check: each for each in examine(home, now_s=time.time(), online=online)}


@pytest.mark.parametrize("online", [True, False])
def test_the_doctor_says_what_an_expired_certificate_needs(world: World, online: bool) -> None:
    all_found = look(world.device(away_days=7), online=online)
    found = all_found["certificate"]
    assert (found.state, "let  umbel run  reach" in found.found) == ("warning", True)
    if online:
        gateway = all_found["gateway"]
        assert (gateway.state, f"{world.fleet.settings.enrollment} answers" in gateway.found) == (
            "warning",
            True,
        )
    assert all(each.state != "wrong" for each in all_found.values())
    found = look(world.device("late", away_days=40), online=online)["certificate"]
    assert (found.state, "ask the fleet's operator for a token" in found.found) == ("wrong", True)
