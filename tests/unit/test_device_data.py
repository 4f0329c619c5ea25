"""What an application sees of a device's data, consent, conditions and privacy: `import umbel`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import umbel
from model_packages import RELEASE, digits, first, shelf
from umbel._home.directory import DeviceHome, Identity
from umbel._rounds.ledger import Ledger
from umbel_proto.credentials import FleetPolicy, sign_policy
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    home, authority = DeviceHome(tmp_path), SigningKey.generate()
    home.make()
    shelf(tmp_path).install(first())
    policy = FleetPolicy(FleetId("garden"), 0.1, 0.2, True, 3, 0.0, 8.0, 1e-6)
    home.write(home.authority_key, authority.public.raw, secret=False)
    home.write(home.policy, sign_policy(authority, policy), secret=False)
    home.write(home.release_key, RELEASE.public.raw, secret=False)
    Ledger.create(home.ledger).close()
    home.write_identity(Identity(FleetId("garden"), DeviceId("rose"), "127.0.0.1:1", ""))
    return home


def test_an_application_keeps_examples_and_its_user_takes_them_back(home: DeviceHome) -> None:
    part = digits().train
    with umbel.Device.open(home.path, online=False) as device:
        data = device.data("digits")
        assert device.data("digits") is data
        assert len(data.add(part.x[0], int(part.y[0]), source="user")) == 1
        data.add(part.x[1:20], part.y[1:20], source="import", annotator="ada")
        data.retain(umbel.Retention(max_rows=15))
        train, test = data.split()
        assert len(train) + len(test) == 15
        report = data.report()
        assert isinstance(report, umbel.DataReport)
        assert report.sources == {"import": 15}
        assert "15 of model digits" in str(device.privacy)
        assert device.consent.revoke("training") == 15
        with pytest.raises(umbel.RefusedError):
            data.add(part.x[0], int(part.y[0]), source="user")
        assert "taken back" in str(device.privacy)


def test_an_application_says_when_to_train_and_brings_a_probe(home: DeviceHome) -> None:
    with umbel.Device.open(home.path, online=False) as device:
        assert device.conditions.require(unmetered=True) == umbel.Rules(unmetered=True)
        device.conditions.add_probe(lambda: umbel.Reading(metered=True))
        assert str(device.conditions) == (
            "This device does not train now: its network is metered (against this device's conditions)."
        )
        device.conditions.add_probe(lambda: umbel.Reading(metered=False))
        verdict = device.conditions.now()
        assert isinstance(verdict, umbel.Verdict)
        assert verdict.trains


def test_two_devices_on_one_home_see_the_same_examples(home: DeviceHome) -> None:
    x = np.asarray(digits().train.x[0])
    with (
        umbel.Device.open(home.path, online=False) as one,
        umbel.Device.open(home.path, online=False) as other,
    ):
        (name,) = one.data("digits").add(x, 3, source="user")
        assert [example.id for example in other.data("digits").examples()] == [name]
        other.consent.revoke()
        other.consent.grant()
        other.data("digits").add(x, 4, source="user")
        one.data("digits").add(x, 5, source="user")
        assert [example.y for example in one.data("digits").examples()] == [4, 5]


def test_a_model_that_is_not_there_has_no_data(home: DeviceHome) -> None:
    with (
        umbel.Device.open(home.path, online=False) as device,
        pytest.raises(umbel.UsageError, match="let the device fetch it first"),
    ):
        device.data("other")


@pytest.mark.parametrize(
    "use",
    [
        lambda device: device.model("digits"),
        lambda device: device.data("digits"),
        lambda device: device.status(),
        lambda device: device.sync(),
        lambda device: device.__enter__(),
    ],
    ids=["model", "data", "status", "sync", "with"],
)
def test_a_closed_device_says_so_and_blames_no_disk(
    home: DeviceHome, use: Callable[[umbel.Device], object]
) -> None:
    with umbel.Device.open(home.path, online=False) as device:
        device.data("digits")
        assert repr(device) == "Device('rose', fleet='garden')"
    with pytest.raises(umbel.UsageError, match=r"rose was closed: open it again with Device\.open"):
        use(device)
    assert repr(device) == "Device('rose', fleet='garden', closed=True)"


def test_a_model_goes_on_answering_when_its_device_is_closed(home: DeviceHome) -> None:
    with umbel.Device.open(home.path, online=False) as device:
        model = device.model("digits")
    assert isinstance(model.predict(digits().train.x[0]), umbel.Prediction)


@pytest.mark.parametrize("poll_s", [0.0, -5.0, 0.05, float("nan"), "1", None])
def test_a_device_that_would_ask_without_a_pause_is_refused(home: DeviceHome, poll_s: float) -> None:
    with pytest.raises(umbel.UsageError, match=r"poll_s is .*: give 0\.1 seconds or more"):
        umbel.Device.open(home.path, poll_s=poll_s)


@pytest.mark.parametrize("where", [5, b"home", ["home"]])
def test_what_is_no_path_of_a_device_is_refused(where: Any) -> None:
    with pytest.raises(umbel.UsageError, match=r"home is .*: give the path of the device's directory"):
        umbel.Device.open(where)


def test_a_device_is_opened_in_its_users_own_directory(
    home: DeviceHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home.path.parent))
    for where in (f"~/{home.path.name}", Path("~", home.path.name)):
        with umbel.Device.open(where, online=False) as device:
            assert device.id == "rose"


def test_a_device_that_is_sent_to_another_process_says_to_open_it_there(home: DeviceHome) -> None:
    with (
        umbel.Device.open(home.path, online=False) as device,
        pytest.raises(umbel.UsageError, match=r"^Device rose is not copied or sent .*: open it anew"),
    ):
        pickle.dumps(device)


def test_bounds_of_a_data_set_come_as_retention(home: DeviceHome) -> None:
    with umbel.Device.open(home.path, online=False) as device:
        data = device.data("digits")
        with pytest.raises(umbel.UsageError, match=r"5 is no Retention: give umbel\.Retention\(max_rows="):
            data.retain(5)  # type: ignore[arg-type]
        assert data.retention == umbel.Retention()


def test_what_an_application_holds_of_a_device_shows_whose_it_is(home: DeviceHome) -> None:
    with umbel.Device.open(home.path, online=False) as device:
        assert repr(device.telemetry) == "Telemetry('rose')"
        assert repr(device.consent) == f"Consent({str(home.path)!r})"
        assert repr(device.conditions) == f"Conditions({str(home.path)!r})"
        assert repr(device.data("digits")) == "DataSet('digits')"


def test_a_data_set_that_was_closed_is_opened_again_by_its_device(home: DeviceHome) -> None:
    x = digits().train.x[0]
    with umbel.Device.open(home.path, online=False) as device:
        with device.data("digits") as data:
            data.add(x, 3, source="user")
        with pytest.raises(umbel.UsageError, match=r"examples\.db was closed, alone or with its device"):
            data.add(x, 3, source="user")
        device.data("digits").add(x, 4, source="user")
        assert device.data("digits") is device.data("digits")
        held = device.data("digits")
        assert len(held.examples()) == 2
    for ask in (held.examples, held.report, held.clear):
        with pytest.raises(umbel.UsageError, match="was closed"):
            ask()


@pytest.mark.parametrize("name", [None, 3, ("0011223344556677",)])
def test_what_is_no_name_of_an_example_is_said_to_be_none(home: DeviceHome, name: Any) -> None:
    with umbel.Device.open(home.path, online=False) as device:
        with pytest.raises(umbel.UsageError, match="names no example"):
            device.data("digits").label(name, 3, source="user")
        with pytest.raises(umbel.UsageError, match="names no example"):
            device.data("digits").remove(name)


@pytest.mark.parametrize("word", [None, 7])
def test_a_source_that_is_no_text_is_refused(home: DeviceHome, word: Any) -> None:
    with umbel.Device.open(home.path, online=False) as device:
        with pytest.raises(umbel.UsageError, match="is a text"):
            device.data("digits").add(digits().train.x[0], 3, source=word)
        assert device.data("digits").examples() == ()
