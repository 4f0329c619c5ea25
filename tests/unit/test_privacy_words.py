"""What a device says of what it shared: true of the ledger, in sentences, with the numbers as they are."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from model_packages import first, opened
from umbel._data.consent import Consent
from umbel._data.dataset import DataSet
from umbel._home.directory import DeviceHome, Identity
from umbel._privacy import Privacy, _sureness, account
from umbel._rounds.ledger import Ledger
from umbel._telemetry.spool import Sealed, Spool
from umbel.cli import app
from umbel_proto.credentials import FleetPolicy, sign_policy
from umbel_proto.errors import StorageError
from umbel_proto.ids import DeviceId, FleetId, RunId
from umbel_proto.keys import SigningKey
from umbel_proto.privacy.examples import ExampleCharge, NoisySteps
from umbel_proto.privacy.ledger import Charge

DELTA = 1e-6
START_S = 1.8e9


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    home, authority = DeviceHome(tmp_path / "home"), SigningKey.generate()
    home.make()
    policy = FleetPolicy(FleetId("garden"), 0.1, 0.2, True, 5, 0.0, 100.0, DELTA)
    home.write(home.authority_key, authority.public.raw, secret=False)
    home.write(home.policy, sign_policy(authority, policy), secret=False)
    Ledger.create(home.ledger).close()
    home.write_identity(Identity(FleetId("garden"), DeviceId("rose"), "127.0.0.1:1", ""))
    return home


def spend(
    home: DeviceHome, run: str, rounds: range, *, noise: Fraction = Fraction(10**13), protected: bool = False
) -> None:
    with Ledger(home.ledger) as ledger:
        for number in rounds:
            sid = f"{run}{number}".encode().ljust(32, b"\0")
            if protected:
                training = ExampleCharge(
                    RunId(run), number, 1, sid, NoisySteps(0.1, 10, 2.0), START_S + number
                )
                ledger.charge_training(training, budget_delta=DELTA)
            charge = Charge(RunId(run), number, 1, sid, 10**12, 1000, noise, START_S + number)
            ledger.charge(charge, budget_epsilon=math.inf, budget_delta=DELTA)


def told(home: DeviceHome) -> tuple[Privacy, str]:
    found = account(home)
    return found, str(found)


def test_a_device_that_gave_nothing_says_so(home: DeviceHome) -> None:
    found, text = told(home)
    assert (found.epsilon, found.runs) == (0.0, ())
    assert "No example is kept on this device to learn from." in text
    assert "Nobody was asked for consent" in text
    assert "This device trains once " in text
    assert "given nothing to any round" in text
    assert "has made no report" in text
    assert "epsilon" not in text


def test_rounds_are_counted_by_run_with_their_time_and_their_cost(home: DeviceHome) -> None:
    spend(home, "r1", range(3))
    spend(home, "r2", range(100, 102))
    found, text = told(home)
    assert [(run.run, run.rounds, run.first_s, run.last_s) for run in found.runs] == [
        ("r1", 3, START_S, START_S + 2),
        ("r2", 2, START_S + 100, START_S + 101),
    ]
    with Ledger(home.ledger) as ledger:
        assert found.epsilon == found.runs[-1].epsilon_after == ledger.spent(DELTA)
    assert "to 5 rounds of 2 runs, from 2027-01-15 08:00:00 UTC to 2027-01-15 08:01:41 UTC" in text
    assert "the sum of at least 5 devices" in text
    assert f"cost epsilon {found.epsilon:.4g} at delta 1e-06; at most 100 may be spent." in text
    assert "In 5 of 5 rounds no noise was added for single examples" in text


def test_a_large_epsilon_is_called_large_and_an_infinite_one_infinite(home: DeviceHome) -> None:
    spend(home, "r1", range(1), noise=Fraction(10**10))
    found, text = told(home)
    assert found.epsilon > 50
    assert f"epsilon {found.epsilon:.4g}" in text
    assert "practically certain" in text
    spend(home, "r2", range(5, 6), noise=Fraction(0))
    assert "cost an infinite epsilon: no noise hides" in told(home)[1]


def test_protected_examples_have_a_cost_of_their_own(home: DeviceHome) -> None:
    spend(home, "r1", range(4), protected=True)
    found, text = told(home)
    assert 0 < found.spending.example_epsilon < math.inf
    assert f"Any single example cost epsilon {found.spending.example_epsilon:.4g}" in text


@given(epsilon=st.floats(0, 40))
def test_sureness_is_never_understated(epsilon: float) -> None:
    """From even odds, odds of at most e^epsilon: Bayes' rule on the likelihood ratio."""
    odds = math.exp(epsilon)
    text = _sureness(epsilon)
    if "practically" in text:
        assert odds / (1 + odds) > 0.999
    else:
        said = float(text.removeprefix("at most ").removesuffix(" % sure"))
        assert 100 * odds / (1 + odds) <= said <= 100 * odds / (1 + odds) + 0.11


def test_examples_consent_and_reports_are_told(home: DeviceHome) -> None:
    manifest = opened(first()).manifest
    with DataSet(home, manifest) as data:
        data.add(np.zeros((2, *manifest.contract.fields[0].shape), np.float32), [1, 2], source="user")
    consent = Consent(home, clock=lambda: START_S)
    consent.grant(by="ada")
    with Spool(home.spool) as spool:
        for number in range(5):
            spool.next_sequence()
            spool.append(Sealed(bytes([number]) * 16, b"h", b"c"))
        spool.acknowledge([bytes([0]) * 16, bytes([1]) * 16], now_s=START_S)
        spool.give_up(bytes([2]) * 16)
    text = told(home)[1]
    assert "encrypted: 2 of model digits" in text
    assert "given by ada, 2027-01-15 08:00:00 UTC" in text
    assert "Reports: 2 sent, 2 waiting, 1 given up; last contact 2027-01-15 08:00:00 UTC" in text
    consent.revoke(by="ada")
    text = told(home)[1]
    assert "taken back by ada" in text
    assert "No example is kept" in text


def test_the_command_says_it_first_and_json_has_it_all(home: DeviceHome) -> None:
    spend(home, "r1", range(2))
    words = ["privacy", "--home", str(home.path)]
    text = CliRunner().invoke(app, words, env={"COLUMNS": "250"}).stdout
    assert text.startswith(str(account(home)))
    assert "epsilon after" in text
    body = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert body["sentences"] == list(account(home).sentences)
    assert body["runs"][0]["rounds"] == len(body["charges"]) == 2


def test_a_lost_ledger_is_an_error_and_no_promise(home: DeviceHome) -> None:
    home.ledger.unlink()
    with pytest.raises(StorageError, match="cannot know what it has spent"):
        account(home)
