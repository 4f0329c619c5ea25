"""Rounding: never longer than its bound, whatever the update; unbiased; and clipping keeps to the clip."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from umbel_proto.prg import Keystream
from umbel_proto.privacy.accounting import rounded_l2_bound_sq
from umbel_proto.privacy.encode import SHRINK, Encoding, encode
from umbel_proto.privacy.rotate import rotate, smooth_length, unrotate
from umbel_proto.privacy.slots import unpack

SEED = bytes(range(32))
TINY = np.float32(2**-149)  # The least float32 above zero.
SHAPES = ("one-hot", "constant", "alternating", "denormal", "tiny and huge", "flat", "normal", "zero")
DIMS = (1, 2, 3, 5, 7, 13, 64, 97, 251, 509, 1024)


def adversarial(shape: str, dim: int, length: float, chance: np.random.Generator) -> NDArray[np.float32]:
    """Return an update that someone might choose who knows the rotation; ``length`` where it can have one."""
    x = np.zeros(dim)
    match shape:
        case "one-hot":
            x[chance.integers(dim)] = -1
        case "constant":
            x[:] = 1
        case "alternating":
            x[::2], x[1::2] = 1, -1
        case "denormal":
            return np.full(dim, TINY, np.float32)
        case "tiny and huge":
            x[:] = TINY
            x[0] = 1
        case "flat":  # Rotates to coordinates that are all alike: the worst to round.
            x = unrotate(np.ones(smooth_length(dim), np.float32), SEED)[:dim].astype(float)
        case "normal":
            x = chance.standard_normal(dim)
    norm = float(np.linalg.norm(x))
    return (x * (length / norm if norm else 0)).astype(np.float32)


def integers(update: NDArray[np.float32], encoding: Encoding, key: bytes) -> list[int]:
    words = encode(update, encoding, rotation_seed=SEED, randomness=Keystream(key)).words
    return [int(value) for value in unpack(words[: encoding.packed], encoding.bits, encoding.padded)]


@settings(max_examples=400)
@given(
    shape=st.sampled_from(SHAPES),
    dim=st.one_of(st.sampled_from(DIMS), st.integers(1, 300)),
    steps=st.one_of(st.floats(1e-3, 1e5), st.sampled_from([0.5, 1.0, math.sqrt(2), 16.0])),
    clip=st.floats(1e-6, 1e6),
    # Just below, at and just above the clip, as float32 has it; and far away on both sides.
    relative=st.sampled_from([0.0, 1e-7, 0.5, 1 - 2**-23, 1.0, 1 + 2**-23, 1 + 2**-20, 3.0, 1e12]),
    slack=st.sampled_from(["usual", "none", "half a coordinate"]),
    key=st.binary(min_size=32, max_size=32),
)
def test_no_update_makes_integers_longer_than_the_bound(
    shape: str, dim: int, steps: float, clip: float, relative: float, slack: str, key: bytes
) -> None:
    padded = smooth_length(dim)
    usual = math.floor(rounded_l2_bound_sq(steps, padded))
    # Tighter bounds than plans have send rounding into its retries and its way out.
    bound_sq = {"usual": usual, "none": 0, "half a coordinate": math.floor(steps**2 + padded / 8)}[slack]
    scale = steps / clip
    encoding = Encoding(
        dim, padded, 32, clip, scale, max(bound_sq, math.ceil((scale * clip) ** 2)), Fraction(0)
    )
    update = adversarial(shape, dim, min(relative * clip, 1e30), np.random.default_rng(list(key)))
    assert sum(value**2 for value in integers(update, encoding, key)) <= encoding.bound_sq


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 97, 509])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_at_the_clip_is_not_thrown_away(shape: str, dim: int, tight: bool) -> None:
    """Not even where the bound leaves rounding no room, so that it ends in truncation."""
    padded = smooth_length(dim)
    steps = 1.5 * math.sqrt(padded)
    bound_sq = math.ceil(steps**2) if tight else math.floor(rounded_l2_bound_sq(steps, padded))
    encoding = Encoding(dim, padded, 32, 2.0, steps / 2.0, bound_sq, Fraction(0))
    update = adversarial(shape, dim, 2.0, np.random.default_rng(3))
    length = min(float(np.linalg.norm(update.astype(np.float64))), 2.0) * encoding.scale
    got = math.sqrt(sum(value**2 for value in integers(update, encoding, SEED)))
    assert abs(got - length) <= math.sqrt(padded)


@pytest.mark.parametrize("steps", [0.3, 3.0, 300.0])
@pytest.mark.parametrize("shape", ["one-hot", "flat", "normal"])
def test_rounding_is_unbiased(shape: str, steps: float) -> None:
    """Means of 2,000 roundings are normal about what was rounded, so their squares follow a chi-square law.

    Keystreams are fixed: it passes or fails for good. With fresh ones it would raise a false alarm with
    probability 1e-6. The bound is too wide to reject any rounding: rejecting long ones favors the short.
    """
    dim, trials = 128, 2000
    encoding = Encoding(dim, dim, 32, 1.0, steps, int((steps + math.sqrt(dim)) ** 2) + 1, Fraction(0))
    update = adversarial(shape, dim, 1.0, np.random.default_rng(1))
    norm = min(1.0, 1 / float(np.linalg.norm(update.astype(np.float64))))
    exact = rotate((update.astype(np.float64) * norm * steps * SHRINK).astype(np.float32), SEED).astype(float)
    total = np.zeros(dim)
    for number in range(trials):
        total += integers(update, encoding, number.to_bytes(32, "little"))
    part = exact - np.floor(exact)
    # Coordinates next to an integer are no coins: their few successes are not normal.
    coins = (part > 0.005) & (part < 0.995)
    assert coins.sum() > 64
    error = (total / trials - exact)[coins]
    statistic = float((error**2 / (part * (1 - part))[coins]).sum()) * trials
    assert stats.chi2.sf(statistic, int(coins.sum())) > 1e-6
    assert stats.chi2.cdf(statistic, int(coins.sum())) > 1e-6
