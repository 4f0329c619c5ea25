"""What an encoding accepts, what encode and decode refuse, and what they promise on single vectors."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from umbel_proto.errors import UsageError
from umbel_proto.prg import Keystream
from umbel_proto.privacy import encode as module
from umbel_proto.privacy.encode import MAX_VARIANCE, SHRINK, Encoding, decode, encode
from umbel_proto.privacy.rotate import rotate, smooth_length
from umbel_proto.privacy.slots import unpack

SEED = bytes(range(32))
DIM = 1000
QUIET = Encoding(DIM, 1000, 16, 2.0, 500.0, 1_001_500, Fraction(0))
NOISY = dataclasses.replace(QUIET, noise=Fraction(400))


def update_of(norm: float, dim: int = DIM, seed: int = 1) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(dim)
    return (x * norm / np.linalg.norm(x)).astype(np.float32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0),
        ("dim", 2**30 + 1),
        ("dim", 1001),
        ("padded", 1002),
        ("padded", 998),
        ("bits", 20),
        ("bits", 0),
        ("clip", 0.0),
        ("clip", -1.0),
        ("clip", math.nan),
        ("clip", math.inf),
        ("scale", 0.0),
        ("scale", math.nan),
        ("scale", math.inf),
        ("scale", 2.0**29),
        ("bound_sq", 999_999),
        ("bound_sq", 0),
        ("bound_sq", 2**60),
        ("noise", Fraction(-1, 2)),
        ("noise", Fraction(MAX_VARIANCE * 4 + 1, 4)),
        ("noise", Fraction(1, 2**20 + 1)),
        ("noise", 1.5),
    ],
)
def test_an_encoding_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=r"choose|is |has|at most"):
        dataclasses.replace(QUIET, **{field: value})


def test_an_encoding_knows_its_words() -> None:
    for bits, slots, words in ((16, 4, 250), (21, 3, 334), (32, 2, 500)):
        encoding = dataclasses.replace(QUIET, bits=bits)
        assert (encoding.slots, encoding.words) == (slots, words)
        assert encoding.bytes_per_parameter == 8 * words / DIM


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(DIM - 1, np.float32),
        np.zeros((DIM, 1), np.float32),
        np.zeros(DIM, np.float64),
        np.zeros(DIM, np.int32),
        np.full(DIM, np.nan, np.float32),
        np.where(np.arange(DIM) == DIM - 1, np.inf, 0).astype(np.float32),
        np.where(np.arange(DIM) == 0, -np.inf, 0).astype(np.float32),
    ],
)
def test_an_update_of_wrong_shape_type_or_value_is_refused(update: np.ndarray) -> None:
    with pytest.raises(UsageError, match="update"):
        encode(update, QUIET, rotation_seed=SEED)


def test_a_short_rotation_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="32 bytes"):
        encode(update_of(1), QUIET, rotation_seed=b"short")


@pytest.mark.parametrize("total", [np.zeros(249, np.uint64), np.zeros(250, np.int64)])
def test_a_sum_of_wrong_shape_or_type_is_refused(total: np.ndarray) -> None:
    with pytest.raises(UsageError, match="sum"):
        decode(total, QUIET, count=3, rotation_seed=SEED)


def test_a_sum_over_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        decode(np.zeros(250, np.uint64), QUIET, count=0, rotation_seed=SEED)


def test_an_update_within_the_clip_comes_back_whole() -> None:
    update = update_of(1.5)
    encoded = encode(update, QUIET, rotation_seed=SEED)
    assert not encoded.clipped
    assert encoded.norm == pytest.approx(1.5, rel=1e-6)
    back = decode(encoded.words, QUIET, count=1, rotation_seed=SEED)
    # Rounding is off by at most one step a coordinate: half a step on average, squared.
    assert np.linalg.norm(back - update) < math.sqrt(DIM / 4) / QUIET.scale


def test_a_long_update_is_shortened_to_the_clip_and_keeps_its_direction() -> None:
    update = update_of(300.0)
    encoded = encode(update, QUIET, rotation_seed=SEED)
    assert encoded.clipped
    assert encoded.norm == pytest.approx(300, rel=1e-6)
    back = decode(encoded.words, QUIET, count=1, rotation_seed=SEED)
    assert np.linalg.norm(back - update * (QUIET.clip / 300)) < math.sqrt(DIM / 4) / QUIET.scale


def test_an_update_of_the_largest_floats_is_clipped_without_overflow() -> None:
    encoded = encode(np.full(DIM, np.finfo(np.float32).max, np.float32), QUIET, rotation_seed=SEED)
    back = decode(encoded.words, QUIET, count=1, rotation_seed=SEED)
    assert np.linalg.norm(back) == pytest.approx(QUIET.clip, rel=0.01)


def test_encoding_leaves_the_update_as_it_was() -> None:
    update = update_of(9.0)
    before = update.copy()
    encode(update, NOISY, rotation_seed=SEED)
    assert np.array_equal(update, before)


def test_a_zero_update_without_noise_is_all_zero_words() -> None:
    assert not encode(np.zeros(DIM, np.float32), QUIET, rotation_seed=SEED).words.any()


def test_a_zero_update_with_noise_shows_noise_of_the_planned_variance() -> None:
    encoding = Encoding(100_000, 100_000, 32, 1.0, 1e4, 10**9, Fraction(900))
    values = unpack(
        encode(np.zeros(100_000, np.float32), encoding, rotation_seed=SEED, randomness=Keystream(SEED)).words,
        32,
        100_000,
    ).astype(float)
    # Five standard deviations of a sample variance; the keystream is fixed.
    assert values.var() == pytest.approx(900, rel=5 * math.sqrt(2 / 100_000))
    assert abs(values.mean()) < 5 * 30 / math.sqrt(100_000)


@pytest.mark.parametrize("encoding", [QUIET, NOISY])
def test_two_encodings_of_one_update_differ(encoding: Encoding) -> None:
    update = update_of(1)
    first, second = (encode(update, encoding, rotation_seed=SEED).words for _ in range(2))
    assert not np.array_equal(first, second)


def test_the_same_randomness_gives_the_same_words() -> None:
    first, second = (
        encode(update_of(1), NOISY, rotation_seed=SEED, randomness=Keystream(SEED)).words for _ in range(2)
    )
    assert np.array_equal(first, second)


def test_another_rotation_seed_does_not_decode() -> None:
    update = update_of(1)
    back = decode(encode(update, QUIET, rotation_seed=SEED).words, QUIET, count=1, rotation_seed=bytes(32))
    assert np.linalg.norm(back - update) > 0.5


def test_rounding_that_never_passes_falls_back_to_truncation() -> None:
    update = update_of(2.0)
    # 32 steps over 1000 coordinates: rounding adds 167 to their 1024, give or take 26.
    tight = dataclasses.replace(QUIET, scale=16.0, bound_sq=1024)
    values = module._integers(update, module.norm_of(update, tight), 1.0, tight, SEED, Keystream(SEED))
    rotated = rotate(update * np.float32(16 * SHRINK), SEED)
    assert np.abs(values).max() >= 2
    assert np.array_equal(values, np.trunc(rotated))


def test_even_a_norm_that_lies_cannot_break_the_bound() -> None:
    values = module._integers(update_of(300.0), 0.5, 1.0, QUIET, SEED, Keystream(SEED))
    assert not values.any()


def test_the_shrink_that_guards_the_bound_is_undone() -> None:
    fine = Encoding(2, 2, 32, 1.0, 2.0**28, 2**56 + 2**30, Fraction(0))
    back = decode(
        encode(np.array([1, 0], np.float32), fine, rotation_seed=SEED).words,
        fine,
        count=1,
        rotation_seed=SEED,
    )
    assert np.linalg.norm(back.astype(float)) == pytest.approx(1, abs=3e-7)


def test_what_is_secret_does_not_show_in_a_repr() -> None:
    encoded = encode(update_of(5.0), QUIET, rotation_seed=SEED)
    assert repr(encoded) == "Encoded()"


def test_encoding_and_decoding_hold_at_most_five_copies_of_the_vector() -> None:
    dim = 1_000_000
    encoding = Encoding(dim, smooth_length(dim), 16, 1.0, 3000.0, 10**7, Fraction(10_000))
    update = update_of(1.0, dim)
    encoded = encode(update, encoding, rotation_seed=SEED)  # fills the caches: table, FFT plan
    tracemalloc.start()
    try:
        encode(update, encoding, rotation_seed=SEED)
        decode(encoded.words, encoding, count=1, rotation_seed=SEED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * update.nbytes
