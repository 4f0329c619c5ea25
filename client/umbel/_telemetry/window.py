"""Windows: what is counted of predictions and of the application over a stretch of time.

A window holds no input, no output and no time of a single prediction, and what it says is of the same size after
a million predictions as after a hundred. A prediction only leaves a row of three numbers; every so often one
of them counts what lies there, and looks at its input.
"""

from __future__ import annotations

import bisect
import math
import operator
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from umbel._fork import Lock, renew_in_child
from umbel._telemetry.gauges import Rapl, resident_bytes
from umbel._telemetry.log import NO_LABEL, ROW, ROW_OF, Log
from umbel._telemetry.scope import JUDGED_RIGHT, JUDGED_WRONG, MAX_LABELS, NOTHING, Scope
from umbel_proto.errors import UsageError
from umbel_proto.histogram import AMOUNT, CONFIDENCE, INPUT, LATENCY_US, Histogram
from umbel_proto.ids import MAX_NAME, check_name
from umbel_proto.privacy.stated import LABELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from umbel_proto.wire import telemetry_pb2 as pb

SAMPLED_INPUTS = 500
"""Values of one input that are counted: of a larger one, evenly spaced values. Of more numpy lets other threads run
after each of its steps, and where eight predict, each time it waits for its turn among them."""
CLOSELY = 16
"""Inputs at the beginning of a window that are looked at one by one."""
ONE_IN = 251
"""After them, one input in so many: a prime, so that nothing an application repeats falls in step with it."""
ONE_IN_THIN = 1021
"""One input in so many once few predictions leave a row. To look at one takes numpy, of which the model has left nothing in
the processor's cache, up to a hundred microseconds."""
MAX_METRICS = 64
"""Names of the application's own that one process may count and observe."""
MAX_TIMES = 2**53
"""What a counter of the application's own may come to in one window: the sum over a thousand of them still fits the
store's 64 bits. One that no report can hold would end the report, and with it what models counted."""
MAX_AMOUNT = 1e100
"""The greatest amount of either sign: sums of those are finite, on the device and over a fleet."""
EACH = 1024
"""Predictions at the beginning of a window whose times and confidences are all counted; after them those of one in 8."""
_FULL = 4096
"""Predictions in a log that is counted, up to 96 KB: to count takes numpy as long for 16 rows as for 251."""


_OWN = "app."
"""Before every name of the application's, so that none is one of umbel's."""


def _nothing() -> None:
    pass


