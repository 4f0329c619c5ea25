"""The vectors of encoding.json: what docs/spec/privacy.md makes of updates and sums, and what it refuses.

Noise and rounding coins come from keystreams of known keys here, and from nowhere known on a device. In
which order an encoding reads its keystream is umbel's own affair: another implementation is held to the
laws of steps 3 to 5, not to these draws.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.prg import Keystream
from umbel_proto.privacy.accounting import l1_bound, rounded_l2_bound_sq
from umbel_proto.privacy.auxiliary import Quantity, next_clip
from umbel_proto.privacy.encode import Encoding, decode, decode_auxiliary, encode
from umbel_proto.privacy.rotate import rotate, smooth_length
from umbel_proto.privacy.skellam import SkellamSampler, skellam_pmf
from umbel_proto.privacy.slots import pack
from vectors.fixed import fixed
from vectors.independent import words as words_of

Case = dict[str, Any]
Vector = NDArray[np.float32]
SEED = fixed("rotation")
PLAIN: Case = {
    "dim": 10,
    "padded": 10,
    "bits": 21,
    "clip": 0.5,
    "scale": 64.0,
    "bound_sq": 1500,
    "noise": [0, 1],
    "auxiliary": [],
}


def vectors() -> dict[str, Any]:
    return {
        "about": "Encodings of docs/spec/privacy.md. Keys and seeds are hex, words decimal, fractions [numerator, "
        "denominator]. A case has `expected`, or the `kind` of failure (secure-aggregation.md, section 9).",
        "padding": paddings(),
        "rotation": rotations(),
        "slots": slots(),
        "skellam": noises(),
        "encode": encodings(),
        "encode_refuses": bad_updates(),
        "encoding_refuses": bad_encodings(),
        "decode": decodings(),
        "decode_refuses": bad_sums(),
        "quantity": quantities(),
        "next_clip": clips(),
        "bounds": bounds(),
    }


def encoding_of(fields: Case) -> Encoding:
    rest = {"noise": Fraction(*fields["noise"]), "auxiliary": tuple(fields["auxiliary"])}
    return Encoding(**{**fields, **rest})


def update_of(name: str, size: int, length: float) -> Vector:
    """A vector that its name decides, of a length, each value a multiple of 2^-16."""
    values = np.array([w / 2**63 - 1 for w in words_of(fixed(name, 8 * size))])
    values *= length / np.sqrt((values**2).sum())
    return (np.round(values * 2**16) / 2**16).astype(np.float32)


def paddings() -> list[Case]:
    dims = [1, 2, 3, 5, 7, 11, 13, 14, 17, 121, 127, 1021, 4097, 65_537, 10**7, 2**30 - 1, 2**30]
    return [{"comment": f"d = {dim}", "dim": dim, "expected": smooth_length(dim)} for dim in dims]


def rotations() -> list[Case]:
    out = []
    for size in (2, 4, 10, 36):
        vector = update_of(f"rotation {size}", size, 3.0)
        rotated = [round(float(v), 5) + 0.0 for v in rotate(vector, SEED)]
        given = {"seed": SEED.hex(), "vector": vector.tolist()}
        out.append({"comment": f"D = {size}", **given, "tolerance": 2e-5, "expected": rotated})
    return out


def slots() -> list[Case]:
    out = []
    for bits in (16, 21, 32):
        top = 2 ** (bits - 1)
        for comment, values in (
            ("nothing", []),
            ("one value", [-1]),
            ("fewer than a word holds", [3, -4]),
            ("the least and the largest sum", [-top, top - 1, -top, top - 1, -top, top - 1, 0]),
            ("all borrow", [-1] * 9),
        ):
            packed = [str(w) for w in pack(np.array(values, np.int32), bits).tolist()]
            out.append(
                {"comment": f"{bits} bits: {comment}", "bits": bits, "values": values, "expected": packed}
            )
    return out


def noises() -> list[Case]:
    """Tables at a few values, and draws from a known key."""
    out = []
    for variance in (Fraction(1, 8), Fraction(1), Fraction(1001, 8), Fraction(25_000), Fraction(2**24)):
        pmf = skellam_pmf(variance)
        places = sorted({0, 1, 2, len(pmf) // 8, len(pmf) // 2, len(pmf) - 1})
        draws = SkellamSampler(variance).sample(32, Keystream(fixed("noise")))
        out.append(
            {
                "comment": f"variance {variance}",
                "variance": [variance.numerator, variance.denominator],
                "key": fixed("noise").hex(),
                "largest": len(pmf) - 1,
                "pmf_times_2_160": {str(place): f"{pmf[place]:x}" for place in places},
                "expected": draws.tolist(),
            }
        )
    return out


def encodings() -> list[Case]:
    noise, beside = [1001, 8], {"bound_sq": 1500 + 5**2 + 7**2, "auxiliary": [5, 7]}
    short, long = update_of("short", 10, 0.25), update_of("long", 10, 2.0)
    cases: list[tuple[str, Case, Vector, Case]] = [
        ("zero, no noise", {}, np.zeros(10, np.float32), {}),
        ("within the clip, no noise", {}, short, {}),
        ("beyond the clip, no noise", {}, long, {}),
        ("with noise", {"noise": noise}, short, {}),
        ("slots of 16 bits", {"bits": 16, "noise": noise}, short, {}),
        ("slots of 32 bits", {"bits": 32, "noise": noise}, short, {}),
        ("half the weight", {}, long, {"weight": 0.5}),
        ("no weight", {}, long, {"weight": 0.0}),
        ("quantities at their bounds", beside, short, {"auxiliary": [-1.0, 1.0]}),
        (
            "quantities between, a weight and noise",
            {**beside, "noise": noise},
            long,
            {"auxiliary": [0.3, -0.9], "weight": 0.75},
        ),
        ("padded", {"dim": 7, "padded": 8}, update_of("seven", 7, 1.0), {}),
        ("one parameter", {"dim": 1, "padded": 2}, np.array([0.375], np.float32), {}),
    ]
    out = []
    for comment, change, update, more in cases:
        fields = {**PLAIN, **change}
        found = encode(
            update, encoding_of(fields), rotation_seed=SEED, randomness=Keystream(fixed(comment)), **more
        )
        out.append(
            {
                "comment": comment,
                "encoding": fields,
                "rotation_seed": SEED.hex(),
                "randomness_key": fixed(comment).hex(),
                "update": update.tolist(),
                "auxiliary": more.get("auxiliary", []),
                "weight": more.get("weight", 1.0),
                "expected": {"clipped": found.clipped, "words": [str(w) for w in found.words.tolist()]},
            }
        )
    return out


def bad_updates() -> list[Case]:
    beside = {**PLAIN, "bound_sq": 1500 + 5**2, "auxiliary": [5]}
    good = [0.0] * 10
    cases: list[tuple[str, str, Case, list[Any], Case]] = [
        ("a value that is no number", "not_finite", PLAIN, [*good[:9], "nan"], {}),
        ("an infinite value", "not_finite", PLAIN, [*good[:9], "inf"], {}),
        ("a value too few", "wrong_length", PLAIN, good[:9], {}),
        ("a value too many", "wrong_length", PLAIN, [*good, 0.0], {}),
        ("no value", "wrong_length", PLAIN, [], {}),
        ("no quantity of one", "wrong_length", beside, good, {}),
        ("two quantities of one", "wrong_length", beside, good, {"auxiliary": [0.0, 0.0]}),
        ("a quantity of none", "wrong_length", PLAIN, good, {"auxiliary": [0.0]}),
        ("a quantity above 1", "out_of_range", beside, good, {"auxiliary": [1.0000001]}),
        ("a quantity that is no number", "out_of_range", beside, good, {"auxiliary": ["nan"]}),
        ("a weight above 1", "out_of_range", PLAIN, good, {"weight": 1.5}),
        ("a weight below 0", "out_of_range", PLAIN, good, {"weight": -0.5}),
        ("a weight that is no number", "out_of_range", PLAIN, good, {"weight": "nan"}),
    ]
    return [
        {
            "comment": comment,
            "encoding": fields,
            "update": update,
            **more,
            "kind": kind,
        }
        for comment, kind, fields, update, more in cases
    ]


def bad_encodings() -> list[Case]:
    """Fields out of range that a descriptor's bytes cannot say; the others are in messages.json."""
    cases: list[tuple[str, Case]] = [
        ("a negative dim", {"dim": -1}),
        ("an infinite scale", {"scale": "inf"}),
        ("a clip that is no number", {"clip": "nan"}),
        ("negative noise", {"noise": [-1, 8]}),
        ("a negative amplitude", {"bound_sq": 1525, "auxiliary": [-5]}),
        ("a negative bound", {"bound_sq": -1}),
        ("slots of 64 bits", {"bits": 64}),
    ]
    return [{"comment": c, "encoding": {**PLAIN, **change}, "kind": "out_of_range"} for c, change in cases]


