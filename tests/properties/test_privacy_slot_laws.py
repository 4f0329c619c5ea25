"""Slots: whatever the signs, adding words adds the values in them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from umbel_proto.privacy.slots import SLOTS, pack, unpack

bits_of_a_slot = st.sampled_from(sorted(SLOTS))


@given(bits_of_a_slot, st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50))
def test_packing_is_undone_by_unpacking(bits: int, values: list[int]) -> None:
    array = np.array(values, np.int32)
    assert np.array_equal(unpack(pack(array, bits), bits, array.size), array)


@given(bits_of_a_slot, st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50))
def test_a_word_is_the_sum_of_its_shifted_values(bits: int, values: list[int]) -> None:
    words = pack(np.array(values, np.int32), bits)
    count = -(-len(values) // SLOTS[bits])
    expected = [
        sum(value << bits * slot for slot, value in enumerate(values[word::count])) % 2**64
        for word in range(count)
    ]
    assert words.tolist() == expected


@st.composite
def summands(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """Values of 1 to 40 devices, shape (devices, count), small enough that no sum leaves its slot."""
    bits, devices = draw(bits_of_a_slot), draw(st.integers(1, 40))
    most = (2 ** (bits - 1) - 1) // devices
    element = st.one_of(st.sampled_from([-most, -1, 0, 1, most]), st.integers(-most, most))
    count = draw(st.integers(1, 9))
    row = st.lists(element, min_size=count, max_size=count)
    return bits, np.array(draw(st.lists(row, min_size=devices, max_size=devices)), np.int32)


@given(summands())
def test_sums_of_words_are_words_of_sums(fleet: tuple[int, np.ndarray]) -> None:
    bits, values = fleet
    total = np.zeros(pack(values[0], bits).shape, np.uint64)
    for row in values:
        total += pack(row, bits)
    assert np.array_equal(unpack(total, bits, values.shape[1]), values.sum(axis=0))


@given(bits_of_a_slot, st.integers(2, 30), st.integers(0, 2**32))
def test_sums_at_the_ends_of_a_slot_come_back(bits: int, devices: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    sums = generator.choice([low, low + 1, -1, 0, 1, high - 1, high], 13)
    parts = np.tile(sums // devices, (devices, 1))
    parts[0] += sums - parts.sum(axis=0)
    shifts = generator.integers(low // 8, high // 8, parts.shape)
    parts += shifts - np.roll(shifts, 1, axis=0)  # any parts, the same sums
    total = np.zeros(pack(parts[0].astype(np.int32), bits).shape, np.uint64)
    for row in parts:
        total += pack(row.astype(np.int32), bits)
    assert np.array_equal(unpack(total, bits, 13), sums)


@given(bits_of_a_slot)
def test_a_sum_just_outside_its_slot_wraps_and_shifts_its_neighbor_by_one(bits: int) -> None:
    values = np.zeros(SLOTS[bits], np.int32)
    values[0] = 2 ** (bits - 1) - 1
    one = np.zeros_like(values)
    one[0] = 1
    back = unpack(pack(values, bits) + pack(one, bits), bits, values.size)
    assert back.tolist() == [-(2 ** (bits - 1)), 1, *[0] * (SLOTS[bits] - 2)]
