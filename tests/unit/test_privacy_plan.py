"""Plans: which layout, how much noise, at what error, and for how large a fleet."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest

from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import UsageError
from umbel_proto.ids import FleetId
from umbel_proto.privacy.accounting import epsilon
from umbel_proto.privacy.plan import (
    MAX_INFLATION,
    Plan,
    _best_scale,
    _Sum,
    cohort_for_epsilon,
    honest_devices,
    plan,
)

DELTA = 1e-6


def planned(**changes: object) -> Plan:
    given: dict[str, object] = {
        "dim": 13_706,
        "clip": 1.5,
        "devices": 8,
        "honest": 6,
        "participations": 10,
        "delta": DELTA,
    }
    if "epsilon" not in changes:
        given["noise_multiplier"] = 0.05
    return plan(**{**given, **changes})  # type: ignore[arg-type]


# The 21-bit rows are those whose 16-bit layout would inflate by 1.032, 1.086, 1.23 and 1.90.
@pytest.mark.parametrize(
    ("dim", "target", "bits", "inflation"),
    [
        (10**5, 8, 16, 1.010),
        (10**5, 4, 16, 1.016),
        (10**6, 8, 21, 1.000),
        (10**6, 4, 21, 1.001),
        (10**7, 8, 21, 1.001),
        (10**7, 4, 21, 1.003),
    ],
)
def test_a_thousand_devices_get_the_layout_of_the_spec(
    dim: int, target: float, bits: int, inflation: float
) -> None:
    made = planned(dim=dim, clip=1.0, devices=1000, honest=800, epsilon=target)
    assert made.encoding.bits == bits
    assert made.inflation == pytest.approx(inflation, abs=2e-3)


@pytest.mark.parametrize(
    ("dim", "target", "inflation"),
    [(10**6, 8, 1.032), (10**6, 4, 1.086), (10**7, 8, 1.234), (10**7, 4, 1.9025)],
)
def test_the_densest_layout_would_inflate_large_models_as_the_spec_says(
    dim: int, target: float, inflation: float
) -> None:
    made = planned(dim=dim, clip=1.0, devices=1000, honest=800, epsilon=target)
    ratio = made.noise_multiplier**2 / 800
    sums = _Sum(made.encoding.padded, 1.0, 1000, 16)
    scale = _best_scale(sums, ratio)
    assert scale is not None
    assert sums.inflation(scale, ratio * sums.bound_sq(scale), ratio) == pytest.approx(inflation, rel=3e-3)


@pytest.mark.parametrize("target", [0.1, 1.0, 4.0, 8.0, 100.0, 5000.0])
def test_a_plan_for_an_epsilon_meets_it_closely(target: float) -> None:
    made = planned(epsilon=target)
    assert target * (1 - 1e-4) < made.epsilon_server <= target


@pytest.mark.parametrize("multiplier", [0.02, 0.05, 0.3, 1.0, 3.0])
def test_a_tiny_fleet_gets_the_densest_layout_and_the_noise_it_asked_for(multiplier: float) -> None:
    made = planned(noise_multiplier=multiplier)
    assert made.encoding.bits == 16
    assert made.encoding.bytes_per_parameter < 2.02
    assert made.noise_multiplier == pytest.approx(multiplier, rel=1e-6)
    assert made.noise_multiplier >= multiplier
    assert made.inflation <= MAX_INFLATION
    assert made.wrap_probability < 1e-7
    # Normal noise of z * clip over the honest devices, added by all, on the mean of all.
    ideal = multiplier * 1.5 * math.sqrt(8 / 6) / 8
    assert made.error == pytest.approx(ideal, rel=0.015)


def test_the_epsilons_are_those_of_the_noise_that_is_counted() -> None:
    made = planned(noise_multiplier=2.0, sampling_rate=0.1)
    encoding = made.encoding
    counted = float(6 * encoding.noise)
    server = epsilon(encoding.bound_sq, encoding.padded, counted, DELTA, 10)
    release = epsilon(encoding.bound_sq, encoding.padded, counted, DELTA, 100, 0.1)
    assert made.epsilon_server == server
    assert made.epsilon_release == release < server


def test_without_sampling_both_epsilons_are_one() -> None:
    made = planned()
    assert made.epsilon_release == made.epsilon_server


def test_sampling_never_makes_the_release_worse_than_the_server() -> None:
    made = planned(noise_multiplier=0.05, sampling_rate=0.5)
    assert made.epsilon_release <= made.epsilon_server


@pytest.mark.parametrize(("dim", "devices"), [(13_706, 8), (10**6, 8), (10**6, 1000), (100, 3), (2, 3)])
def test_without_noise_rounding_is_negligible_and_sums_do_not_wrap(dim: int, devices: int) -> None:
    made = planned(dim=dim, devices=devices, honest=1, noise_multiplier=0)
    assert made.encoding.noise == 0
    assert made.epsilon_server == made.epsilon_release == math.inf
    assert made.noise_multiplier == 0
    # Below 1 % of what clipped updates differ by, and not one wrap expected in a thousand rounds.
    assert made.error < 0.01 * 1.5 / math.sqrt(made.encoding.padded * devices)
    assert made.wrap_probability * made.encoding.padded < 1e-3


def test_without_noise_the_digits_model_of_eight_devices_fits_two_bytes_a_parameter() -> None:
    assert planned(noise_multiplier=0).encoding.bits == 16


@pytest.mark.parametrize("devices", [1, 3, 100, 10**4, 10**6])
@pytest.mark.parametrize("dim", [1, 1000, 10**7])
def test_every_plan_leaves_headroom_and_prefers_dense_layouts(dim: int, devices: int) -> None:
    made = planned(dim=dim, devices=devices, honest=devices, noise_multiplier=0.5)
    assert made.wrap_probability < 2.8e-3  # kappa >= 3
    # Only the sampler's limit on the noise may cost more: then wider slots would not help.
    assert made.inflation <= MAX_INFLATION or made.encoding.noise > 0.98 * 2**28


def test_where_no_layout_is_cheap_the_least_inflated_is_taken() -> None:
    made = planned(dim=10**8, devices=10, honest=10, epsilon=4.0)
    assert made.inflation > MAX_INFLATION
    assert made.encoding.noise <= 2**28


def test_noise_that_no_sampler_draws_is_refused() -> None:
    with pytest.raises(UsageError, match="ask for less noise"):
        planned(dim=10**8, devices=10, honest=8, epsilon=0.5)


def test_the_noise_is_a_fraction_that_fits_the_wire() -> None:
    noise = planned(noise_multiplier=0.0213).encoding.noise
    assert isinstance(noise, Fraction)
    assert 2**20 % noise.denominator == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dim": 0}, "dim"),
        ({"clip": 0.0}, "clip"),
        ({"clip": math.inf}, "clip"),
        ({"devices": 0}, "devices"),
        ({"devices": 2**25}, "devices"),
        ({"honest": 0}, "honest"),
        ({"honest": 9}, "honest"),
        ({"participations": 0}, "participations"),
        ({"delta": 0.0}, "delta"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"noise_multiplier": -0.1}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"noise_multiplier": None}, "either"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "either"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
    ],
)
def test_arguments_out_of_range_are_named(change: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        planned(**change)


@pytest.mark.parametrize("malicious", [True, False])
@pytest.mark.parametrize("corrupt", [0.0, 0.1, 0.3])
def test_the_cohort_for_an_epsilon_is_the_smallest(corrupt: float, malicious: bool) -> None:
    small = planned(noise_multiplier=0.05)
    found = cohort_for_epsilon(small, 4.0, corrupt_fraction=corrupt, server_malicious=malicious)

    def error(devices: int) -> float:
        honest = honest_devices(devices, corrupt_fraction=corrupt, server_malicious=malicious)
        made = planned(devices=devices, honest=honest, epsilon=4.0)
        assert made.epsilon_server <= 4.0
        return made.error

    assert error(found) <= small.error < error(found - 1)


def test_a_smaller_error_needs_a_larger_cohort() -> None:
    few, many = (
        cohort_for_epsilon(planned(noise_multiplier=z), 4.0, corrupt_fraction=0.1, server_malicious=True)
        for z in (0.2, 0.02)
    )
    assert 10 <= few < many / 8


def test_an_error_no_cohort_reaches_is_refused() -> None:
    exact = dataclasses.replace(planned(), error=1e-12)
    with pytest.raises(UsageError, match="larger epsilon or more noise"):
        cohort_for_epsilon(exact, 4.0, corrupt_fraction=0.1, server_malicious=True)


def test_half_the_fleet_corrupt_has_no_cohort() -> None:
    with pytest.raises(UsageError, match="corrupt_fraction"):
        cohort_for_epsilon(planned(), 4.0, corrupt_fraction=0.5, server_malicious=True)


@pytest.mark.parametrize("malicious", [True, False])
def test_planner_and_policy_count_the_same_honest_devices(malicious: bool) -> None:
    policy = FleetPolicy(FleetId("f"), 0.13, 0.1, malicious, 3, 0.0, 8.0, DELTA)
    for cohort in range(1, 300):
        assert policy.honest(cohort) == honest_devices(
            cohort, corrupt_fraction=0.13, server_malicious=malicious
        )
