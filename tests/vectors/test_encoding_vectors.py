"""encoding.json: umbel's code gives every value, and so do the formulas of docs/spec/privacy.md in plain Python."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

from umbel_proto.prg import Keystream
from umbel_proto.privacy.accounting import epsilon, l1_bound, rounded_l2_bound_sq, skellam_rdp
from umbel_proto.privacy.auxiliary import Quantity, next_clip
from umbel_proto.privacy.encode import decode, decode_auxiliary, encode
from umbel_proto.privacy.rotate import rotate, smooth_length, unrotate
from umbel_proto.privacy.skellam import PRECISION, SkellamSampler, skellam_pmf
from umbel_proto.privacy.slots import pack, unpack
from vectors import independent
from vectors.kinds import fails_as
from vectors.make_encoding import PLAIN, encoding_of

KNOWN: dict[str, Any] = json.loads((Path(__file__).resolve().parent / "encoding.json").read_text())
SHRINK = 1 - 2**-20
Case = dict[str, Any]
raw = bytes.fromhex


def each(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", KNOWN[name], ids=[c["comment"] for c in KNOWN[name]])


def numbers(values: list[Any]) -> np.ndarray:
    """JSON has no NaN and no infinity: they are text."""
    return np.array([float(v) for v in values], np.float32)


def words(values: list[str]) -> np.ndarray:
    return np.array([int(v) for v in values], np.uint64)


def is_smooth(n: int) -> bool:
    for factor in (2, 3, 5):
        while n % factor == 0:
            n //= factor
    return n == 1


@each("padding")
def test_the_padded_length_is_the_least_even_smooth_one(case: Case) -> None:
    padded = smooth_length(case["dim"])
    assert padded == case["expected"]
    assert padded >= case["dim"]
    assert padded % 2 == 0
    assert is_smooth(padded)
    assert not any(is_smooth(n) for n in range(case["dim"] + case["dim"] % 2, padded, 2))


@each("rotation")
def test_a_rotation_is_the_transform_of_turned_halves(case: Case) -> None:
    vector, seed = numbers(case["vector"]), raw(case["seed"])
    assert np.abs(rotate(vector, seed) - case["expected"]).max() < case["tolerance"]
    assert (
        np.abs(np.array(independent.rotate(vector.tolist(), seed)) - case["expected"]).max()
        < case["tolerance"]
    )
    assert np.abs(unrotate(rotate(vector, seed), seed) - vector).max() < case["tolerance"]


@each("slots")
def test_slots_are_packed_with_borrows_and_read_back(case: Case) -> None:
    values, bits = case["values"], case["bits"]
    packed = pack(np.array(values, np.int32), bits)
    assert [str(w) for w in packed.tolist()] == case["expected"]
    assert [str(w) for w in independent.pack(values, bits)] == case["expected"]
    assert unpack(packed, bits, len(values)).tolist() == values
    assert independent.unpack(packed.tolist(), bits, len(values)) == values


def draw(ends: list[int], lowest: int, stream: Keystream, count: int) -> list[int]:
    """Invert F at uniforms read as umbel reads them: 16 bits each, 48 where these leave a choice, then 96."""
    cells = [int(c) for c in stream.read(2 * count).view("<u2")]
    find = np.searchsorted
    table = np.array(ends, object)
    places: list[int | None] = []
    for cell in cells:
        low, high = cell << 144, ((cell + 1) << 144) - 1
        first, last = (int(find(table, u, side="right")) for u in (low, high))
        places.append(first if first == last else None)
    heads = {i: cells[i] << 48 | int(stream.uint64(1)[0]) >> 16 for i, p in enumerate(places) if p is None}
    for i, head in heads.items():
        low, high = head << 96, ((head + 1) << 96) - 1
        first, last = (int(find(table, u, side="right")) for u in (low, high))
        assert first == last  # A tie has probability 2^-50 here.
        places[i] = first
    return [lowest + place for place in places if place is not None]


@each("skellam")
def test_noise_is_the_inverse_of_its_distribution_function(case: Case) -> None:
    variance = Fraction(*case["variance"])
    pmf = skellam_pmf(variance)
    assert len(pmf) - 1 == case["largest"]
    assert {place: f"{pmf[int(place)]:x}" for place in case["pmf_times_2_160"]} == case["pmf_times_2_160"]
    draws = SkellamSampler(variance).sample(len(case["expected"]), Keystream(raw(case["key"])))
    assert draws.tolist() == case["expected"]
    ends, total = [], 0
    for weight in pmf[:0:-1] + pmf:
        total += weight
        ends.append(total)
    ends[-1] = 1 << PRECISION
    assert draw(ends, 1 - len(pmf), Keystream(raw(case["key"])), len(case["expected"])) == case["expected"]


@each("skellam")
def test_the_table_holds_exp_times_bessel(case: Case) -> None:
    mu = float(Fraction(*case["variance"]))
    for place, weight in case["pmf_times_2_160"].items():
        expected = float(special.ive(int(place), mu))
        assert int(weight, 16) / 2**PRECISION == pytest.approx(expected, rel=1e-9, abs=2.0**-150)


@each("encode")
def test_an_update_becomes_its_words(case: Case) -> None:
    found = encode(
        numbers(case["update"]),
        encoding_of(case["encoding"]),
        rotation_seed=raw(case["rotation_seed"]),
        auxiliary=case["auxiliary"],
        weight=case["weight"],
        randomness=Keystream(raw(case["randomness_key"])),
    )
    assert [str(w) for w in found.words.tolist()] == case["expected"]["words"]
    assert found.clipped is case["expected"]["clipped"]


@each("encode")
def test_words_are_what_the_steps_of_the_specification_give(case: Case) -> None:
    """Steps 1 to 6 in plain Python: without noise each integer is a neighbor of the rotated value."""
    fields, update = case["encoding"], [float(v) for v in case["update"]]
    norm = math.sqrt(sum(v * v for v in update))
    assert case["expected"]["clipped"] is (norm > fields["clip"])
    f = case["weight"] * (min(1.0, fields["clip"] / norm) if norm else 1.0)
    z = [f * fields["scale"] * SHRINK * v for v in update] + [0.0] * (fields["padded"] - fields["dim"])
    rotated = independent.rotate(z, raw(case["rotation_seed"]))
    packed = [int(w) for w in case["expected"]["words"]]
    beside = [w - 2**64 if w >= 2**63 else w for w in packed[len(packed) - len(fields["auxiliary"]) :]]
    values = independent.unpack(packed[: len(packed) - len(beside)], fields["bits"], fields["padded"])
    assert len(packed) == -(-fields["padded"] // (64 // fields["bits"])) + len(fields["auxiliary"])
    if fields["noise"][0]:
        sd = math.sqrt(Fraction(*fields["noise"]))
        assert max(abs(y - v) for y, v in zip(values, rotated, strict=True)) < 6 * sd
        assert any(abs(y - v) > 1 for y, v in zip(values, rotated, strict=True))
        return
    assert all(abs(y - v) < 1 + 1e-4 for y, v in zip(values, rotated, strict=True))
    bound_sq = fields["bound_sq"] - sum(a * a for a in fields["auxiliary"])
    assert sum(y * y for y in values) <= bound_sq
    for y, a, v in zip(beside, fields["auxiliary"], case["auxiliary"], strict=True):
        assert abs(y - a * v) < 1
        assert abs(y) <= a


@each("encode_refuses")
def test_an_update_that_cannot_be_encoded_is_refused(case: Case) -> None:
    with fails_as(case["kind"]):
        encode(
            numbers(case["update"]),
            encoding_of(case["encoding"]),
            rotation_seed=bytes(32),
            auxiliary=[float(v) for v in case.get("auxiliary", [])],
            weight=float(case.get("weight", 1.0)),
        )


@each("encoding_refuses")
def test_an_encoding_out_of_range_is_none(case: Case) -> None:
    fields = {**case["encoding"]}
    with fails_as(case["kind"]):
        encoding_of({**fields, "clip": float(fields["clip"]), "scale": float(fields["scale"])})


@each("decode")
def test_a_sum_is_read_back_as_a_mean(case: Case) -> None:
    encoding, total, seed = encoding_of(case["encoding"]), words(case["words"]), raw(case["rotation_seed"])
    mean = decode(total, encoding, count=case["count"], rotation_seed=seed)
    assert np.abs(mean - case["expected"]["mean"]).max() < case["tolerance"]
    found = decode_auxiliary(total, encoding, count=case["devices"])
    assert found == pytest.approx(case["expected"]["quantities"], abs=1e-11)
    values = independent.unpack(total.tolist()[: encoding.packed], encoding.bits, encoding.padded)
    # The formula forward: the mean, scaled and rotated, is the sum that was read.
    z = [v * encoding.scale * SHRINK * case["count"] for v in case["expected"]["mean"]]
    again = independent.rotate(z, seed)
    assert max(abs(a - v) for a, v in zip(again, values, strict=True)) < 0.05
    beside = [w - 2**64 if w >= 2**63 else w for w in total.tolist()[encoding.packed :]]
    expected = [y / (a * case["devices"]) for y, a in zip(beside, encoding.auxiliary, strict=True)]
    assert found == pytest.approx(expected, abs=1e-11)


@each("decode_refuses")
def test_what_is_no_sum_of_the_session_is_not_read(case: Case) -> None:
    with fails_as(case["kind"]):
        decode(words(case["words"]), encoding_of(PLAIN), count=float(case["count"]), rotation_seed=bytes(32))


@each("quantity")
def test_a_quantity_is_clamped_and_mapped_to_the_unit(case: Case) -> None:
    low, high, value = float(case["low"]), float(case["high"]), float(case["value"])
    if "kind" in case:
        with fails_as(case["kind"]):
            Quantity(case["name"], low, high).to_unit(value)
        return
    quantity = Quantity(case["name"], low, high)
    assert (
        quantity.to_unit(value)
        == case["expected"]
        == 2 * (min(max(value, low), high) - low) / (high - low) - 1
    )
    assert quantity.from_unit(case["expected"]) == min(max(value, low), high)


@each("next_clip")
def test_the_clip_follows_the_share_within_it(case: Case) -> None:
    found = next_clip(case["clip"], case["within"], low=case["low"], high=case["high"])
    share = min(max(case["within"], 0), 1)
    expected = min(max(case["clip"] * math.exp(-0.2 * (share - 0.5)), case["low"]), case["high"])
    assert found == pytest.approx(case["expected"], rel=1e-11)
    assert found == pytest.approx(expected, rel=1e-11)


@each("bounds")
def test_the_bounds_of_a_rounded_vector_have_their_values(case: Case) -> None:
    scaled, padded, expected = case["scaled_clip"], case["padded"], case["expected"]
    found = rounded_l2_bound_sq(scaled, padded)
    assert found == pytest.approx(expected["bound_sq"], rel=1e-11)
    root = math.sqrt(padded)
    plain = min((scaled + root) ** 2, scaled**2 + padded / 4 + scaled + root / 2)  # sqrt(2 ln(1/beta)) is 1.
    assert found == pytest.approx(plain, rel=1e-11)
    assert l1_bound(found, padded) == pytest.approx(expected["l1"], rel=1e-11)


@pytest.mark.parametrize("alpha", [2, 3, 17, 64, 512])
@pytest.mark.parametrize("mu", [Fraction(3, 2), Fraction(100), Fraction(10**9, 7)])
@pytest.mark.parametrize(("bound_sq", "coordinates"), [(9, 4), (1500, 10), (12_005_111, 1_000_002)])
def test_the_cost_of_a_release_is_the_formula_in_fractions(
    alpha: int, mu: Fraction, bound_sq: int, coordinates: int
) -> None:
    found = skellam_rdp(np.array([alpha]), bound_sq=bound_sq, padded=coordinates, variance=float(mu))[0]
    exact = independent.skellam_renyi(alpha, Fraction(bound_sq), coordinates, mu)
    assert found == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("participations", [1, 10, 100])
def test_epsilon_is_the_least_over_the_orders(participations: int) -> None:
    bound_sq, coordinates, delta = 12_005_111, 1_000_002, 1e-6
    mu = Fraction(60 * participations * bound_sq)
    found = epsilon(bound_sq, coordinates, float(mu), delta, participations)
    orders = [*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512]
    expected = min(
        participations * float(independent.skellam_renyi(a, Fraction(bound_sq), coordinates, mu))
        + math.log1p(-1 / a)
        - math.log(delta * a) / (a - 1)
        for a in orders
    )
    assert found == pytest.approx(expected, rel=1e-9)
