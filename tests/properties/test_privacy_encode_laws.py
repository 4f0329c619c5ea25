"""Encoding: the integer bound always holds, sums decode to means, errors are as large as planned."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel_proto.prg import Keystream
from umbel_proto.privacy import encode as module
from umbel_proto.privacy.accounting import rounded_l2_bound_sq
from umbel_proto.privacy.encode import Encoding, decode, encode
from umbel_proto.privacy.plan import plan
from umbel_proto.privacy.rotate import smooth_length, unrotate

SEED = bytes(range(32))
seeds = st.binary(min_size=32, max_size=32)


def sum_of_squares(values: np.ndarray) -> int:
    return sum(int(value) ** 2 for value in values)


def updates(dim: int, seed: bytes, shape: str) -> np.ndarray:
    generator = np.random.default_rng(list(seed))
    if shape == "spike":
        x = np.zeros(dim)
        x[generator.integers(dim)] = 1
    elif shape == "halfway":  # rotates to coordinates of the same size: the worst to round
        x = unrotate(np.full(smooth_length(dim), 0.5, np.float32), SEED)[:dim]
    else:
        x = generator.standard_normal(dim)
    return np.asarray(x * 10 ** generator.uniform(-3, 3), np.float32)


@settings(max_examples=150)
@given(
    st.integers(1, 300),
    st.floats(0.01, 1e4),
    st.sampled_from(["spike", "halfway", "normal"]),
    seeds,
    st.booleans(),
)
def test_the_integers_never_exceed_their_bound(
    dim: int, length: float, shape: str, seed: bytes, tight: bool
) -> None:
    padded = smooth_length(dim)
    # Tight is below what rounding usually gives, so that the retries and the fallback are met too.
    bound_sq = math.ceil(length**2) if tight else math.ceil(rounded_l2_bound_sq(length, padded))
    encoding = Encoding(dim, padded, 32, 0.5, 2 * length, bound_sq, Fraction(0))
    update = updates(dim, seed, shape)
    norm = module.norm_of(update, encoding)
    values = module._integers(update, norm, 1.0, encoding, SEED, Keystream(seed))
    assert sum_of_squares(values) <= bound_sq


def test_the_usual_bound_is_met_by_rounding_without_falling_back() -> None:
    encoding = Encoding(3000, 3000, 32, 1.0, 40.0, math.floor(rounded_l2_bound_sq(40.0, 3000)), Fraction(0))
    update = updates(3000, SEED, "normal")
    norm = module.norm_of(update, encoding)
    values = module._integers(update, norm, 1.0, encoding, SEED, Keystream(SEED))
    assert sum_of_squares(values) > 40.0**2  # truncation only ever shortens


@pytest.mark.parametrize("bits", [16, 21, 32])
@settings(max_examples=25)
@given(count=st.integers(1, 40), seed=seeds)
def test_a_sum_of_encodings_decodes_to_the_mean(bits: int, count: int, seed: bytes) -> None:
    dim = 257
    encoding = Encoding(dim, smooth_length(dim), bits, 1.0, 600.0, 600**2 + 2000, Fraction(0))
    generator = np.random.default_rng(list(seed))
    total = np.zeros(encoding.words, np.uint64)
    mean = np.zeros(dim)
    for _ in range(count):
        update = generator.standard_normal(dim).astype(np.float32) * np.float32(generator.uniform(0, 0.2))
        total += encode(update, encoding, rotation_seed=SEED).words
        norm = float(np.linalg.norm(update))
        mean += update * min(1.0, 1.0 / norm) / count
    back = decode(total, encoding, count=count, rotation_seed=SEED)
    # A rounding errs by half a step at most, as a root mean square: six times that never happens.
    assert np.linalg.norm(back - mean) < 3 * math.sqrt(encoding.padded / count) / encoding.scale


def error_variance(encoding: Encoding, devices: int, seed: int) -> float:
    """Return the mean squared error of a coordinate of the sum, in squared integer steps."""
    generator = np.random.default_rng(seed)
    stream = Keystream(bytes([seed]) * 32)
    total = np.zeros(encoding.words, np.uint64)
    mean = np.zeros(encoding.dim)
    for _ in range(devices):
        update = generator.standard_normal(encoding.dim).astype(np.float32)
        total += encode(update, encoding, rotation_seed=SEED, randomness=stream).words
        mean += update * (encoding.clip / np.linalg.norm(update.astype(float))) / devices
    error = decode(total, encoding, count=devices, rotation_seed=SEED) - mean
    return float(np.mean(error**2)) * (encoding.scale * devices) ** 2


# A sample variance of 32,000 normal errors is off by 5 * sqrt(2 / 32000) = 4 % with chance 1e-6;
# keystream and updates are fixed.


def test_without_noise_the_error_is_the_rounding_alone() -> None:
    encoding = Encoding(32_000, 32_000, 32, 1.0, 2000.0, 2000**2 + 20_000, Fraction(0))
    assert error_variance(encoding, 12, seed=1) == pytest.approx(12 / 6, rel=0.04)


@pytest.mark.parametrize("noise", [Fraction(1, 2), Fraction(25), Fraction(10_001, 7)])
def test_with_noise_the_error_is_noise_and_rounding(noise: Fraction) -> None:
    encoding = Encoding(32_000, 32_000, 32, 1.0, 2000.0, 2000**2 + 20_000, noise)
    assert error_variance(encoding, 12, seed=2) == pytest.approx(12 * (float(noise) + 1 / 6), rel=0.04)


@pytest.mark.parametrize("given_", [{"noise_multiplier": 0.05}, {"noise_multiplier": 1.0}, {"epsilon": 8.0}])
def test_a_planned_round_errs_as_much_as_its_plan_says(given_: dict[str, float]) -> None:
    made = plan(dim=32_000, clip=2.0, devices=12, honest=9, participations=10, delta=1e-6, **given_)
    steps = made.encoding.scale * 12
    measured = error_variance(made.encoding, 12, seed=3)
    assert measured == pytest.approx((made.error * steps) ** 2, rel=0.04)


def test_a_planned_round_without_noise_errs_less_than_its_plan_says() -> None:
    made = plan(dim=32_000, clip=2.0, devices=12, honest=9, participations=10, delta=1e-6, noise_multiplier=0)
    steps = made.encoding.scale * 12
    assert error_variance(made.encoding, 12, seed=4) < (made.error * steps) ** 2


def test_aligned_updates_of_a_whole_cohort_do_not_wrap() -> None:
    made = plan(
        dim=32_000, clip=2.0, devices=50, honest=40, participations=10, delta=1e-6, noise_multiplier=0
    )
    update = updates(32_000, SEED, "normal")
    total = np.zeros(made.encoding.words, np.uint64)
    for _ in range(50):
        total += encode(update, made.encoding, rotation_seed=SEED).words
    back = decode(total, made.encoding, count=50, rotation_seed=SEED)
    expected = update * (2.0 / np.linalg.norm(update.astype(float)))
    assert np.abs(back - expected).max() < 7 * made.error
