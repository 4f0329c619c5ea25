"""A packed batch says what the plain one said, in one of few lengths; no packed one makes the opener work without limit."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel_proto.errors import UsageError
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_proto.report import (
    COUNTERS,
    DICTIONARY,
    HISTOGRAMS,
    MAX_BYTES,
    MAX_LABELS,
    MAX_RATIO,
    PACKED,
    PLAIN,
    pack,
    padded,
    unpack,
)
from umbel_proto.seal import SealPrivateKey
from umbel_proto.wire import telemetry_pb2 as pb

KEY = SealPrivateKey(bytes(range(32)))

counts = st.integers(0, 2**63 - 1)
names = st.one_of(
    st.sampled_from(COUNTERS),
    st.builds("label.{}".format, st.integers(0, MAX_LABELS + 5)),
    st.builds("contract.{}.{}".format, st.sampled_from(["x", "a.b", "c-1", ""]), st.sampled_from(["missing", "below", "above", "unknown", "odd"])),
    st.sampled_from(["app.purchase", "contract.", "contract.x", "label.", "label.01", "label.x", "labels"]),
)  # fmt: skip
histograms = st.builds(
    lambda name, some, total: pb.Histogram(name=name, scale=2, counts=some, sum=total),
    st.sampled_from([*HISTOGRAMS, "app.seconds", "column.age"]),
    st.lists(counts, min_size=24, max_size=24),
    st.floats(allow_nan=False, allow_infinity=False),
)
windows = st.builds(
    lambda told, seen, start: pb.Window(
        model="digits", version=3, variant="int8", engine="onnx", start_s=start, end_s=start, counters=told,
        histograms=seen,
    ),
    st.dictionaries(names, counts, max_size=30),
    st.lists(histograms, max_size=4),
    st.integers(0, 2**40),
)  # fmt: skip


def single(value: float) -> float:
    """Return a sum as it arrives: in the precision of float32, if it has a value there."""
    short = pb.Histogram(short_sum=value).short_sum
    return value if abs(short) == float("inf") else short + 0.0  # A sum of -0 is none.


@settings(max_examples=200, deadline=None)
@given(st.lists(windows, max_size=4))
def test_what_is_unpacked_is_what_was_packed(told: list[pb.Window]) -> None:
    batch = pb.Batch(windows=told)
    arrived = unpack(PACKED, pack(batch))
    for window in batch.windows:
        for histogram in window.histograms:
            histogram.sum = single(histogram.sum)
    assert arrived == batch


def test_reviews_travel_with_windows() -> None:
    batch = pb.Batch(windows=[pb.Window(model="digits", version=1)])
    batch.waiting_reviews.add()
    batch.ended_reviews.add()
    assert unpack(PACKED, pack(batch)) == batch


@settings(max_examples=50, deadline=None)
@given(st.lists(windows, max_size=4))
def test_a_batch_that_an_older_device_sealed_is_read_as_it_is(told: list[pb.Window]) -> None:
    batch = pb.Batch(windows=told)
    assert unpack(PLAIN, batch.SerializeToString()) == batch


@pytest.mark.parametrize("schema", [0, 3, 2**32 - 1])
def test_a_batch_of_another_schema_is_refused(schema: int) -> None:
    with pytest.raises(UsageError, match="update"):
        unpack(schema, pack(pb.Batch()))


def test_there_are_few_lengths() -> None:
    lengths = {padded(length, 0) for length in range(1, MAX_BYTES)}
    assert min(lengths) == 256
    assert len(lengths) <= 20
    assert all(length <= padded(length, 0) < 1.5 * length + 256 for length in range(1, MAX_BYTES))
    assert all(padded(length, 0) == padded(1, MAX_RATIO * length) == length for length in lengths)


@settings(max_examples=100, deadline=None)
@given(st.lists(windows, max_size=4))
def test_a_packed_batch_has_one_of_them(told: list[pb.Window]) -> None:
    packed = pack(pb.Batch(windows=told))
    assert padded(len(packed), 0) == len(packed)


def deflated(plain: bytes) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    packed = made.compress(plain) + made.flush()
    return packed.ljust(padded(len(packed), len(plain)), b"\0")


def test_what_inflates_to_more_than_a_batch_may_have_is_refused_before_it_is_made() -> None:
    # A field that nobody knows, of 8 MiB.
    bomb = deflated(b"\x7a" + b"\x80\x80\x80\x04" + bytes(8 << 20))
    assert len(bomb) == 8 * 2**20 // MAX_RATIO * 1.5
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=f"more than {MAX_BYTES}"):
            unpack(PACKED, bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_BYTES
    finally:
        tracemalloc.stop()


def test_what_inflates_to_more_than_its_own_length_allows_is_refused() -> None:
    plain = pb.Batch(windows=[pb.Window(model="m" * 100_000)]).SerializeToString()
    right = deflated(plain)
    assert unpack(PACKED, right)
    with pytest.raises(UsageError, match=f"more than {256 * MAX_RATIO} bytes"):
        unpack(PACKED, right[:256])


def test_the_longest_batch_is_read_and_one_a_byte_longer_is_not() -> None:
    def of(size: int) -> bytes:
        return deflated(pb.Batch(windows=[pb.Window(model="m" * size)]).SerializeToString())

    around = MAX_BYTES - len(pb.Batch(windows=[pb.Window(model="m" * 100_000)]).SerializeToString()) + 100_000
    assert unpack(PACKED, of(around)).windows[0].model == "m" * around
    with pytest.raises(UsageError, match="inflates to more"):
        unpack(PACKED, of(around + 1))


FULL = pack(
    pb.Batch(
        windows=[
            pb.Window(
                model="digits",
                version=1,
                variant="int8",
                engine="onnx",
                counters={"predictions": 70, "label.3": 70, "contract.x.below": 3, "app.purchase": 9},
                histograms=[
                    Histogram.empty("latency_us", LATENCY_US).observe([3.0, 4.0, 9e3]).to_wire(),
                    Histogram.empty("confidence", CONFIDENCE).observe([0.3, 0.9]).to_wire(),
                ],
            )
        ]
    )
)
END = len(FULL.rstrip(b"\0"))


@pytest.mark.parametrize("length", [*range(END), END + 1, len(FULL) - 1, len(FULL) + 1, 2 * len(FULL)])
def test_a_batch_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(UsageError):
        unpack(PACKED, FULL[:length].ljust(length, b"\0"))


@pytest.mark.parametrize("place", [END + 1, len(FULL) - 2, len(FULL) - 1])
def test_nothing_hides_in_the_padding(place: int) -> None:
    assert unpack(PACKED, FULL)
    with pytest.raises(UsageError, match="padding"):
        unpack(PACKED, FULL[:place] + b"\1" + FULL[place + 1 :])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.builds(lambda raw: deflated(raw), st.binary(max_size=300)))
def test_whatever_is_sent_is_read_or_refused_as_a_users_mistake(raw: bytes) -> None:
    for schema in (PLAIN, PACKED):
        with contextlib.suppress(UsageError):
            unpack(schema, raw)


@pytest.mark.parametrize(
    ("window", "why"),
    [
        ({"known": [1], "counters": {"predictions": 1}}, "counts 'predictions' twice"),
        ({"labels": [0, 1], "counters": {"label.1": 1}}, "counts 'label.1' twice"),
        ({"columns": ["a", "a"], "below": [1, 1]}, "counts 'contract.a.below' twice"),
        ({"columns": ["a"], "above": [1, 1]}, "2 counts of 1 names"),
        ({"known": [0] * (len(COUNTERS) + 1)}, "update umbel"),
        ({"labels": [1] * (MAX_LABELS + 1)}, "1001 labels"),
        ({"histograms": [{"known": len(HISTOGRAMS) + 1}]}, "a number from 1 to"),
        ({"histograms": [{"known": 1, "name": "input"}]}, "a name or a number"),
        ({"histograms": [{"known": 1, "sum": 1.0, "short_sum": 1.0}]}, "two sums"),
    ],
)
def test_what_is_told_twice_or_of_nothing_is_refused(window: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        unpack(PACKED, deflated(pb.Batch(windows=[pb.Window(**window)]).SerializeToString()))
