"""The vectors of telemetry.json: windows as bytes, and what a receiver reads of them or why it refuses them.

Windows of an umbel that knew less stay valid for good: what is new is a counter or a histogram more.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from vectors.independent import field, varint

CONFIDENCE_SCALE, LATENCY_SCALE = 2, 1
COUNTERS = (  # noqa: SIM905
    "predictions errors input_sampled input_not_finite label.other feedback feedback.agreed feedback.from.user "
    "feedback.from.expert feedback.from.sensor feedback.from.outcome feedback.from.rule feedback.from.other "
    "feedback.compared feedback.alike review.asked review.dropped review.resolved review.changed review.overridden "
    "review.answered model.fell_back report.bytes energy_rapl_uj round.energy_rapl_uj round.trainings delivery.bytes "
    "delivery.saved_bytes spool.waiting quantize.measured quantize.chosen quantize.latency_ns quantize.compared "
    "quantize.agreed shadow.compared shadow.agreed shadow.errors shadow.dropped"
).split()
HISTOGRAMS = (  # noqa: SIM905
    "latency_us confidence input input_mean feedback.right feedback.wrong memory_mib spool_age_s shadow.confidence "
    "shadow.latency_us"
).split()
DICTIONARY = b"column." + b"".join(
    field(3, variant) + field(4, engine)
    for variant, engine in (
        (b"tflite-int8", b"tflite"),
        (b"int8", b"onnx"),
        (b"fp32", b"onnx"),
        (b"none", b"none"),
    )
)


def vectors() -> dict[str, Any]:
    right, wrong = cells(24, {23: 7, 20: 2, 12: 1}), cells(24, {20: 1, 12: 3})
    before = window({"predictions": 3, "label.7": 3, "input_sampled": 1}, [
        histogram("latency_us", LATENCY_SCALE, cells(58, {16: 3}), 300.0),
        histogram("confidence", CONFIDENCE_SCALE, cells(24, {23: 3}), 2.99),
    ])  # fmt: skip
    labels = {"feedback": 14, "feedback.agreed": 10, "feedback.from.user": 14}
    judged = [
        histogram("feedback.right", CONFIDENCE_SCALE, right, 9.25),
        histogram("feedback.wrong", CONFIDENCE_SCALE, wrong, 2.5),
    ]
    noisy = [histogram("feedback.right", CONFIDENCE_SCALE, right, 0.0, 1.0)]
    return {
        "about": "Windows of docs/spec/telemetry.md, section 1, serialized. A case has `counters` and `histograms`, "
        "each with the number of its scale, its counts, sum and epsilon (0: as counted), or `why` it is refused.",
        "Window": [
            good("of predictions, as the first version reports them", before),
            good("of labels that arrived, by the confidence of what the model said", window(labels, judged)),
            good("the same with confidences randomized", window(labels, noisy)),
            good(
                "what waits, and what the last report took",
                window({"spool.waiting": 61, "report.bytes": 1999}, []),
            ),
            bad("with confidences told twice", window(labels, judged + judged), "two histograms of one name"),
            bad(
                "of labels, randomized and telling their sum",
                window(labels, [histogram("feedback.right", CONFIDENCE_SCALE, right, 9.25, 1.0)]),
                "randomized and tells the sum",
            ),
            bad(
                "of labels with a cell too few",
                window(labels, [histogram("feedback.right", CONFIDENCE_SCALE, right[1:], 9.25)]),
                "has 23 counts, not 24",
            ),
        ],
        "Packed": packed_batches(),
        "Names": {"counters": COUNTERS, "histograms": HISTOGRAMS, "dictionary": DICTIONARY.hex()},
    }


def packed_batches() -> list[dict[str, Any]]:
    own = field(1, b"digits") + field(2, 3) + field(3, b"int8") + field(4, b"onnx")
    own += field(7, field(1, b"app.purchase") + field(2, 4))
    own += field(9, bytes([3, 0, 1])) + field(10, bytes([0, 2, 0, 1]))
    own += field(11, b"age") + field(11, b"height") + field(12, b"\x05") + field(14, bytes([0, 7]))
    short = varint(9 << 3 | 5) + struct.pack("<f", 2.5)
    own += field(8, field(3, bytes(24)) + field(5, CONFIDENCE_SCALE) + field(8, 2) + short)
    counters = {
        "predictions": 3,
        "input_sampled": 1,
        "label.1": 2,
        "label.3": 1,
        "contract.age.missing": 5,
        "contract.height.above": 7,
        "app.purchase": 4,
    }
    told = {"counters": counters, "histograms": [["confidence", 2.5]]}
    right = field(1, own)
    twice = field(1, own + field(7, field(1, b"label.3") + field(2, 1)))
    return [
        {"comment": "of one window", "bytes": padded(stored(right)).hex(), **told},
        {"comment": "not padded", "bytes": stored(right).hex(), "why": "padding"},
        {
            "comment": "padded once more",
            "bytes": (padded(stored(right)) + bytes(256)).hex(),
            "why": "padding",
        },
        {"comment": "padded with ones", "bytes": padded(stored(right), b"\x01").hex(), "why": "padding"},
        {"comment": "without its end", "bytes": padded(stored(right, last=False)).hex(), "why": "malformed"},
        {"comment": "with a label twice", "bytes": padded(stored(twice)).hex(), "why": "'label.3' twice"},
    ]


def stored(plain: bytes, *, last: bool = True) -> bytes:
    """RFC 1951, 3.2.4: one block that is not compressed."""
    length = len(plain)
    return bytes([last]) + struct.pack("<HH", length, length ^ 0xFFFF) + plain


def padded(packed: bytes, by: bytes = b"\0") -> bytes:
    """Up to 1,024 bytes: of so many whole 256 bytes."""
    return packed.ljust(-(-len(packed) // 256) * 256, by)


Told = tuple[bytes, dict[str, Any]]


def good(comment: str, told: Told) -> dict[str, Any]:
    return {"comment": comment, "bytes": told[0].hex(), **told[1]}


def bad(comment: str, told: Told, why: str) -> dict[str, Any]:
    return {"comment": comment, "bytes": told[0].hex(), "why": why}


def cells(many: int, there: Mapping[int, int]) -> list[int]:
    return [there.get(cell, 0) for cell in range(many)]


def histogram(name: str, scale: int, counts: Sequence[int], total: float, epsilon: float = 0.0) -> Told:
    packed = b"".join(map(varint, counts))
    body = field(1, name.encode()) + field(3, packed)
    body += field(4, total) if total else b""
    body += field(5, scale)
    body += field(6, epsilon) if epsilon else b""
    return body, {"name": name, "scale": scale, "counts": list(counts), "sum": total, "epsilon": epsilon}


def window(counters: Mapping[str, int], histograms: Sequence[Told]) -> Told:
    body = field(1, b"digits") + field(2, 3) + field(3, b"none") + field(4, b"none")
    body += field(5, 1_800_000_000) + field(6, 1_800_000_060)
    for name, count in counters.items():
        body += field(7, field(1, name.encode()) + field(2, count))
    for each, _ in histograms:
        body += field(8, each)
    return body, {"counters": dict(counters), "histograms": [told for _, told in histograms]}