class Tally:
    """A histogram in the making: fast to add to, in place."""

    def __init__(self, name: str, edges: tuple[float, ...]) -> None:
        self._name = name
        self._edges = edges
        self._array = np.asarray(edges)
        self._counts = np.zeros(len(edges) + 1, np.int64)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Add a value. NaN is in no cell."""
        if value == value:
            self._counts[bisect.bisect_right(self._edges, value)] += 1
            if abs(value) < math.inf:
                self._sum += value

    def add_all(self, values: NDArray[np.float64]) -> float:
        """Add values, shape (n,), all finite, and return their sum."""
        # Methods, and not what numpy wraps around them in Python: a prediction waits for this once in a while, when
        # nothing of it is in the processor's cache.
        cells = self._array.searchsorted(values, "right")
        self._counts += np.bincount(cells, minlength=len(self._counts))
        total = float(np.add.reduce(values))
        self._sum += total
        return total

    def histogram(self) -> Histogram:
        """Return what was added."""
        return Histogram(self._name, self._edges, tuple(self._counts.tolist()), self._sum)


class PredictionWindow:
    """Counts the predictions of one model version, from any thread; none waits for another.

    Args:
        model: The model's name.
        version: Its version.
        variant: ``fp32`` or ``int8``.
        engine: What computes it: ``onnx``.
        now_s: When it begins, Unix seconds.
        wake: Is called where a forked process counts something for the first time.
    """

    def __init__(
        self,
        *,
        model: str,
        version: int,
        variant: str,
        engine: str,
        now_s: float,
        wake: Callable[[], None] = _nothing,
    ) -> None:
        self._wake = wake
        self._scope = NOTHING
        self._forked = False
        self._of = {"model": model, "version": version, "variant": variant, "engine": engine}
        self._turn = 0
        self._log = Log(self._settle)
        self._lock = Lock()
        self._begin(now_s)
        renew_in_child(self._renew)

    def _begin(self, now_s: float) -> None:
        self._start_s = now_s
        self._counters: dict[str, int] = {}
        self._latency = Tally("latency_us", LATENCY_US)
        self._confidence = Tally("confidence", CONFIDENCE)
        self._input = Tally("input", INPUT)
        self._input_mean = Tally("input_mean", INPUT)
        self._columns = self._next_columns()
        self._judged: dict[str, Tally] = {}
        self._looks = 0
        self._log.thin(False)
        self._log.due = ROW.itemsize

    @property
    def log(self) -> Log:
        """Where predictions are written down; another one in a forked process."""
        return self._log

    def observe(
        self,
        latency_ns: float,
        label: int | None,
        confidence: float | None,
        example: object = None,
    ) -> None:
        """Count one prediction.

        Args:
            latency_ns: How long it took, nanoseconds.
            label: The class that was predicted; None where the model answers with numbers.
            confidence: Its probability, in [0, 1]; None where there is none. It is then not counted.
            example: What it was made from, any shape; looked at once in a while, not kept.
        """
        log = self._log
        sure, given = math.nan if confidence is None else confidence, NO_LABEL if label is None else label
        log.rows.extend(log.row(latency_ns, sure, given))
        if len(log.rows) >= log.due:
            log.settle(example)

    def observe_batch(
        self,
        latency_ns: float,
        labels: Sequence[int | None],
        confidences: Sequence[float | None],
        batch: NDArray[np.generic],
    ) -> None:
        """Count the predictions of a batch.

        Args:
            latency_ns: Each one's share of the time it took, nanoseconds.
            labels: The class of each.
            confidences: The probability of each.
            batch: What they were made from, shape (n, *example).
        """
        log = self._log
        rows = np.empty(len(labels), ROW)
        rows["latency_ns"], rows["confidence"] = latency_ns, np.array(confidences, np.float64)
        rows["label"] = [NO_LABEL if label is None else label for label in labels]
        log.rows.extend(rows.tobytes())
        if len(log.rows) >= log.due:
            log.settle(batch[0])

    def mind(self, scope: Scope) -> None:
        """Do what a package asks, from the window that is open now on."""
        with self._lock:
            if scope == self._scope:
                return
            self._scope = scope
            self._turn = self._anywhere()
            self._columns = self._next_columns()

    def beside(self, other: PredictionWindow) -> None:
        """Count the columns that a window of the same version counts now: their edges are the same bytes in a batch."""
        with self._lock:
            self._turn = other._turn
            self._columns = self._next_columns()

    def _anywhere(self) -> int:
        """Return a turn by chance: a process that is over after one window has each column's turn as well."""
        return secrets.randbelow(max(len(self._scope.columns.groups), 1))

    def _next_columns(self) -> list[tuple[int, Tally]]:
        groups = self._scope.columns.groups
        group = groups[self._turn % len(groups)] if groups else ()
        return [(each.place, Tally(each.name, each.edges)) for each in group]

    def error(self) -> None:
        """Count one prediction that failed: its input broke the contract, or the engine did."""
        self.count("errors")

    def count(self, name: str, by: int = 1) -> None:
        """Count something that happens to few predictions. It may wait for a window that is being closed.

        Args:
            name: The counter: of a kind that the specification names, of few words.
            by: How often it happened.
        """
        with self._lock:
            self._count(name, by)

    def judged(self, *, agreed: bool, confidence: float | None) -> None:
        """Count a label that arrived after its prediction. It may wait for a window that is being closed.

        Args:
            agreed: Whether the model had given it.
            confidence: With which probability the model gave its own label; None where that is not known any more.
        """
        with self._lock:
            self._count("feedback")
            if agreed:
                self._count("feedback.agreed")
            if confidence is not None:
                name = JUDGED_RIGHT if agreed else JUDGED_WRONG
                self._judged.setdefault(name, Tally(name, CONFIDENCE)).add(confidence)

    def take(self, now_s: float) -> pb.Window | None:
        """Close the window and begin the next; None if nothing happened in it."""
        with self._lock:
            self._fold()
            start_s, counters = self._start_s, self._counters
            own = (*(each for _, each in self._columns), *self._judged.values())
            tallies = (self._latency, self._confidence, self._input, self._input_mean, *own)
            # Not by the clock: what happens every so many windows must not meet the same columns each time.
            self._turn += self._looks > 0
            self._begin(now_s)
        if not counters:
            return None
        return _closed(self._of, start_s, now_s, counters, tallies, self._scope)

    def _renew(self) -> None:
        """In a forked process: what the parent predicted it reports itself."""
        self._turn = self._anywhere()
        self._log = Log(self._settle)
        self._begin(self._start_s)
        self._forked = True

    def _settle(self, example: object) -> None:
        # Who finds it locked goes on: the next prediction counts this one.
        if not self._lock.acquire(blocking=False):
            return
        try:
            log = self._log
            alone = len(log.labels)
            waiting = len(log.rows) // ROW.itemsize + alone
            log.thin(self._counters.get("predictions", 0) + waiting >= EACH)
            if waiting >= _FULL:
                self._fold()
            if example is not None:
                self._look(example)
            self._looks += 1
            # What predicts may leave all rows all the same.
            rows = 1 if self._looks < CLOSELY else ONE_IN_THIN // ROW_OF if alone else ONE_IN
            log.due = len(log.rows) + ROW.itemsize * rows
        finally:
            self._lock.release()
        if self._forked:
            self._forked = False
            self._wake()

    def _fold(self) -> None:
        taken, alone = self._log.taken()
        rows = np.frombuffer(taken, ROW)
        if not (rows.size or alone):
            return
        latencies_us, confidences = rows["latency_ns"] / 1000, rows["confidence"]
        labels = np.concatenate([rows["label"], np.frombuffer(alone, np.uint8)])
        self._count("predictions", labels.size)
        for label, often in zip(*np.unique(labels[labels != NO_LABEL], return_counts=True), strict=True):
            name = f"label.{label}"
            crowded = name not in self._counters and len(self._counters) >= MAX_LABELS
            if LABELS in self._scope.epsilon:
                crowded = label >= MAX_LABELS  # Whatever came before: each label has one cell.
            self._count("label.other" if crowded else name, int(often))
        self._latency.add_all(latencies_us)
        self._confidence.add_all(confidences[~np.isnan(confidences)])

    def _look(self, example: object) -> None:
        finite, odd = _sample(example)
        self._count("input_sampled")
        if odd:
            self._count("input_not_finite", odd)
        if self._columns:
            values = self._scope.columns.values(example)
            for place, tally in self._columns:
                tally.add(float(values[place]))
        elif finite.size:
            self._input_mean.add(self._input.add_all(finite) / finite.size)

    def _count(self, name: str, by: int = 1) -> None:
        self._counters[name] = self._counters.get(name, 0) + by


