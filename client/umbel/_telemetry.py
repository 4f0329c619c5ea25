"""What a device says of its predictions: counts and histograms of a stretch of time, sealed.

A window holds no input, no output and no time of a single prediction. It lives in memory until it
closes; then it is sealed to the fleet's key and only so touches the disk. A process that is
killed loses its open windows, at most the last minute.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from umbel._home import DeviceHome
from umbel._spool import Sealed, Spool, new_batch_id
from umbel_proto.histogram import CONFIDENCE, INPUT, LATENCY_US, Histogram
from umbel_proto.seal import seal
from umbel_proto.wire import telemetry_pb2 as pb

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = 1
MAX_LABELS = 1000
"""Labels counted by themselves in one window; a further one counts as ``label.other``."""
SAMPLED_INPUTS = 1024
"""Values of one input that are counted: of a larger one, evenly spaced values."""
MAX_BATCH_BYTES = 128 * 1024
MAX_PENDING = 256
"""Closed windows kept in memory while the disk takes none; beyond it, the oldest go."""


class _Tally:
    """A histogram in the making: fast to add to, in place."""

    def __init__(self, name: str, edges: tuple[float, ...]) -> None:
        self._name = name
        self._edges = edges
        self._array = np.asarray(edges)
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        if value == value:  # NaN is in no cell.
            self._counts[bisect.bisect_right(self._edges, value)] += 1
            if abs(value) < np.inf:
                self._sum += value

    def add_all(self, values: NDArray[np.float64]) -> None:
        cells = np.bincount(np.searchsorted(self._array, values, side="right"), minlength=len(self._counts))
        for cell in np.flatnonzero(cells):
            self._counts[cell] += int(cells[cell])
        self._sum += float(values.sum())

    def histogram(self) -> Histogram:
        return Histogram(self._name, self._edges, tuple(self._counts), self._sum)


class PredictionWindow:
    """Counts the predictions of one model version, from any thread.

    Args:
        model: The model's name.
        version: Its version.
        variant: ``fp32`` or ``int8``.
        engine: What computes it: ``onnx``.
        now_s: When it begins, Unix seconds.
    """

    def __init__(self, *, model: str, version: int, variant: str, engine: str, now_s: float) -> None:
        self._of = pb.Window(model=model, version=version, variant=variant, engine=engine)
        self._lock = threading.Lock()
        self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self._start_s = now_s
        self._counters: dict[str, int] = {}
        self._latency = _Tally("latency_us", LATENCY_US)
        self._confidence = _Tally("confidence", CONFIDENCE)
        self._input = _Tally("input", INPUT)
        self._input_mean = _Tally("input_mean", INPUT)

    def observe(
        self, latency_us: float, label: int, confidence: float, inputs: NDArray[np.generic] | None = None
    ) -> None:
        """Count one prediction.

        Args:
            latency_us: How long it took, microseconds.
            label: The class that was predicted.
            confidence: Its probability, in [0, 1].
            inputs: What it was made from, any shape; counted, not kept.
        """
        finite, odd = _sample(inputs)
        with self._lock:
            self._count("predictions")
            name = f"label.{label}"
            crowded = name not in self._counters and len(self._counters) >= MAX_LABELS
            self._count("label.other" if crowded else name)
            self._latency.add(latency_us)
            self._confidence.add(confidence)
            if odd:
                self._count("input_not_finite", odd)
            if finite.size:
                self._input.add_all(finite)
                self._input_mean.add(float(finite.mean()))

    def error(self) -> None:
        """Count one prediction that failed: its input broke the contract, or the engine did."""
        with self._lock:
            self._count("errors")

    def take(self, now_s: float) -> pb.Window | None:
        """Close the window and begin the next; None if nothing happened in it."""
        with self._lock:
            start_s, counters = self._start_s, self._counters
            tallies = (self._latency, self._confidence, self._input, self._input_mean)
            self._begin(now_s)
        if not counters:
            return None
        histograms = [tally.histogram() for tally in tallies]
        window = pb.Window(
            start_s=int(start_s),
            end_s=max(int(now_s), int(start_s)),
            counters=counters,
            histograms=[histogram.to_wire() for histogram in histograms if histogram.count],
        )
        window.MergeFrom(self._of)
        return window

    def _count(self, name: str, by: int = 1) -> None:
        self._counters[name] = self._counters.get(name, 0) + by


class Telemetry:
    """The windows of one process, and their way into the spool.

    Args:
        home: The enrolled device.
        spool: Where sealed batches wait.
        clock: Returns Unix time, seconds.
    """

    def __init__(self, home: DeviceHome, spool: Spool, *, clock: Callable[[], float]) -> None:
        self._home = home
        self._identity = home.identity
        self._spool = spool
        self._clock = clock
        self._windows: dict[tuple[str, int, str, str], PredictionWindow] = {}
        self._pending: list[pb.Window] = []
        self._lock = threading.Lock()

    def window(self, *, model: str, version: int, variant: str, engine: str) -> PredictionWindow:
        """Return the open window of a model version; the same one for the same names."""
        with self._lock:
            return self._windows.setdefault(
                (model, version, variant, engine),
                PredictionWindow(
                    model=model, version=version, variant=variant, engine=engine, now_s=self._clock()
                ),
            )

    def flush(self) -> int:
        """Close every window in which something happened, seal it and put it into the spool.

        Returns:
            How many batches were sealed.

        Raises:
            StorageError: The disk is full; the windows stay in memory for the next flush.
        """
        with self._lock:
            now_s = self._clock()
            closed = (window.take(now_s) for window in self._windows.values())
            self._pending += [window for window in closed if window is not None]
            del self._pending[:-MAX_PENDING]
            sealed = 0
            while self._pending:
                count = _fitting(self._pending)
                self._spool.append(self._seal(self._pending[:count], now_s))
                del self._pending[:count]
                sealed += 1
            return sealed

    def _seal(self, windows: list[pb.Window], now_s: float) -> Sealed:
        key = self._home.telemetry_seal_key()
        batch_id = new_batch_id()
        header = pb.BatchHeader(
            schema=SCHEMA,
            suite=key.suite,
            key_id=key.key_id,
            fleet_id=self._identity.fleet,
            device_id=self._identity.device,
            batch_id=batch_id,
            sequence=self._spool.next_sequence(),
            created_s=int(now_s),
        ).SerializeToString()
        return Sealed(batch_id, header, seal(key, header, pb.Batch(windows=windows).SerializeToString()))


def _sample(inputs: NDArray[np.generic] | None) -> tuple[NDArray[np.float64], int]:
    """Return the finite ones of at most ``SAMPLED_INPUTS`` values, and how many were not finite."""
    if inputs is None:
        return np.empty(0), 0
    flat = np.asarray(inputs).reshape(-1)
    step = -(-flat.size // SAMPLED_INPUTS) or 1
    values = flat[::step].astype(np.float64)
    finite = np.isfinite(values)
    if finite.all():
        return values, 0
    return values[finite], int(values.size - finite.sum())


def _fitting(windows: list[pb.Window]) -> int:
    """Return how many of the windows go into one batch: at least one."""
    size = 0
    for count, window in enumerate(windows):
        size += window.ByteSize() + 8
        if count and size > MAX_BATCH_BYTES:
            return count
    return len(windows)
