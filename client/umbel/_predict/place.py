"""A thread's place at a model: takes one example, checked, and answers about it in one call."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbel._predict.answer import Decision, Estimate, Prediction
from umbel._predict.turns import Turns
from umbel.engines import Seat
from umbel_proto.contract import Field

if TYPE_CHECKING:
    from umbel._predict.listeners import Window

FEW = 12
"""Of up to so many classes the likeliest is found faster in a list than by numpy."""
SHORT = 1024
"""Up to so many values a bound is repeated for each: numpy compares arrays of one shape faster."""

_ALL = slice(None)
_NO_LABEL = -1
_LABELS = 256
"""Of more classes each prediction leaves a row."""


@dataclass(frozen=True, slots=True)
class Saying:
    """What a version of a model says beside its numbers.

    Args:
        version: The version.
        labels: Name of each class; empty where the model answers with numbers.
        thresholds: Of each class the least confidence that needs no review.
    """

    version: int
    labels: Sequence[str] = ()
    thresholds: Sequence[float] = ()


class Place:
    """Where one thread asks one version of a model about one example at a time.

    Args:
        field: The contract of its input.
        seat: The thread's seat at the engine; None where there is none: then it answers nothing.
        saying: What the version says beside its numbers.
        window: What counts its answers, if telemetry is on.
        turns: What all places of a version share, if threads had better take turns.
    """

    # `ask` gives None where the example is not as the graph wants it: the contract's own check says what is so.
    __slots__ = ("__weakref__", "ask", "seat")

    def __init__(
        self,
        field: Field,
        seat: Seat | None,
        saying: Saying,
        window: Window | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.seat = seat  # It may keep alive what the run needs.
        self.ask = _nothing if seat is None else asker(field, seat, saying, window)
        if turns is not None:
            self.ask = turns.taking(self.ask)


def asker(
    field: Field, seat: Seat, saying: Saying, window: Window | None = None
) -> Callable[[object], Prediction | Estimate | None]:
    """Return what answers about an example that is as the graph wants it and keeps the contract, in one call.

    It never answers about one that does not; one that it leaves alone, giving None, may keep the contract yet. An
    array of another type or shape it leaves alone.

    Args:
        field: The contract of the input.
        seat: Where to ask: the example's type is the field's.
        saying: What to say beside the engine's numbers.
        window: What counts the answers, if telemetry is on.
    """
    within = _within(field, seat.example[0, ...])
    if within is None:
        return _nothing
    example, apart, first, second, mask, found = within
    shape, dtype, array, at_most = field.shape, example.dtype, np.ndarray, np.less_equal
    checked, taken = example.data.cast("B"), seat.example.data.cast("B")
    answer, run = seat.answer[0, ...], seat.run
    version, labels, thresholds = saying.version, saying.labels, saying.thresholds
    few, classes = 0 < len(labels) <= FEW, range(len(labels))
    # Bytes, and no list: what an application keeps of predictions is then one object each for the collector of
    # garbage, not two, and it goes through all objects of a process half as often.
    read, floats = answer.tobytes, struct.Struct(f"{answer.size}f").unpack
    likeliest, chances, blank = answer.argmax, answer.data, Prediction.__new__
    clock, counted = perf_counter, window is not None
    if window is not None:
        log = window.log
        rows, row, extend, settle = log.rows, log.row, log.rows.extend, log.settle
        note = log.labels.append
    thin = counted and 0 < len(labels) <= _LABELS

    # All in one function: what a call costs more than its own steps is that the model's weights have
    # driven everything it looks at from the processor's cache.
    def ask(x: object) -> Prediction | Estimate | None:
        whole = not thin or log.whole()
        begin = clock() if whole else 0.0
        if type(x) is not array or x.shape != shape:
            return None
        # An array from another process has a data type of its own, which is equal and not the same.
        if x.dtype is not dtype and x.dtype != dtype:
            return None
        # As bytes, and not by numpy: from 500 values on it lets other threads run meanwhile, and where there are
        # any, to come back takes longer than the copy.
        checked[_ALL] = x.tobytes()
        at_most(first, second, mask)
        if 0 in found:
            return None
        if apart:
            taken[_ALL] = checked
        run()
        if few:
            probabilities = read()
            values = floats(probabilities)
            confidence = values[0]
            for value in values:  # Of so few `max` takes longer, to look at how it was called.
                if value > confidence:
                    confidence = value
            label = values.index(confidence)
        elif labels:
            label = classes[likeliest()]
            confidence = chances[label]
            probabilities = read()
        else:
            if counted:
                extend(row(1e9 * (clock() - begin), nan, _NO_LABEL))
                if len(rows) >= log.due:
                    settle(x)
            return Estimate(answer.copy(), version)
        decision: Decision = "automatic" if confidence >= thresholds[label] else "review"
        # Filled in here: to call its `__init__` takes twice as long.
        said = blank(Prediction)
        said.label, said.name, said.confidence = label, labels[label], confidence
        said.decision, said.model_version, said._probabilities = decision, version, probabilities
        if whole:
            if counted:
                extend(row(1e9 * (clock() - begin), confidence, label))
                if len(rows) >= log.due:
                    settle(x)
        else:
            note(label)
        return said

    return ask


class _Within(NamedTuple):
    """A comparison that tells whether all of an example is in the field's range.

    Args:
        example: Where to write it.
        apart: Whether that is not the engine's own memory.
        first: What is compared.
        second: What it must not be above.
        mask: Where to say so of each.
        found: The bytes of ``mask``, which take a search for a zero.
    """

    example: NDArray[Any]
    apart: bool
    first: NDArray[Any]
    second: NDArray[Any]
    mask: NDArray[np.bool_]
    found: bytearray


def _within(field: Field, example: NDArray[Any]) -> _Within | None:
    """Return how to tell at one stroke whether an example is in the field's range; None where a range says too little."""
    if field.max_age_s or any(column.values for column in field.columns):
        return None
    bounds: tuple[Any, Any] = field.minimum, field.maximum
    if field.columns:
        bounds = [each.minimum for each in field.columns], [each.maximum for each in field.columns]
    kind, size = example.dtype.type, example.size
    low, high = np.asarray(bounds[0]), np.asarray(bounds[1])
    if not issubclass(kind, np.floating):
        limits = np.iinfo(kind)
        low = np.clip(np.ceil(low), limits.min, limits.max)
        high = np.clip(np.floor(high), limits.min, limits.max)
    with np.errstate(over="ignore"):
        low, high = low.astype(kind), high.astype(kind)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    if kind is np.float32 and not low.any() and (high > 0).all():
        # Floats in [0, high] have the order of their bits; of negative ones, NaN and inf these are larger.
        if high.ndim or size <= SHORT:
            high = np.broadcast_to(high, example.shape).reshape(-1)
        bits, found = example.view(np.uint32).reshape(-1), bytearray(size)
        return _Within(example, False, bits, high.view(np.uint32), np.frombuffer(found, np.bool_), found)
    # Low, the example and high in a row: low is at most the example, and the example at most high. NaN is neither.
    row = np.empty((3, *example.shape), kind)
    row[0], row[1], row[2] = low, 0, high
    flat, found = row.reshape(-1), bytearray(2 * size)
    return _Within(row[1], True, flat[: 2 * size], flat[size:], np.frombuffer(found, np.bool_), found)


def _nothing(x: object) -> None:
    return None