class ApplicationWindow:
    """Counts what an application says of itself, whatever model it asked, from any thread.

    Args:
        now_s: When it begins, Unix seconds.
        wake: Is called where a forked process counts something for the first time.
    """

    def __init__(self, *, now_s: float, wake: Callable[[], None] = _nothing) -> None:
        self._wake = wake
        self._forked = False
        self._names: set[str] = set()
        self._energy = Rapl()
        self._lock = Lock()
        self._begin(now_s)
        renew_in_child(self._renew)

    def _begin(self, now_s: float) -> None:
        self._start_s = now_s
        self._counters: dict[str, int] = {}
        self._tallies: dict[str, Tally] = {}

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter of the application's own.

        Raises:
            UsageError: The name is not one, is one too many, ``by`` is not a whole number >= 1, or the count of this
                window would be over ``MAX_TIMES``.
        """
        try:
            times = 0 if isinstance(by, bool) else operator.index(by)  # A whole number of numpy's is one too.
        except TypeError:
            times = 0
        if times < 1:
            raise UsageError(f"Metric {name!r} is counted by {by!r}: give a whole number of 1 or more.")
        with self._lock:
            key = self._known(name)
            total = self._counters.get(key, 0) + times
            if total > MAX_TIMES:
                raise UsageError(
                    f"Metric {name!r} is counted more than 2**53 times in one report: count in a larger unit."
                )
            self._counters[key] = total
        self._counted()

    def observe(self, name: str, value: float) -> None:
        """Add to a histogram of the application's own.

        Raises:
            UsageError: The name is not one, or is one too many, or the value is not a finite number within
                ``MAX_AMOUNT``.
        """
        try:
            legal = math.fabs(value) <= MAX_AMOUNT
        except (TypeError, ValueError, OverflowError):
            legal = False
        if not legal:
            raise UsageError(f"Metric {name!r} is no amount: give a finite number in -1e100..1e100.")
        with self._lock:
            key = self._known(name)
            self._tallies.setdefault(key, Tally(key, AMOUNT)).add(float(value))
        self._counted()

    def add(self, name: str, by: int) -> None:
        """Add to a counter of the device's own, of those that the specification names."""
        with self._lock:
            self._counters[name] = self._counters.get(name, 0) + by
        self._counted()

    def take(
        self,
        now_s: float,
        *,
        beside: bool,
        waiting: int = 0,
        oldest_s: float | None = None,
        sealed_bytes: int = 0,
    ) -> pb.Window | None:
        """Close the window and begin the next; None if there is nothing to say.

        Args:
            now_s: The time, Unix seconds.
            beside: Whether other windows have something to say. Only beside them, or beside what the application
                said itself, the process's memory, the processor's energy and the spool are worth a report.
            waiting: Batches that wait in the spool.
            oldest_s: When the one that has waited longest was sealed, Unix seconds; None: none waits.
            sealed_bytes: Of the batches that this process sealed since the last report.
        """
        with self._lock:
            start_s, counters, tallies = self._start_s, self._counters, self._tallies
            self._begin(now_s)
            spent_uj = self._energy.spent_uj()
        if not (beside or counters or tallies):
            return None
        if spent_uj is not None:
            counters["energy_rapl_uj"] = spent_uj
        if (held := resident_bytes()) is not None:
            tallies["memory_mib"] = Tally("memory_mib", AMOUNT)
            tallies["memory_mib"].add(held / 2**20)
        if waiting:
            counters["spool.waiting"] = waiting
        if oldest_s is not None:
            # A clock may have been set since.
            tallies["spool_age_s"] = Tally("spool_age_s", AMOUNT)
            tallies["spool_age_s"].add(max(now_s - oldest_s, 0.0))
        if sealed_bytes:
            counters["report.bytes"] = sealed_bytes
        return _closed({}, start_s, now_s, counters, tallies.values())

    def _renew(self) -> None:
        """In a forked process: what the parent counted it reports itself."""
        self._begin(self._start_s)
        self._forked = True

    def _counted(self) -> None:
        if self._forked:
            self._forked = False
            self._wake()

    def _known(self, name: str) -> str:
        key, given = f"{_OWN}{name}", name
        if not isinstance(given, str) or name not in self._names:
            check_name(name, "metric")
            if len(key) > MAX_NAME:
                raise UsageError(
                    f"Metric {name!r} has {len(name)} characters: use {MAX_NAME - len(_OWN)} at most."
                )
            if len(self._names) >= MAX_METRICS:
                raise UsageError(
                    f"Metric {name!r} is one more than the {MAX_METRICS} that an application may have: "
                    "count fewer things, and none by a name that is made up as it runs."
                )
            self._names.add(name)
        return key


