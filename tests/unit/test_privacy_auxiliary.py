"""Quantities summed beside an update: bounded, unbiased, noised as the update is."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel_proto.errors import UsageError
from umbel_proto.prg import Keystream
from umbel_proto.privacy.accounting import epsilon
from umbel_proto.privacy.auxiliary import Quantity, next_clip
from umbel_proto.privacy.encode import Encoding, auxiliary_error, decode, decode_auxiliary, encode
from umbel_proto.privacy.plan import plan
from umbel_proto.privacy.rotate import smooth_length

SEED = bytes(range(32))
DIM = 200
QUIET = Encoding(DIM, smooth_length(DIM), 16, 1.0, 400.0, 400**2 + 800 + 3 * 40**2, Fraction(0), (40, 40, 40))
NOISY = replace(QUIET, noise=Fraction(900))


def update(seed: int, norm: float = 0.8) -> np.ndarray:
    raw = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return (raw * np.float32(norm / np.linalg.norm(raw))).astype(np.float32)


def total_of(encoding: Encoding, devices: int, quantities: tuple[float, ...]) -> np.ndarray:
    total = np.zeros(encoding.words, np.uint64)
    for number in range(devices):
        key = Keystream(number.to_bytes(32, "big"))
        total += encode(
            update(number), encoding, rotation_seed=SEED, auxiliary=quantities, randomness=key
        ).words
    return total


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.binary(min_size=32, max_size=32))
def test_a_device_s_quantities_never_pass_their_amplitude(quantities: list[float], key: bytes) -> None:
    words = encode(
        update(1), QUIET, rotation_seed=SEED, auxiliary=quantities, randomness=Keystream(key)
    ).words[QUIET.packed :]
    values = words.view(np.int64)
    assert (np.abs(values) <= 40).all()
    assert (np.abs(values - 40 * np.array(quantities)) < 1).all()


def test_means_are_unbiased_and_as_exact_as_announced() -> None:
    """Without bias: 400 devices' mean lies within 5 predicted deviations (false alarm 6e-7 each)."""
    quantities = (0.3, -1.0, 0.0071)
    for encoding in (QUIET, NOISY):
        means = decode_auxiliary(total_of(encoding, 400, quantities), encoding, count=400)
        assert (np.abs(means - quantities) < 5 * auxiliary_error(encoding, count=400)).all()


def test_the_noise_on_quantities_is_the_update_s() -> None:
    """Variance of 3 x 300 draws of one device against mu: within 5 deviations of a chi-square's."""
    keys = (Keystream(f"key {i:4}".encode().ljust(32)) for i in range(300))
    draws = np.array(
        [
            encode(update(1), NOISY, rotation_seed=SEED, auxiliary=(0, 0, 0), randomness=key)
            .words[NOISY.packed :]
            .view(np.int64)
            for key in keys
        ]
    )
    ratio = (draws.astype(float) ** 2).mean() / 900
    assert abs(ratio - 1) < 5 * math.sqrt(2 / draws.size)


def test_quantities_leave_the_update_s_sum_as_it_is() -> None:
    bare = replace(QUIET, auxiliary=(), bound_sq=QUIET.vector_bound_sq)
    key = bytes(31) + b"k"
    with_, without = (
        encode(update(5), e, rotation_seed=SEED, auxiliary=q, randomness=Keystream(key)).words
        for e, q in ((QUIET, (0.5, 0.5, 0.5)), (bare, ()))
    )
    assert (with_[: QUIET.packed] == without).all()


def test_a_weighted_mean_is_the_weighted_sum_over_the_sum_of_weights() -> None:
    weights = [1.0, 0.25, 0.5]
    fine = replace(QUIET, bits=32, scale=1e5, bound_sq=int(1e10 + 2e5 + 3 * 40**2 + 1000))
    total = np.zeros(fine.words, np.uint64)
    for number, weight in enumerate(weights):
        total += encode(
            update(number), fine, rotation_seed=SEED, auxiliary=(weight, 0, 0), weight=weight
        ).words
    mean = decode(total, fine, count=sum(weights), rotation_seed=SEED)
    expected = np.average([update(i) for i in range(3)], axis=0, weights=weights)
    assert np.abs(mean - expected).max() < 1e-4


