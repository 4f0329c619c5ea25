"""``umbel fleet``: what an operator types, and what programs read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_packages import RELEASE, first, opened
from service_fleet import PlainDevice, batch, make_fleet, policy, window
from umbel import cli
from umbel_proto.credentials import FleetPolicy
from umbel_proto.enrollment import Token
from umbel_proto.errors import StorageError, UsageError
from umbel_proto.ids import DeviceId, FleetId, ModelName, RunId
from umbel_proto.seal import open_sealed, seal
from umbel_server.ca.settings import Enrollment
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.ports import free_ports
from umbel_server.fleet.settings import FleetSettings, Ports
from umbel_server.monitor.opener import Opener
from umbel_server.store.admission import WaitingError
from umbel_server.store.batches import Arrival
from umbel_server.store.runs import Participation, RoundRecord


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@dataclass
class Terminal:
    """The ``umbel`` command, typed."""

    patch: pytest.MonkeyPatch
    captured: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Ran:
        self.patch.setattr("sys.argv", ["umbel", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = self.captured.readouterr()
        return Ran(int(exit_.value.code or 0), out, err)


@pytest.fixture
def umbel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Terminal:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("UMBEL_FLEET", str(tmp_path / "garden"))
    return Terminal(monkeypatch, capsys)


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    return make_fleet(tmp_path / "garden")


# create


def test_create_makes_a_fleet_and_says_what_is_next(umbel: Terminal, tmp_path: Path) -> None:
    ran = umbel("fleet", "create", "--name", "garden")
    assert ran.code == 0
    made = FleetDir.open(tmp_path / "garden")
    assert made.name == "garden"
    assert made.settings.gateway in ran.out
    assert "umbel serve gateway" in ran.out


def test_a_fleet_that_is_made_by_hand_has_an_authority_of_its_own(umbel: Terminal, tmp_path: Path) -> None:
    umbel("fleet", "create", "--name", "garden")
    made = FleetDir.open(tmp_path / "garden")
    assert (made.settings.ca.apart, made.settings.ca.signer) == (True, "file")
    assert made.settings.admission == Enrollment()


def test_create_signs_the_policy_that_was_asked_for(umbel: Terminal, tmp_path: Path) -> None:
    asked = {"min-cohort": 40, "noise-floor": 1.5, "budget-epsilon": 4, "corrupt-fraction": 0.05}
    options = [word for name, value in asked.items() for word in (f"--{name}", value)]
    made = umbel("fleet", "create", "--name", "garden", "--server", "curious", "--json", *options).json
    assert made["fleet"] == "garden"
    assert FleetDir.open(tmp_path / "garden").policy() == FleetPolicy(
        FleetId("garden"), 0.05, 0.2, False, 40, 1.5, 4.0, 1e-6
    )


def test_create_leaves_a_directory_that_is_not_empty_alone(umbel: Terminal, tmp_path: Path) -> None:
    (tmp_path / "garden").mkdir()
    (tmp_path / "garden" / "photo.jpg").write_bytes(b"dear to somebody")
    ran = umbel("fleet", "create", "--name", "garden")
    assert (ran.code, "not empty" in ran.err) == (2, True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["photo.jpg"]


@pytest.mark.parametrize(
    "options",
    [
        ("--name", "Garden"),
        ("--name", "garden", "--min-cohort", 2),
        ("--name", "garden", "--corrupt-fraction", 0.5),
        ("--name", "garden", "--host", "no host"),
        ("--name", "garden", "--gateway-port", 70000),
        ("--name", "garden", "--gateway-port", 9000, "--enroll-port", 9000),
    ],
)
def test_create_refuses_what_cannot_be_and_leaves_nothing(
    umbel: Terminal, tmp_path: Path, options: tuple[object, ...]
) -> None:
    ran = umbel("fleet", "create", *options)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_fleet_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(self: FleetDir, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FleetDir, "open_store", no_space)
    with pytest.raises(StorageError, match="No space is left"):
        create_fleet(tmp_path / "garden", name="garden", policy=policy())
    assert list(tmp_path.iterdir()) == []


def test_a_fleet_has_one_policy_its_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of fleet meadow, not garden"):
        create_fleet(tmp_path / "garden", name="garden", policy=policy("meadow"))


def test_only_the_owner_may_read_a_secret(fleet: FleetDir) -> None:
    secret = [
        fleet.ca_key,
        fleet.authority_key,
        fleet.server_key,
        fleet.release_key,
        fleet.root_key,
        fleet.targets_key,
        *fleet.trust.glob("online/*.key"),
        fleet.telemetry_key,
        fleet.control_secret,
        fleet.superexec_secret,
        fleet.store_db,
    ]
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}
    everything_else = {path for path in fleet.path.rglob("*") if path.is_file()} - set(secret)
    assert not any(b"PRIVATE" in path.read_bytes() for path in everything_else)


def test_the_public_keys_are_the_private_ones(fleet: FleetDir) -> None:
    assert fleet.release_signer().public == fleet.release_public()
    assert fleet.authority_signer().public == fleet.authority_public()
    sealed = seal(fleet.telemetry_public(), b"header", b"secret")
    assert open_sealed(fleet.telemetry_private(), b"header", sealed) == b"secret"


# fleet.toml


def test_settings_survive_their_file() -> None:
    settings = FleetSettings(FleetId("garden"), "fleet.example", "0.0.0.0", Ports(1, 2, 3, 4))
    assert FleetSettings.from_toml(settings.to_toml()) == settings


def test_an_ipv6_address_is_dialed_in_brackets() -> None:
    settings = FleetSettings(FleetId("garden"), "::1", "::1", Ports(8443, 8444, 8445, 8446))
    assert settings.gateway == "[::1]:8443"
    assert FleetSettings.from_toml(settings.to_toml()) == settings


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[ports]", "[ports", "not TOML"),
        ("[ports]", "[port]", "no table"),
        ('host = "127.0.0.1"', "", "'host' must be text"),
        ('host = "127.0.0.1"', "host = 5", "'host' must be text"),
        ('host = "127.0.0.1"', 'hots = "127.0.0.1"', "'hots' is not a setting"),
        ("enrollment = ", "enrollment = true #", "'enrollment' must be a number"),
        ("enrollment = ", "enrollment = 0 #", "enrollment port is 0"),
    ],
)
def test_a_mistake_in_the_settings_is_named(
    umbel: Terminal, fleet: FleetDir, old: str, new: str, sentence: str
) -> None:
    file = fleet.path / "fleet.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    ran = umbel("fleet", "devices")
    assert (ran.code, sentence in ran.err) == (2, True)


def test_a_directory_without_a_fleet_is_named(umbel: Terminal) -> None:
    ran = umbel("fleet", "devices")
    assert (ran.code, "holds no fleet" in ran.err) == (2, True)


def test_free_ports_are_free_and_below_those_of_outgoing_connections() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(20000 <= port < 32768 for port in ports)


# token, devices, revoke


def test_a_token_lets_a_device_in_and_is_kept_as_a_hash(umbel: Terminal, fleet: FleetDir) -> None:
    token = Token.from_text(umbel("fleet", "token", "--name", "rose").out)
    assert token.enrollment == fleet.settings.enrollment
    assert token.ca_certificate == fleet.authority().certificate_der
    with fleet.open_store() as store:
        application = PlainDevice().application(token.secret)
        assert store.devices.enroll(application, certificate_life_s=60).id == "rose"


def test_a_token_is_as_good_as_it_says(umbel: Terminal, fleet: FleetDir) -> None:
    made = umbel("fleet", "token", "--uses", 3, "--hours", 2, "--json").json
    token = Token.from_text(made["token"])
    with fleet.open_store(clock=lambda: made["expires_s"] - 10) as store:
        for _ in range(3):
            store.devices.enroll(PlainDevice().application(token.secret), certificate_life_s=60)
    assert umbel("fleet", "token", "--uses", 0).code == 2


def test_devices_are_listed_for_people_and_for_programs(umbel: Terminal, fleet: FleetDir) -> None:
    device = PlainDevice()
    with fleet.open_store() as store:
        admitted = device.admit(fleet, store, name="rose")
        store.devices.set_node_id(DeviceId("rose"), 2**64 - 1)
        store.runs.create(RunId("r1"), ModelName("digits"), "{}")
        for number, outcome in ((1, "summed"), (2, "charged"), (3, "summed")):
            part = Participation(DeviceId("rose"), outcome)  # type: ignore[arg-type]
            record = RoundRecord(RunId("r1"), number, 1, "opened", 0.0, 1.0, participations=(part,))
            store.runs.begin_round(RunId("r1"), number, 1)
            store.runs.end_round(record)
    (line,) = umbel("fleet", "devices", "--json").json
    assert line == {
        "id": "rose",
        "status": "online",
        "enrolled_s": admitted.enrolled_s,
        "last_seen_s": admitted.last_seen_s,
        "certificate_not_after_s": admitted.certificate_not_after_s,
        "node_id": str(2**64 - 1),
        "models": {},
        "rounds": 2,
        "rounds_missed": 1,
    }
    table = umbel("fleet", "devices").out
    assert re.search(r"rose +online +\d s ago +24 h left +- +18446744073709551615 +2 \(missed 1\)", table)


def test_who_waits_is_listed_and_let_in_by_the_whole_fingerprint(umbel: Terminal, fleet: FleetDir) -> None:
    token = Token.from_text(umbel("fleet", "token", "--approval").out)
    devices = [PlainDevice() for _ in range(2)]
    tokens = [token, Token.from_text(umbel("fleet", "token", "--approval").out)]
    with fleet.open_store() as store:
        for device, each, name in zip(devices, tokens, ("rose", "lily"), strict=True):
            with pytest.raises(WaitingError):
                store.devices.enroll(device.application(each.secret, name=name), certificate_life_s=60)
    rose, lily = umbel("fleet", "pending", "--json").json
    assert set(rose) == {"id", "fingerprint", "name", "facts", "asked_s", "expires_s"}
    assert [each["name"] for each in (rose, lily)] == ["rose", "lily"]
    table = umbel("fleet", "pending").out
    assert (rose["fingerprint"] in table, "7 d from now" in table) == (True, True)
    wrong = umbel("fleet", "approve", rose["id"], "--fingerprint", lily["fingerprint"])
    assert (wrong.code, "another fingerprint" in wrong.err) == (3, True)
    unknown = umbel("fleet", "approve", "00000000", "--fingerprint", rose["fingerprint"])
    assert (unknown.code, "umbel fleet pending" in unknown.err) == (2, True)
    assert umbel("fleet", "approve", rose["id"], "--fingerprint", rose["fingerprint"]).code == 0
    assert umbel("fleet", "reject", lily["id"], "--reason", "Not ours.", "--json").json["state"] == "rejected"
    assert umbel("fleet", "pending", "--json").json == []
    with fleet.open_store() as store:
        store.devices.enroll(devices[0].application(token.secret, name="rose"), certificate_life_s=60)
    assert [line["id"] for line in umbel("fleet", "devices", "--json").json] == ["rose"]


def test_a_quarantined_device_is_shown_as_such_until_it_is_released(umbel: Terminal, fleet: FleetDir) -> None:
    with fleet.open_store() as store:
        PlainDevice().admit(fleet, store, name="rose")
    assert umbel("fleet", "quarantine", "rose", "--reason", " ").code == 2
    assert umbel("fleet", "quarantine", "lily", "--reason", "odd").code == 2
    assert umbel("fleet", "quarantine", "rose", "--reason", "odd").out == "Device rose is quarantined.\n"
    assert [line["status"] for line in umbel("fleet", "devices", "--json").json] == ["quarantined"]
    assert umbel("fleet", "release-quarantine", "rose").code == 0
    assert [line["status"] for line in umbel("fleet", "devices", "--json").json] == ["online"]


def test_a_token_gives_a_name_away_only_with_the_name(umbel: Terminal, fleet: FleetDir) -> None:
    with fleet.open_store() as store:
        PlainDevice().admit(fleet, store, name="rose")
    assert (umbel("fleet", "token", "--replaces").code, umbel("fleet", "devices", "--json").code) == (2, 0)
    token = Token.from_text(umbel("fleet", "token", "--name", "rose", "--replaces").out)
    successor = PlainDevice()
    with fleet.open_store() as store:
        store.devices.enroll(successor.application(token.secret), certificate_life_s=60)
        (device,) = store.devices.all()
    assert (device.id, device.identity_key) == ("rose", successor.identity.public)


def test_a_revoked_device_is_shown_as_such(umbel: Terminal, fleet: FleetDir) -> None:
    with fleet.open_store() as store:
        PlainDevice().admit(fleet, store, name="rose")
    assert umbel("fleet", "revoke", "rose").out == "Device rose is revoked.\n"
    (line,) = umbel("fleet", "devices", "--json").json
    assert line["status"] == "revoked"
    ran = umbel("fleet", "revoke", "lily")
    assert (ran.code, "no device lily" in ran.err) == (2, True)


# telemetry


def test_telemetry_is_summed_for_people_and_for_programs(umbel: Terminal, fleet: FleetDir) -> None:
    device = PlainDevice()
    with fleet.open_store() as store:
        device.admit(fleet, store, name="rose")
        sealed = device.sealed(fleet, plaintext=batch(window(), window(start_s=90_000)))
        key_id = fleet.telemetry_public().key_id
        store.batches.append(device.id, [Arrival(bytes(16), key_id, sealed.header, sealed.ciphertext)])
        Opener(store, fleet.telemetry_private()).run_once()
        PlainDevice().admit(fleet, store, name="lily")
    silent, line = umbel("fleet", "telemetry", "--json").json
    assert (silent["device"], silent["models"], silent["last_received_s"]) == ("lily", [], None)
    assert line["device"] == "rose"
    assert line["batches"] == {"opened": 1, "sealed": 0, "rejected": 0}
    assert line["predictions"] == 4
    (model,) = line["models"]
    assert (model["model"], model["version"], model["variant"]) == ("digits", 1, "int8")
    assert model["labels"] == {"3": 2, "7": 2}
    assert model["confidence_mean"] == 0.75
    assert 67 <= model["latency_us"]["p50"] <= 120 < 225 <= model["latency_us"]["p90"] <= 400
    table = umbel("fleet", "telemetry").out
    assert re.search(r"rose +1 +\d s ago +digits@1 int8 onnx +4 +0 +\d+ +\d+ +0\.750", table)


def test_telemetry_shows_people_no_row_of_a_window_that_only_counts_reviews(
    umbel: Terminal, fleet: FleetDir
) -> None:
    device = PlainDevice()
    reviews = {"variant": "none", "engine": "none", "counters": {"review.agreed": 1}, "histograms": []}
    with fleet.open_store() as store:
        device.admit(fleet, store, name="rose")
        sealed = device.sealed(fleet, plaintext=batch(window(), window(**reviews)))
        key_id = fleet.telemetry_public().key_id
        store.batches.append(device.id, [Arrival(bytes(16), key_id, sealed.header, sealed.ciphertext)])
        Opener(store, fleet.telemetry_private()).run_once()
    assert len(umbel("fleet", "telemetry", "--json").json[0]["models"]) == 2
    for words in ((), ("--sum",)):
        table = umbel("fleet", "telemetry", *words).out
        assert ("digits@1" in table, "none" in table) == (True, False)


# publish


def test_a_package_is_verified_put_in_place_and_offered(
    umbel: Terminal, fleet: FleetDir, tmp_path: Path
) -> None:
    fleet.release_pub.write_bytes(RELEASE.public.raw)
    file = tmp_path / "digits.umbel"
    file.write_bytes(first())
    out = umbel("fleet", "publish", file, "--json").json
    package = opened(first())
    assert out == {
        "model": package.manifest.model,
        "version": package.manifest.version,
        "sha256": package.sha256,
        "size": package.size,
    }
    sha256 = bytes.fromhex(package.sha256)
    assert fleet.package(sha256).read_bytes() == first()
    with fleet.open_store() as store:
        assert [release.sha256 for release in store.releases.newest()] == [sha256]
    assert umbel("fleet", "publish", file).code == 0  # Again is no error.


@pytest.mark.parametrize("spoil", ["signed by somebody else", "one byte changed", "missing"])
def test_a_package_that_is_not_the_fleets_is_not_released(
    umbel: Terminal, fleet: FleetDir, tmp_path: Path, spoil: str
) -> None:
    file = tmp_path / "digits.umbel"
    data = bytearray(first())
    if spoil == "one byte changed":
        fleet.release_pub.write_bytes(RELEASE.public.raw)
        data[len(data) // 2] ^= 1
    if spoil != "missing":
        file.write_bytes(data)
    ran = umbel("fleet", "publish", file)
    assert ran.code == (2 if spoil == "missing" else 4)
    assert len(ran.err.strip().splitlines()) == 1
    assert list(fleet.packages.iterdir()) == []
    with fleet.open_store() as store:
        assert store.releases.all() == ()


# damage


def test_a_corrupted_store_is_one_sentence_and_exit_code_6(umbel: Terminal, fleet: FleetDir) -> None:
    fleet.store_db.write_bytes(b"x" * 8192)
    for command in ("devices", "telemetry", "token"):
        ran = umbel("fleet", command)
        assert ran.code == 6
        assert re.fullmatch(r"Error: The store .* is corrupted: .* restore it from a backup\.\n", ran.err)


def test_every_command_has_help(umbel: Terminal) -> None:
    for group, names in (
        ("fleet", ("create", "token", "devices", "telemetry", "revoke", "publish")),
        ("serve", ("gateway", "opener", "superlink", "superexec")),
        ("rounds", ("start", "resume", "stop", "list", "show", "watch")),
    ):
        for name in names:
            ran = umbel(group, name, "--help")
            assert (ran.code, "--fleet" in ran.out) == (0, True), name
