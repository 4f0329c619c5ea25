"""Frozen answers: an implementation that gives others cannot share a session with this one."""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umbel_proto.prg import Keystream
from umbel_proto.privacy.accounting import epsilon, noise_multiplier, rounded_l2_bound_sq
from umbel_proto.privacy.encode import Encoding, decode, encode
from umbel_proto.privacy.rotate import rotate, smooth_length, unrotate
from umbel_proto.privacy.skellam import PRECISION, SkellamSampler, skellam_pmf
from umbel_proto.privacy.slots import pack, unpack
from vectors.independent import quarters

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("privacy.json").read_text())


def hexed(words: np.ndarray) -> list[str]:
    return [f"{int(word):016x}" for word in words]


@pytest.mark.parametrize(("dim", "padded"), VECTORS["smooth_length"])
def test_padding_is_frozen(dim: int, padded: int) -> None:
    assert smooth_length(dim) == padded


@pytest.mark.parametrize("case", VECTORS["rotation"])
def test_the_rotation_is_frozen(case: dict[str, Any]) -> None:
    seed, vector = bytes.fromhex(case["seed"]), np.array(case["vector"], np.float32)
    assert quarters(seed, vector.size // 2) == case["quarter_turns"]
    rotated = rotate(vector, seed)
    assert np.abs(rotated - case["rotated"]).max() < case["tolerance"]
    back = unrotate(np.array(case["rotated"], np.float32), seed)
    assert np.abs(back - vector).max() < case["tolerance"]


@pytest.mark.parametrize("case", VECTORS["rotation"])
def test_the_frozen_rotation_is_the_formula_of_the_spec(case: dict[str, Any]) -> None:
    vector = case["vector"]
    half = len(vector) // 2
    turned = [
        complex(vector[place], vector[place + half]) * 1j ** case["quarter_turns"][place]
        for place in range(half)
    ]
    out = [
        sum(u * np.exp(-2j * math.pi * place * k / half) for place, u in enumerate(turned)) / math.sqrt(half)
        for k in range(half)
    ]
    expected = [each.real for each in out] + [each.imag for each in out]
    assert np.abs(np.array(expected) - case["rotated"]).max() < case["tolerance"]


@pytest.mark.parametrize("case", VECTORS["slots"], ids=lambda case: str(case["bits"]))
def test_packing_is_frozen(case: dict[str, Any]) -> None:
    values = np.array(case["values"], np.int32)
    words = pack(values, case["bits"])
    assert hexed(words) == case["words"]
    assert np.array_equal(unpack(words, case["bits"], values.size), values)


@pytest.mark.parametrize("case", VECTORS["skellam"], ids=lambda case: str(case["variance"][0]))
def test_the_noise_of_a_known_key_is_frozen(case: dict[str, Any]) -> None:
    variance = Fraction(*case["variance"])
    draws = SkellamSampler(variance).sample(20_000, Keystream(bytes.fromhex(case["key"])))
    assert draws[: len(case["first"])].tolist() == case["first"]
    assert hashlib.sha256(draws.astype("<i4").tobytes()).hexdigest() == case["sha256_of_20000_int32_le"]
    pmf = skellam_pmf(variance)
    assert f"{pmf[0]:x}" == case["p0_times_2_160"]
    assert len(pmf) - 1 == case["largest"]


@pytest.mark.parametrize("case", VECTORS["encode"], ids=lambda case: str(case["encoding"]["bits"]))
def test_encodings_are_frozen(case: dict[str, Any]) -> None:
    given = case["encoding"]
    encoding = Encoding(**{**given, "noise": Fraction(*given["noise"])})
    seed = bytes.fromhex(case["rotation_seed"])
    encoded = encode(
        np.array(case["update"], np.float32),
        encoding,
        rotation_seed=seed,
        randomness=Keystream(bytes.fromhex(case["randomness_key"])),
    )
    assert hexed(encoded.words) == case["words"]
    assert encoded.clipped is case["clipped"]
    mean = decode(encoded.words, encoding, count=1, rotation_seed=seed)
    assert np.abs(mean - case["decoded"]).max() < case["tolerance"]


def test_the_known_answers_of_the_accounting_hold() -> None:
    known = VECTORS["accounting"]
    bound, spent = known["rounded_l2_bound"], known["epsilon"]
    bound_sq = rounded_l2_bound_sq(bound["scaled_clip"], bound["padded"])
    assert math.sqrt(bound_sq) == pytest.approx(bound["bound"], rel=1e-14)
    variance = spent["noise_multiplier"] ** 2 * bound_sq
    found = epsilon(bound_sq, spent["padded"], variance, spent["delta"], spent["participations"])
    assert found == pytest.approx(spent["epsilon"], abs=spent["tolerance"])
    for row in known["noise_multiplier"]:
        z = noise_multiplier(row["epsilon"], row["delta"], row["participations"])
        assert z == pytest.approx(row["z"], abs=1e-4)
    p0 = known["skellam_p0"]
    assert skellam_pmf(Fraction(p0["variance"]))[0] / 2**PRECISION == pytest.approx(p0["p0"], rel=1e-15)
