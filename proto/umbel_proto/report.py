"""What a device reports, as it is sealed: names both sides know become numbers, the rest is deflated and padded.

Schema 1 seals a serialized ``Batch`` as it is. Schema 2 seals a packed one: no shorter one says the same of a window
that is full, and its length says little, as there are few lengths.

Source: docs/spec/telemetry.md, "How a batch is packed"; RFC 1951 (deflate).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from umbel_proto.errors import UsageError
from umbel_proto.seal import SealPrivateKey, open_sealed
from umbel_proto.wire import telemetry_pb2 as pb

PLAIN, PACKED = 1, 2
"""Schemas of a batch's header: a serialized ``Batch`` is sealed, or a packed one."""
SCHEMAS = (PLAIN, PACKED)
MAX_BYTES = 256 * 1024
"""The longest serialized ``Batch`` that is made of a packed one: as long as the longest that a gateway takes plain."""
MAX_RATIO = 64
"""How many times as long as it is packed it may be: who has an opener work sends something for it."""
STEP_BYTES = 256
"""Up to four of these a packed batch is of so many whole ones; longer ones are rounded up to half a power of two."""
MAX_WINDOWS = 4096
MAX_LABELS = 1000
"""Labels that are counted by place; further ones have entries of their own."""
LABEL, CONTRACT = "label.", "contract."
KINDS = ("missing", "below", "above", "unknown")

# Places in these are on the wire: new names go to the end, and none is taken away.
COUNTERS = (
    "predictions",
    "errors",
    "input_sampled",
    "input_not_finite",
    "label.other",
    "feedback",
    "feedback.agreed",
    "feedback.from.user",
    "feedback.from.expert",
    "feedback.from.sensor",
    "feedback.from.outcome",
    "feedback.from.rule",
    "feedback.from.other",
    "feedback.compared",
    "feedback.alike",
    "review.asked",
    "review.dropped",
    "review.resolved",
    "review.changed",
    "review.overridden",
    "review.answered",
    "model.fell_back",
    "report.bytes",
    "energy_rapl_uj",
    "round.energy_rapl_uj",
    "round.trainings",
    "delivery.bytes",
    "delivery.saved_bytes",
    "spool.waiting",
    "quantize.measured",
    "quantize.chosen",
    "quantize.latency_ns",
    "quantize.compared",
    "quantize.agreed",
    "shadow.compared",
    "shadow.agreed",
    "shadow.errors",
    "shadow.dropped",
)
HISTOGRAMS = (
    "latency_us",
    "confidence",
    "input",
    "input_mean",
    "feedback.right",
    "feedback.wrong",
    "memory_mib",
    "spool_age_s",
    "shadow.confidence",
    "shadow.latency_us",
)
DICTIONARY = (
    b'column.\x1a\x0btflite-int8"\x06tflite\x1a\x04int8"\x04onnx\x1a\x04fp32"\x04onnx\x1a\x04none"\x04none'
)
"""What deflate may refer to before it has seen anything: how windows begin."""

_PLACES = {name: place for place, name in enumerate(COUNTERS)}
_KNOWN = {name: number for number, name in enumerate(HISTOGRAMS, 1)}


def pack(batch: pb.Batch) -> bytes:
    """Return a batch as schema 2 seals it.

    Sums of histograms lose what float32 does not hold: 6e-8 of themselves.
    """
    short = pb.Batch()
    short.CopyFrom(batch)
    for window in short.windows:
        _shorten(window)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=DICTIONARY)
    plain = short.SerializeToString(deterministic=True)
    packed = deflate.compress(plain) + deflate.flush()
    return packed.ljust(padded(len(packed), len(plain)), b"\0")


