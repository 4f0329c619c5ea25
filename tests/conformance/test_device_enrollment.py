"""The device against the real gateway: enrollment, renewal, and how it comes back."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from cable import Cable
from device_world import HOUR_S, World, open_device, predict_once, through
from model_packages import RELEASE
from service_fleet import DAY_S, make_fleet, running
from umbel._fleet.channel import Gateway
from umbel._fleet.enroll import enroll, renew
from umbel._home.directory import DeviceHome
from umbel._telemetry.spool import Spool
from umbel_proto.credentials import sign_policy
from umbel_proto.errors import CertificateError, RefusedError, TokenError, UnavailableError, UsageError


def test_an_enrolled_device_holds_papers_that_open(world: World) -> None:
    home = DeviceHome(world.root / "d1")
    identity = enroll(home, world.token(), name="rose", now_s=time.time())
    assert home.identity == identity
    assert (identity.fleet, identity.device) == ("garden", "rose")
    assert (identity.gateway, identity.superlink) == (
        world.fleet.settings.gateway,
        world.fleet.settings.superlink,
    )
    assert home.open_credential(time.time()).identity_key == home.signing_key().public
    assert home.open_policy() == world.fleet.policy()
    assert home.release_authority() == RELEASE.public
    assert home.telemetry_seal_key() == world.fleet.telemetry_public()
    assert home.node_key.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    for secret in (home.tls_key, home.identity_key, home.node_key, home.ledger, home.spool):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert not home.enrolling.exists()


def test_a_token_used_twice_is_refused_with_the_servers_sentence(world: World) -> None:
    token = world.token()
    enroll(DeviceHome(world.root / "d1"), token, now_s=time.time())
    with pytest.raises(TokenError, match="already used"):
        enroll(DeviceHome(world.root / "d2"), token, now_s=time.time())
    assert not DeviceHome(world.root / "d2").enrolled
    assert len(world.store.devices.all()) == 1


def test_a_home_enrolls_once_unless_told_again(world: World) -> None:
    home = world.device("d1")
    with pytest.raises(UsageError, match="already device d1"):
        enroll(home, world.token(), now_s=time.time())
    assert enroll(home, world.token(), name="d2", again=True, now_s=time.time()).device == "d2"


def test_enrolling_as_another_keeps_the_ledger_and_gives_up_what_was_sealed_before(world: World) -> None:
    home = world.device("d1")
    with open_device(home) as device:
        predict_once(device)
    ledger = home.ledger.read_bytes()
    enroll(home, world.token(), name="d2", again=True, now_s=time.time())
    assert home.ledger.read_bytes() == ledger
    with Spool(home.spool) as spool:
        assert (spool.depth().batches, spool.depth().dropped) == (0, 1)


@pytest.mark.parametrize("name", ["", "d1"])
def test_a_device_that_comes_back_is_itself_and_loses_no_report(world: World, name: str) -> None:
    home = world.device("d1")
    before = world.store.devices.all()
    ledger, tls_key = home.ledger.read_bytes(), home.tls_key.read_bytes()
    with open_device(home) as device:
        predict_once(device)
    assert enroll(home, world.token(), name=name, again=True, now_s=time.time()).device == "d1"
    keys = [(device.id, device.identity_key, device.node_key) for device in world.store.devices.all()]
    assert keys == [(device.id, device.identity_key, device.node_key) for device in before]
    assert home.ledger.read_bytes() == ledger
    assert home.tls_key.read_bytes() != tls_key
    with open_device(home) as device:
        device.sync()
    assert world.predictions() == 1


def test_a_device_whose_identity_is_damaged_comes_back_as_another(world: World) -> None:
    home = world.device("d1")
    home.identity_key.write_bytes(b"damaged")
    assert enroll(home, world.token(), again=True, now_s=time.time()).device != "d1"


def test_a_token_admits_a_device_whose_identity_was_shut_out_under_another_name(world: World) -> None:
    home = world.device("d1")
    world.store.devices.revoke(home.identity.device)
    identity = enroll(home, world.token(), again=True, now_s=time.time())
    assert identity.device != "d1"
    with open_device(home) as device:
        device.sync()


def test_a_lost_answer_costs_no_device(world: World) -> None:
    home, token = DeviceHome(world.root / "d1"), world.token()
    with Cable(world.fleet.settings.enrollment) as cable:
        enroll(DeviceHome(world.root / "measure"), world.token(), cable.address, now_s=time.time())
        cable.cut_after(cable.down - 500)  # In the middle of the answer, after the token was spent.
        with pytest.raises(UnavailableError):
            enroll(home, token, cable.address, now_s=time.time())
    assert not home.enrolled
    assert len(world.store.devices.all()) == 2
    identity = enroll(home, token, now_s=time.time())
    assert len(world.store.devices.all()) == 2
    assert identity.device in {device.id for device in world.store.devices.all()}
    with open_device(home) as device:
        device.sync()


def test_a_gateway_that_is_down_is_said_to_be_down(world: World, unused: str) -> None:
    with pytest.raises(UnavailableError, match=f"{unused} does not answer"):
        enroll(DeviceHome(world.root / "d1"), world.token(), unused, now_s=time.time())


def test_a_server_of_another_fleet_is_refused(world: World, tmp_path: Path) -> None:
    other = make_fleet(tmp_path / "other", name="other")
    with running(other):
        with pytest.raises(CertificateError, match="authority did not sign"):
            enroll(DeviceHome(world.root / "d1"), world.token(), other.settings.enrollment, now_s=time.time())
        home = world.device("d2")
        through(home, other.settings.gateway)
        with open_device(home) as device, pytest.raises(CertificateError, match="authority did not sign"):
            device.sync()


def test_a_device_whose_clock_is_far_off_is_told_so(world: World) -> None:
    with pytest.raises(CertificateError, match=r"set this machine's clock|expired"):
        enroll(DeviceHome(world.root / "d1"), world.token(), now_s=time.time() + 2 * DAY_S)


def test_a_certificate_past_two_thirds_of_its_life_is_renewed_by_a_sync(world: World) -> None:
    world.clock.advance(-17 * HOUR_S)
    home = world.device("d1")
    world.clock.advance(17 * HOUR_S)
    before, key = home.certificate_validity(), home.tls_key.read_bytes()
    with open_device(home) as device:
        device.sync()
        after = home.certificate_validity()
        assert after.ends_s == pytest.approx(before.ends_s + 17 * HOUR_S, abs=60)
        assert home.tls_key.read_bytes() == key
        assert home.open_credential(time.time()).not_after_s == pytest.approx(after.ends_s, abs=60)
        device.sync()  # The new certificate is taken, and is not renewed again.
        assert home.certificate_validity() == after


def test_a_young_certificate_is_left_alone(world: World) -> None:
    home = world.device("d1")
    before = home.tls_certificate.read_bytes()
    with open_device(home) as device:
        device.sync()
    assert home.tls_certificate.read_bytes() == before


def test_an_expired_certificate_is_a_sentence_and_not_a_handshake_error(world: World) -> None:
    world.clock.advance(-DAY_S - HOUR_S)
    home = world.device("d1")
    home.write_identity(
        dataclasses.replace(home.identity, enrollment="")
    )  # It does not know where to come back.
    with open_device(home) as device:
        with pytest.raises(
            CertificateError, match=r"certificate of d1 expired on .* umbel enroll TOKEN --again"
        ):
            device.sync()
        assert device.status().certificate_ends_s < time.time()


def test_a_device_never_goes_back_to_an_older_policy(world: World) -> None:
    home = world.device("d1")
    newer = dataclasses.replace(world.fleet.policy(), version=2)
    home.write(home.policy, sign_policy(world.fleet.authority_signer(), newer), secret=False)
    before = home.tls_certificate.read_bytes()
    with (
        Gateway(home, now_s=time.time()) as gateway,
        pytest.raises(CertificateError, match="policy 1, older"),
    ):
        renew(home, gateway, now_s=time.time())
    assert home.open_policy() == newer
    assert home.tls_certificate.read_bytes() == before


def test_a_revoked_device_is_refused_and_keeps_its_reports(world: World) -> None:
    home = world.device("d1")
    world.store.devices.revoke(home.identity.device)
    with open_device(home) as device:
        predict_once(device)
        with pytest.raises(RefusedError):
            device.sync()
        assert device.status().spooled_batches == 1