def decodings() -> list[Case]:
    """Sums of three encodings, and the means they hold."""
    out = []
    for bits, auxiliary, count in ((16, [], 3), (21, [5, 7], 3), (32, [5, 7], 1.25)):
        fields = {
            **PLAIN,
            "bits": bits,
            "bound_sq": 1500 + sum(a * a for a in auxiliary),
            "auxiliary": auxiliary,
        }
        encoding = encoding_of(fields)
        total = np.zeros(encoding.words, np.uint64)
        for i in range(3):
            update, beside = update_of(f"update {i}", 10, 0.4), [0.5, -0.25][: len(auxiliary)]
            stream = Keystream(fixed(f"sum {i}"))
            total += encode(update, encoding, rotation_seed=SEED, auxiliary=beside, randomness=stream).words
        mean = [round(float(v), 5) + 0.0 for v in decode(total, encoding, count=count, rotation_seed=SEED)]
        quantities = decode_auxiliary(total, encoding, count=3)
        out.append(
            {
                "comment": f"{bits} bits, {len(auxiliary)} quantities, weights sum to {count}",
                "encoding": fields,
                "rotation_seed": SEED.hex(),
                "words": [str(w) for w in total.tolist()],
                "count": count,
                "devices": 3,
                "tolerance": 2e-5,
                "expected": {"mean": mean, "quantities": [round(float(q), 12) for q in quantities]},
            }
        )
    return out