def padded(deflated: int, plain: int) -> int:
    """Return how long a packed batch is: one of few lengths.

    Args:
        deflated: How long it is deflated, >= 1.
        plain: How long it is serialized.
    """
    length = max(deflated, -(-plain // MAX_RATIO))
    step = STEP_BYTES if length <= 4 * STEP_BYTES else 1 << (length - 1).bit_length() - 2
    return -(-length // step) * step


def open_batch(private_key: SealPrivateKey, header: bytes, ciphertext: bytes) -> pb.Batch:
    """Return the batch that was sealed to this key beside exactly this header, of either schema.

    Raises:
        VerificationError: It does not open.
        UsageError: What was sealed is no batch: see ``unpack``.
    """
    plaintext = open_sealed(private_key, header, ciphertext)
    try:
        schema = pb.BatchHeader.FromString(header).schema
    except DecodeError as exc:
        raise UsageError("The batch's header is malformed.") from exc
    return unpack(schema, plaintext)


def unpack(schema: int, plaintext: bytes) -> pb.Batch:
    """Return the batch that was sealed, with every counter and histogram under its name.

    No more than ``MAX_BYTES`` and ``MAX_RATIO`` times its length are made of a packed one, whatever it says.

    Args:
        schema: Of the batch's header, which is authenticated.
        plaintext: What was sealed.

    Raises:
        UsageError: Malformed, too long, or of a schema that this umbel does not know.
    """
    if schema not in SCHEMAS:
        raise UsageError(
            f"The batch has schema {schema}, and this umbel knows {PLAIN} and {PACKED}: update it."
        )
    try:
        batch = pb.Batch.FromString(plaintext if schema == PLAIN else _inflate(plaintext))
    except DecodeError as exc:
        raise UsageError("The batch is malformed.") from exc
    if len(batch.windows) > MAX_WINDOWS:
        raise UsageError(f"The batch has {len(batch.windows)} windows, more than {MAX_WINDOWS}.")
    for window in batch.windows:
        _spell_out(window)
    return batch


def _inflate(packed: bytes) -> bytes:
    inflate, most = (
        zlib.decompressobj(-zlib.MAX_WBITS, zdict=DICTIONARY),
        min(MAX_BYTES, MAX_RATIO * len(packed)),
    )
    try:
        plain = inflate.decompress(packed, most + 1)
    except zlib.error as exc:
        raise UsageError("The batch is malformed: it does not inflate.") from exc
    if len(plain) > most:
        raise UsageError(f"The batch inflates to more than {most} bytes.")
    if not inflate.eof:
        raise UsageError("The batch is malformed: it ends too early.")
    padding = inflate.unused_data
    if any(padding) or len(packed) != padded(len(packed) - len(padding), len(plain)):
        raise UsageError("The batch is malformed: something other than its padding follows it.")
    return plain


def _shorten(window: pb.Window) -> None:
    counters = dict(window.counters)

    def by_place(names: Iterable[str]) -> list[int]:
        """Take counts up to the last that is not zero."""
        told = [counters.pop(name) if counters.get(name) else 0 for name in names]
        while told and not told[-1]:
            told.pop()
        return told

    window.known.extend(by_place(COUNTERS))
    window.labels.extend(by_place(f"{LABEL}{number}" for number in range(MAX_LABELS)))
    names = sorted({name for each in counters if (name := _column(each))})
    window.columns.extend(names)
    for kind in KINDS:
        getattr(window, kind).extend(by_place(f"{CONTRACT}{name}.{kind}" for name in names))
    window.ClearField("counters")
    window.counters.update(counters)
    for histogram in window.histograms:
        if number := _KNOWN.get(histogram.name):
            histogram.known = number
            histogram.ClearField("name")
        histogram.short_sum = histogram.sum
        histogram.ClearField("short_sum" if math.isinf(histogram.short_sum) else "sum")


def _column(counter: str) -> str:
    """Return the NAME of ``contract.NAME.KIND``; nothing where it is another counter."""
    name, _, kind = counter.removeprefix(CONTRACT).rpartition(".")
    return name if counter.startswith(CONTRACT) and kind in KINDS else ""


def _spell_out(window: pb.Window) -> None:
    """Put every counter and histogram under its name.

    Raises:
        UsageError: One has no name, or two.
    """
    if len(window.labels) > MAX_LABELS:
        raise UsageError(f"A window counts {len(window.labels)} labels by place, more than {MAX_LABELS}.")
    _add(window, COUNTERS, window.known)
    _add(window, [f"{LABEL}{number}" for number in range(len(window.labels))], window.labels)
    for kind in KINDS:
        _add(window, [f"{CONTRACT}{name}.{kind}" for name in window.columns], getattr(window, kind))
    for field in ("known", "labels", "columns", *KINDS):
        window.ClearField(field)
    for histogram in window.histograms:
        if histogram.known:
            if histogram.name or histogram.known > len(HISTOGRAMS):
                raise UsageError(
                    f"A histogram has number {histogram.known} and name {histogram.name[:80]!r}: it has a name or "
                    f"a number from 1 to {len(HISTOGRAMS)}."
                )
            histogram.name = HISTOGRAMS[histogram.known - 1]
        if histogram.short_sum:
            if histogram.sum:
                raise UsageError(f"Histogram {histogram.name[:80]!r} has two sums.")
            histogram.sum = histogram.short_sum
        histogram.ClearField("known")
        histogram.ClearField("short_sum")


def _add(window: pb.Window, names: Sequence[str], counts: Sequence[int]) -> None:
    if len(counts) > len(names):
        raise UsageError(
            f"A window has {len(counts)} counts of {len(names)} names: update umbel, or it is malformed."
        )
    for name, count in zip(names, counts, strict=False):
        if count and name in window.counters:
            raise UsageError(f"A window counts {name[:80]!r} twice.")
        if count:
            window.counters[name] = count