@pytest.mark.parametrize("quantities", [(), (0.0,) * 4, (0.0, 0.0, 1.01), (math.nan, 0.0, 0.0)])
def test_quantities_that_do_not_fit_are_refused(quantities: tuple[float, ...]) -> None:
    with pytest.raises(UsageError):
        encode(update(1), QUIET, rotation_seed=SEED, auxiliary=quantities)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="weight"):
        encode(update(1), QUIET, rotation_seed=SEED, auxiliary=(0, 0, 0), weight=weight)


@pytest.mark.parametrize(
    "change",
    [
        {"auxiliary": (0, 40, 40)},
        {"auxiliary": (-1, 40, 40)},
        {"auxiliary": (400, 400, 400)},
        {"auxiliary": (1,) * 65},
        {"auxiliary": (1 << 40,)},
    ],
)
def test_amplitudes_out_of_range_are_refused(change: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError):
        replace(QUIET, **change)


@pytest.mark.parametrize("devices", [10, 1000])
def test_a_plan_with_quantities_keeps_its_epsilon(devices: int) -> None:
    made = plan(
        dim=1000,
        clip=1.0,
        devices=devices,
        honest=devices,
        participations=10,
        delta=1e-6,
        epsilon=4,
        auxiliary=5,
    )
    e = made.encoding
    assert len(e.auxiliary) == 5
    assert 0.85 < sum(a**2 for a in e.auxiliary) / (5 * 0.01 * e.vector_bound_sq) <= 1
    assert made.epsilon_server <= 4
    again = epsilon(e.bound_sq, e.padded + 5, float(devices * e.noise), 1e-6, 10)
    assert made.epsilon_server == again


def test_a_quantity_s_scale_goes_there_and_back_and_clamps() -> None:
    loss = Quantity("loss", 0.0, 4.0)
    assert [loss.to_unit(v) for v in (-1, 0, 2, 3, 4, math.inf)] == [-1, -1, 0, 0.5, 1, 1]
    assert [loss.from_unit(u) for u in (-1, 0, 0.5, 1)] == [0, 2, 3, 4]
    assert loss.error_from_unit(0.1) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("age", 0, 1), ("loss", 1, 1), ("loss", 0, math.inf), ("weight", 1, 2), ("within_clip", 0, 2)],
)
def test_a_quantity_that_makes_no_sense_is_refused(name: str, low: float, high: float) -> None:
    with pytest.raises(UsageError):
        Quantity(name, low, high)


def test_what_is_not_a_number_is_refused_without_its_value() -> None:
    with pytest.raises(UsageError, match="loss is not a number"):
        Quantity("loss", 0, 1).to_unit(math.nan)


@pytest.mark.parametrize("start", [0.01, 30.0])
def test_an_adaptive_clip_reaches_the_median_norm(start: float) -> None:
    """Andrew et al.: the geometric update converges to the quantile it aims at."""
    norms = np.random.default_rng(3).lognormal(0.0, 0.5, 999)
    clip = start
    for _ in range(150):
        clip = next_clip(clip, float((norms <= clip).mean()), low=1e-3, high=1e3)
    assert clip == pytest.approx(float(np.median(norms)), rel=0.02)


@pytest.mark.parametrize(("within", "clip"), [(-9.0, 2.0), (9.0, 0.5), (0.5, 1.0)])
def test_an_adaptive_clip_stays_within_its_limits_whatever_the_noise(within: float, clip: float) -> None:
    assert next_clip(1.0, within, rate=50.0, low=0.5, high=2.0) == clip