def bad_sums() -> list[Case]:
    return [
        {"comment": "a word too few", "words": ["0"] * 3, "count": 3, "kind": "wrong_length"},
        {"comment": "a word too many", "words": ["0"] * 5, "count": 3, "kind": "wrong_length"},
        {"comment": "over nobody", "words": ["0"] * 4, "count": 0, "kind": "out_of_range"},
        {"comment": "a negative sum of weights", "words": ["0"] * 4, "count": -0.5, "kind": "out_of_range"},
        {"comment": "no number of weights", "words": ["0"] * 4, "count": "nan", "kind": "out_of_range"},
    ]


def quantities() -> list[Case]:
    """A value on its device, and the same on the scale from -1 to 1."""
    loss = {"name": "loss", "low": 0.5, "high": 8.5}
    out: list[Case] = [
        {"comment": comment, **loss, "value": value, "expected": Quantity(**loss).to_unit(float(value))}
        for comment, value in (
            ("low", 0.5),
            ("high", 8.5),
            ("the middle", 4.5),
            ("between", 1.5),
            ("below low", -3.0),
            ("above high", 100.0),
            ("infinite", "inf"),
        )
    ]
    out.append({"comment": "no number", **loss, "value": "nan", "kind": "not_finite"})
    for comment, change in (
        ("low equals high", {"low": 8.5}),
        ("low above high", {"low": 9.0}),
        ("no bound above", {"high": "inf"}),
        ("a bound that is no number", {"low": "nan"}),
        ("a name nobody knows", {"name": "heart_rate"}),
        ("weights below 0", {"name": "weight", "low": -1.0}),
        ("within_clip from 0 to 2", {"name": "within_clip", "low": 0.0, "high": 2.0}),
        ("within_half_clip from 0 to 2", {"name": "within_half_clip", "low": 0.0, "high": 2.0}),
    ):
        out.append({"comment": comment, **loss, **change, "value": 1.0, "kind": "out_of_range"})
    return out


def clips() -> list[Case]:
    out = []
    for comment, within in (
        ("all cut: longer", 0.0),
        ("half: as it was", 0.5),
        ("none cut: shorter", 1.0),
        ("noise below 0 counts as 0", -0.75),
        ("noise above 1 counts as 1", 3.5),
    ):
        after = next_clip(0.8, within, low=0.1, high=2.0)
        out.append({"comment": comment, "clip": 0.8, "within": within, "low": 0.1, "high": 2.0})
        out[-1]["expected"] = float(f"{after:.12g}")
    out.append(
        {"comment": "at the limit", "clip": 2.0, "within": 0.0, "low": 0.1, "high": 2.0, "expected": 2.0}
    )
    out.append(
        {"comment": "at the other", "clip": 0.1, "within": 1.0, "low": 0.1, "high": 2.0, "expected": 0.1}
    )
    return out


def bounds() -> list[Case]:
    """B^2 without quantities, and Delta_1."""
    out = []
    for scaled, padded in ((0.5, 2), (10.0, 100), (100.0, 13_824), (3428.0, 1_000_000), (1e6, 10_000_000)):
        bound_sq = rounded_l2_bound_sq(scaled, padded)
        expected = {"bound_sq": float(f"{bound_sq:.12g}"), "l1": float(f"{l1_bound(bound_sq, padded):.12g}")}
        out.append(
            {"comment": f"s C = {scaled:g}", "scaled_clip": scaled, "padded": padded, "expected": expected}
        )
    return out