def _closed(
    of: Mapping[str, Any],
    start_s: float,
    now_s: float,
    counters: dict[str, int],
    tallies: Iterable[Tally],
    scope: Scope = NOTHING,
) -> pb.Window:
    # An application's first prediction does not wait for it.
    from umbel_proto.wire import telemetry_pb2 as pb

    histograms = [tally.histogram() for tally in tallies]
    if scope.epsilon:
        from umbel._telemetry.randomize import randomized

        counters, histograms = randomized(counters, histograms, scope)
    return pb.Window(
        start_s=max(int(start_s), 0),
        end_s=max(int(now_s), int(start_s), 0),
        counters=counters,
        histograms=[histogram.to_wire() for histogram in histograms if histogram.count],
        **of,
    )


def _sample(example: object) -> tuple[NDArray[np.float64], int]:
    """Return the finite ones of at most ``SAMPLED_INPUTS`` values, and how many were not finite."""
    array = np.asarray(example)
    step = -(-array.size // SAMPLED_INPUTS) or 1
    # Of a series with several channels it meets each of them alike.
    while step > 1 and array.ndim > 1 and math.gcd(step, array.shape[-1]) > 1:
        step += 1
    values = array.reshape(-1)[::step].astype(np.float64)
    finite = np.isfinite(values)
    if 0 not in finite.tobytes():
        return values, 0
    return values[finite], int(values.size - finite.sum())
