"""Forecasts of runs, and ``umbel privacy plan``: numbers that agree with the planner, and sentences for those that cannot be."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from umbel._rounds.planning import _up, run_plan
from umbel.cli import app
from umbel_proto.errors import UsageError
from umbel_proto.privacy.accounting import epsilon, noise_multiplier
from umbel_proto.privacy.forecast import Setting, forecast
from umbel_proto.privacy.plan import plan
from umbel_proto.secagg.graph import parameters

ASKED = ("--devices", "5000", "--rounds", "100", "--dim", "1000000")


def asked(*more: str) -> Any:
    done = CliRunner().invoke(app, ["privacy", "plan", *ASKED, *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def as_json(*more: str) -> Any:
    return json.loads(asked(*more, "--json").stdout)


def test_the_whole_fleet_in_every_round_gains_nothing_by_sampling() -> None:
    found = as_json("--epsilon", "4")
    assert (found["cohort"], found["participations"], found["sampling_rate"]) == (5000, 100, 1)
    assert 3.999 < found["epsilon_server"] <= 4
    assert found["epsilon_release"] == found["epsilon_server"]


def test_what_is_planned_is_what_the_planner_plans() -> None:
    found = as_json(
        "--epsilon", "4", "--min-cohort", "4000", "--corrupt", "0.1", "--metrics", "3", "--clip", "2"
    )
    made = plan(
        dim=10**6, clip=2, devices=5000, honest=3599, participations=100, delta=1e-6, epsilon=4, auxiliary=3
    )
    assert found["honest"] == 3599
    assert (found["bits"], found["scale"]) == (made.encoding.bits, made.encoding.scale)
    assert found["bound"] == math.sqrt(made.encoding.bound_sq)
    assert found["noise_multiplier"] == made.noise_multiplier
    assert found["wrap_probability"] == made.wrap_probability
    assert found["inflation"] == made.inflation
    assert found["error"] == pytest.approx(made.error, rel=1e-12)
    assert found["error_norm"] == pytest.approx(1000 * made.error, rel=1e-12)
    assert found["error_over_clip"] == pytest.approx(500 * made.error, rel=1e-12)
    assert found["upload_bytes"] == 8 * made.encoding.words
    shape = parameters(5000, corrupt_fraction=0.1, dropout_fraction=0.2, server_malicious=True)
    assert (found["degree"], found["threshold"]) == (shape.degree, shape.threshold)


def test_a_cohort_is_drawn_and_helps_only_against_outsiders() -> None:
    setting = Setting(devices=5000, rounds=100, dim=10**6, cohort=500)
    made = forecast(setting, epsilon=4)
    encoding = made.plan.encoding
    counted = float(made.plan.honest * encoding.noise)
    assert made.sampling_rate == 0.1
    release = epsilon(encoding.bound_sq, encoding.coordinates, counted, 1e-6, 100, 0.1)
    assert made.plan.epsilon_release == release < 1
    assert 3.999 < made.plan.epsilon_server <= 4


def test_all_but_one_percent_of_devices_stay_within_the_planned_participations() -> None:
    made = forecast(Setting(devices=5000, rounds=100, dim=1000, cohort=500), epsilon=4)
    cap = made.participations
    tails = [
        sum(math.comb(100, k) * 0.1**k * 0.9 ** (100 - k) for k in range(most + 1, 101))
        for most in (cap - 1, cap)
    ]
    assert tails[1] <= 0.01 < tails[0]


def test_a_sum_holds_also_a_large_draw_and_the_error_is_that_of_the_expected_one() -> None:
    made = forecast(Setting(devices=5000, rounds=100, dim=1000, cohort=500), epsilon=4)
    assert made.plan.devices == 500 + math.ceil(6 * math.sqrt(500 * 0.9))
    assert made.error > made.plan.error
    assert made.plan.error_of(made.plan.devices) == pytest.approx(made.plan.error, rel=1e-12)


def test_a_curious_server_leaves_everyones_noise_counted() -> None:
    lying, looking = as_json("--epsilon", "4"), as_json("--epsilon", "4", "--server", "curious")
    assert (lying["honest"], looking["honest"]) == (3599, 4000)
    assert looking["threshold"] < lying["threshold"]
    assert looking["error"] < lying["error"]


def test_noise_instead_of_epsilon_says_what_it_costs() -> None:
    wanted = noise_multiplier(4, 1e-6, 100)
    found = as_json("--noise", str(wanted))
    assert found["epsilon_server"] == pytest.approx(4, rel=1e-4)


def test_the_settings_for_the_runs_plan_keep_to_the_epsilon() -> None:
    made = forecast(Setting(devices=300, rounds=30, dim=5000, cohort=100), epsilon=3)
    settings = run_plan(made)
    privacy = settings["privacy"]
    again = plan(
        dim=5000,
        clip=privacy["clip"],
        devices=made.plan.devices,
        honest=made.plan.honest,
        participations=privacy["participations"],
        delta=privacy["delta"],
        noise_multiplier=privacy["noise_multiplier"],
        sampling_rate=privacy["sampling_rate"],
        rounds=settings["rounds"],
        auxiliary=2,
    )
    assert 2.99 < again.epsilon_server <= 3


@pytest.mark.parametrize("value", [12.6821, 0.0123456, 1.0, 999.99, 123456.7, 1e-9])
def test_a_number_is_rounded_up_to_four_digits(value: float) -> None:
    assert value * (1 - 1e-12) <= _up(value) <= value * 1.001


def test_the_table_shows_both_epsilons_with_what_they_assume() -> None:
    text = " ".join(asked("--epsilon", "4", "--cohort", "500").stdout.split())
    assert (
        "epsilon_server 4 at delta 1e-06. Holds even if the server lies and 10% of the devices collude"
        in text
    )
    assert "epsilon_release 0.874" in text
    assert "independently, with probability 0.1, by an honest server that keeps secret whom it drew" in text
    for word in (
        "k = 152",
        "t = 97",
        "n_eff = 298",
        "bytes per parameter",
        "wraps, inflation",
        "noise multiplier",
    ):
        assert word in text


def test_json_holds_the_assumptions_too() -> None:
    found = as_json("--epsilon", "4", "--server", "curious")
    assert "follows the protocol" in found["epsilon_server_assumes"]
    assert "nothing is drawn" in found["epsilon_release_assumes"]


def test_a_larger_epsilon_is_never_less_exact() -> None:
    curve = as_json("--epsilon", "4")["curve"]
    assert len(curve) == 9
    for less, more in itertools.pairwise(curve):
        assert less["epsilon_server"] < more["epsilon_server"]
        assert less["error_over_clip"] > more["error_over_clip"]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    asked("--epsilon", "4", "--plot", str(tmp_path / "plan.png"))
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--epsilon", "0"), "target epsilon is 0"),
        (("--epsilon", "-1"), "target epsilon is -1"),
        (("--epsilon", "inf"), "choose a finite number"),
        (("--noise", "0"), "noise is 0: without noise nothing is private"),
        (("--noise", "-1"), "noise_multiplier is -1"),
        ((), "either --epsilon"),
        (("--epsilon", "4", "--noise", "1"), "either --epsilon"),
        (("--epsilon", "4", "--delta", "2e-4"), "delta is 0.0002, and with 5000 devices"),
        (("--epsilon", "4", "--delta", "0"), "choose a delta below that"),
        (("--epsilon", "4", "--cohort", "5001"), "cohort is 5001"),
        (("--epsilon", "4", "--cohort", "2"), "cohort is 2"),
        (("--epsilon", "4", "--devices", "2"), "devices is 2"),
        (("--epsilon", "4", "--devices", "20000"), "cohort is 20000, and one round holds at most 16384"),
        (("--epsilon", "4", "--rounds", "0"), "rounds is 0"),
        (("--epsilon", "4", "--participations", "101"), "participations is 101, in a run of 100 rounds"),
        (("--epsilon", "4", "--participations", "-1"), "participations is -1"),
        (("--epsilon", "4", "--min-cohort", "2"), "min_cohort is 2"),
        (("--epsilon", "4", "--min-cohort", "5001"), "min_cohort is 5001"),
        (("--epsilon", "4", "--corrupt", "0.5"), "corrupt_fraction is 0.5"),
        (("--epsilon", "4", "--dropout", "0.5"), "dropout_fraction is 0.5"),
        (("--epsilon", "4", "--metrics", "65"), "metrics is 65"),
        (("--epsilon", "4", "--clip", "0"), "clip is 0"),
        (("--epsilon", "4", "--dim", "0"), "dim is 0"),
    ],
)
def test_a_number_that_cannot_be_is_named_in_a_sentence(options: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, ["privacy", "plan", *ASKED, *options])
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


def test_the_delta_that_is_proposed_is_one_that_does() -> None:
    for devices in (3, 10, 99, 100, 101, 5000, 10**6):
        with pytest.raises(UsageError, match="such as") as caught:
            Setting(devices=devices, rounds=1, dim=1, cohort=3, delta=1 / devices)
        proposed = float(str(caught.value).rsplit(" ", 1)[1].rstrip("."))
        assert proposed <= 0.1 / devices
        Setting(devices=devices, rounds=1, dim=1, cohort=3, delta=proposed)


def test_the_bare_command_still_shows_the_ledger(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["privacy", "--home", str(tmp_path / "none")])
    assert isinstance(done.exception, UsageError)
    assert "not an enrolled device" in str(done.exception)
