"""When devices train: what the fleet's signed policy demands, and what their owners do.

Laws: a device trains only where both would let it, whichever of the two is looser; what forbids it is said with whose
demand it is; a policy of an older fleet demands nothing, and one of a newer fleet is kept as it was signed.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.main
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as some

import umbel
from service_fleet import HOUR_S, ManualClock, make_fleet, policy, running
from umbel._data.consent import Consent
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome, Identity
from umbel._rounds.conditions import Conditions, NotNowError, Verdict
from umbel.cli import app
from umbel_proto.conditions import Rules
from umbel_proto.credentials import POLICY_LABEL, FleetPolicy, open_policy, sign_policy
from umbel_proto.errors import CertificateError, StorageError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.wire import identity_pb2 as pb
from umbel_server.cli import fleet as fleet_app
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir

FLEET = FleetId("garden")
OPERATOR = typer.main.get_command(fleet_app)
AUTHORITY = SigningKey.generate()
ALL = Rules(idle=True, charging=True, unmetered=True, min_battery=0.5, consent=True, unknown="refuse")

RULES = some.builds(
    Rules,
    idle=some.booleans(),
    charging=some.booleans(),
    unmetered=some.booleans(),
    min_battery=some.sampled_from([0.0, 0.3, 0.8]),
    unknown=some.sampled_from(["allow", "refuse"]),
)
READINGS = some.builds(
    umbel.Reading,
    load=some.sampled_from([None, 0.1, 2.0]),
    charging=some.sampled_from([None, True, False]),
    battery=some.sampled_from([None, 0.2, 0.5, 1.0]),
    metered=some.sampled_from([None, True, False]),
)


def signed(training: Rules) -> bytes:
    return sign_policy(AUTHORITY, replace(policy(), training=training))


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    home = DeviceHome(tmp_path / "home")
    home.make()
    home.write(home.authority_key, AUTHORITY.public.raw, secret=False)
    home.write_identity(Identity(FLEET, DeviceId("rose"), "127.0.0.1:1", ""))
    return home


def verdict(home: DeviceHome, policy: Rules, own: Rules, reading: umbel.Reading) -> Verdict:
    home.policy.write_bytes(signed(policy))
    home.conditions.unlink(missing_ok=True)
    conditions = Conditions(home, probes=[lambda: reading])
    fields = {name: getattr(own, name) for name in Rules.__slots__}
    conditions.require(**fields)
    return conditions.now()


@given(fleets=RULES, own=RULES, reading=READINGS)
def test_a_device_trains_where_policy_and_owner_both_would_let_it(
    tmp_path_factory: pytest.TempPathFactory, fleets: Rules, own: Rules, reading: umbel.Reading
) -> None:
    home = DeviceHome(tmp_path_factory.getbasetemp() / "laws")
    home.make()
    home.write(home.authority_key, AUTHORITY.public.raw, secret=False)
    home.write_identity(Identity(FLEET, DeviceId("rose"), "127.0.0.1:1", ""))
    both = verdict(home, fleets, own, reading)
    # What cannot be known is judged by the stricter of the two, so that the law is an equation.
    unknown = "refuse" if "refuse" in (fleets.unknown, own.unknown) else "allow"
    alone = [
        verdict(home, Rules(), replace(each, unknown=unknown), reading)  # type: ignore[arg-type]
        for each in (fleets, own)
    ]
    assert both.trains == all(each.trains for each in alone)
    assert set(both.by) == {
        name for name, each in zip(("policy", "device"), alone, strict=True) if not each.trains
    }
    looser = [verdict(home, fleets, Rules(), reading), verdict(home, Rules(), own, reading)]
    assert not both.trains or all(each.trains for each in looser)


@pytest.mark.parametrize(
    ("fleets", "own", "said", "by"),
    [
        (Rules(charging=True), Rules(), "on its battery (against the fleet's policy)", ("policy",)),
        (Rules(), Rules(charging=True), "on its battery (against this device's conditions)", ("device",)),
        (
            Rules(charging=True),
            Rules(charging=True),
            "on its battery (against the fleet's policy and this device's conditions)",
            ("device", "policy"),
        ),
        (
            Rules(min_battery=0.4),
            Rules(min_battery=0.8),
            "at 50%, below 80% (against this device's conditions)",
            ("device",),
        ),
        (Rules(consent=True), Rules(), "was not asked for consent", ("policy",)),
    ],
)
def test_what_forbids_training_is_said_with_whose_demand_it_is(
    home: DeviceHome, fleets: Rules, own: Rules, said: str, by: tuple[str, ...]
) -> None:
    found = verdict(home, fleets, own, umbel.Reading(charging=False, battery=0.5))
    assert said in str(found)
    assert (found.trains, found.by, len(found.reasons)) == (False, by, 1)
    with pytest.raises(NotNowError):
        Conditions(home, probes=[lambda: umbel.Reading(charging=False, battery=0.5)]).check()


def test_a_user_who_took_consent_back_is_named_beside_the_policy(home: DeviceHome) -> None:
    Consent(home).revoke()
    found = verdict(home, Rules(charging=True, consent=True), Rules(), umbel.Reading(charging=False))
    assert found.by == ("policy", "user")
    assert found.reasons[0] == "the user took back consent to training"


def test_an_owner_cannot_take_back_what_the_fleet_demands(home: DeviceHome) -> None:
    home.policy.write_bytes(signed(ALL))
    conditions = Conditions(home, probes=[])
    conditions.require(
        idle=False, charging=False, unmetered=False, min_battery=0, consent=False, unknown="allow"
    )
    assert conditions.policy == ALL
    assert len(conditions.now().reasons) == 5


def test_with_a_policy_that_is_not_the_fleets_nobody_trains(home: DeviceHome) -> None:
    home.policy.write_bytes(sign_policy(SigningKey.generate(), policy()))
    with pytest.raises(CertificateError, match="not signed by this fleet's authority"):
        Conditions(home, probes=[]).check()
    home.policy.unlink()
    with pytest.raises(StorageError):
        Conditions(home, probes=[]).check()


# On the wire


@pytest.mark.parametrize("training", [Rules(), ALL, Rules(min_battery=1.0), Rules(unknown="refuse")])
def test_conditions_are_signed_with_the_policy(training: Rules) -> None:
    assert open_policy(signed(training), authority=AUTHORITY.public, fleet=FLEET).training == training


def test_an_older_policy_demands_nothing_and_its_bytes_stay() -> None:
    older = pb.Policy(
        fleet_id=FLEET, corrupt_fraction=0.1, dropout_fraction=0.2, server_malicious=True, min_cohort=3,
        budget_epsilon=8.0, budget_delta=1e-6, version=1,
    )  # fmt: skip
    body = older.SerializeToString(deterministic=True)
    assert pb.Signed.FromString(signed(Rules())).body == body


def test_what_a_newer_fleet_demands_is_kept_as_it_was_signed() -> None:
    # Field 99, which nobody knows, after a policy that everybody does.
    body = pb.Signed.FromString(signed(ALL)).body + b"\x9a\x06\x03new"
    received = pb.Signed(body=body, signature=AUTHORITY.sign(POLICY_LABEL, body))
    kept = received.SerializeToString()
    assert open_policy(kept, authority=AUTHORITY.public, fleet=FLEET).training == ALL
    assert pb.Signed.FromString(kept).body == body


def test_a_policy_with_an_impossible_demand_is_refused() -> None:
    body = pb.Signed.FromString(signed(Rules())).body
    wrong = pb.Policy.FromString(body)
    wrong.training.min_battery = 1.5
    body = wrong.SerializeToString()
    message = pb.Signed(body=body, signature=AUTHORITY.sign(POLICY_LABEL, body)).SerializeToString()
    with pytest.raises(CertificateError, match="malformed"):
        open_policy(message, authority=AUTHORITY.public, fleet=FLEET)


# The operator, and the device's user


def operator(fleet: FleetDir, *words: object) -> Any:
    result = CliRunner().invoke(OPERATOR, ["policy", "--fleet", str(fleet.path), *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def user(home: DeviceHome, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--home", str(home.path)], catch_exceptions=False)
    return result.output


def test_the_operator_changes_the_conditions_alone_and_one_by_one(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    before = fleet.policy()
    said = json.loads(operator(fleet, "--charging", "--min-battery", 0.5, "--json"))
    assert (said["version"], said["training"]["charging"], said["training"]["idle"]) == (2, True, False)
    operator(fleet, "--unknown", "refuse", "--no-charging")
    after = fleet.policy()
    assert after == replace(before, version=3, training=Rules(min_battery=0.5, unknown="refuse"))
    assert "min_battery" in operator(fleet)
    operator(fleet, "--unknown", "refuse")
    assert fleet.policy() == after  # Nothing changed: no new version.
    result = CliRunner().invoke(OPERATOR, ["policy", "--fleet", str(fleet.path), "--min-battery", "2"])
    assert "min_battery" in str(result.exception)
    assert fleet.policy() == after


def test_a_device_learns_of_it_when_it_renews_and_says_it_everywhere(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    with running(fleet, clock=clock) as (_, store):
        clock.advance(-17 * HOUR_S)
        home = DeviceHome(tmp_path / "rose")
        enroll(home, invite(fleet, store).to_text(), now_s=clock.now_s)
        clock.advance(17 * HOUR_S)
        operator(fleet, "--consent")  # While the gateway runs.
        with umbel.Device.open(home.path, online=False) as device:
            assert device.conditions.now().trains
            device.sync()
            said = "the user was not asked for consent to training (against the fleet's policy)"
            assert device.conditions.now().reasons == (said,)
            assert said in str(device.privacy)
            assert device.status().training.by == ("policy",)
    assert home.open_policy() == fleet.policy() == replace(policy(), version=2, training=Rules(consent=True))
    assert json.loads(user(home, "status", "--json"))["training"]["by"] == ["policy"]
    shown = json.loads(user(home, "data", "conditions", "--json"))
    assert (shown["policy"]["consent"], shown["rules"]["consent"], shown["by"]) == (True, False, ["policy"])
    for words in (("status",), ("doctor", "--offline"), ("data", "conditions"), ("privacy",)):
        told = " ".join(user(home, *words).split())
        assert "against the fleet's policy" in told, words


def test_a_gateway_whose_policy_is_damaged_hands_out_none(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    with running(fleet) as (_, store):
        damaged: FleetPolicy = replace(policy(), min_cohort=4)
        fleet.policy_bin.write_bytes(sign_policy(SigningKey.generate(), damaged))
        with pytest.raises(umbel.UnavailableError, match="store fails"):
            enroll(DeviceHome(tmp_path / "d1"), invite(fleet, store).to_text(), now_s=time.time())
