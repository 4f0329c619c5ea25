"""The rotation keeps lengths and angles, is undone exactly enough, and spreads what is spiky."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from umbel_proto.privacy.rotate import rotate, smooth_length, unrotate

seeds = st.binary(min_size=32, max_size=32)
lengths = st.integers(1, 3000).map(smooth_length)


def vector(padded: int, seed: bytes) -> np.ndarray:
    return np.random.default_rng(list(seed)).standard_normal(padded).astype(np.float32)


@given(st.integers(1, 2**30))
def test_a_smooth_length_is_even_has_small_factors_and_is_close(dim: int) -> None:
    padded = smooth_length(dim)
    assert padded >= dim
    assert padded % 2 == 0
    rest = padded
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    assert rest == 1
    assert padded <= max(1.12 * dim, dim + 22)


def test_no_smaller_length_would_do() -> None:
    expected = None
    for dim in range(4096, 0, -1):
        rest = dim
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and dim % 2 == 0:
            expected = dim
        if expected is not None:
            assert smooth_length(dim) == expected


@given(lengths, seeds)
def test_rotation_is_undone(padded: int, seed: bytes) -> None:
    x = vector(padded, seed)
    assert np.linalg.norm(unrotate(rotate(x, seed), seed) - x) < 1e-6 * np.linalg.norm(x)


@given(lengths, seeds)
def test_rotation_keeps_every_inner_product(padded: int, seed: bytes) -> None:
    x, y = vector(padded, seed), vector(padded, seed[::-1])
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    before = float(np.dot(x.astype(float), y))
    after = float(np.dot(rotate(x, seed).astype(float), rotate(y, seed)))
    assert abs(before - after) < 2e-6 * scale


@given(lengths, seeds)
def test_rotation_adds_no_length_that_the_shrink_does_not_cover(padded: int, seed: bytes) -> None:
    x = vector(padded, seed)
    assert np.linalg.norm(rotate(x, seed).astype(float)) < np.linalg.norm(x.astype(float)) * (1 + 2**-20)


@given(seeds)
def test_rotation_is_linear(seed: bytes) -> None:
    x, y = vector(100, seed), vector(100, seed[::-1])
    assert np.allclose(rotate(x + y, seed), rotate(x, seed) + rotate(y, seed), atol=1e-5)


@given(seeds, st.integers(0, 4095))
def test_a_single_spike_is_spread_over_all_coordinates(seed: bytes, place: int) -> None:
    x = np.zeros(4096, np.float32)
    x[place] = 1.0
    assert np.abs(rotate(x, seed)).max() <= 1.01 * math.sqrt(2 / 4096)


def test_a_constant_vector_is_spread_too() -> None:
    # 4096 normal draws exceed 6 standard deviations once in 10**5 vectors; the seed is fixed.
    turned = rotate(np.full(4096, 1.0, np.float32), bytes(32))
    assert np.abs(turned).max() < 6


def test_different_seeds_turn_differently() -> None:
    x = vector(100, bytes(32))
    assert not np.allclose(rotate(x, bytes(32)), rotate(x, bytes([1]) * 32))
