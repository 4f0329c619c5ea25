"""What a device says of its predictions: counts and histograms of a stretch of time, sealed.

A window holds no input, no output and no time of a single prediction. It lives in memory until it
closes; then it is sealed to the fleet's key and only so touches the disk. A process that is
killed loses its open windows: the last minute, or as ``_rhythm`` says while the gateway does not answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from umbel._fork import Lock, renew_in_child
from umbel._home.directory import DeviceHome
from umbel._telemetry.rhythm import elapsed_s
from umbel._telemetry.scope import NOTHING, Scope
from umbel._telemetry.spool import Sealed, Spool, new_batch_id
from umbel._telemetry.window import ApplicationWindow, PredictionWindow

if TYPE_CHECKING:
    from umbel._predict.listeners import Window
    from umbel._telemetry.comparison import Comparison, ComparisonWindow
    from umbel_proto.wire import telemetry_pb2 as pb

MAX_BATCH_BYTES = 128 * 1024
LATEST_S = (1 << 40) - 1
"""Time beyond which nobody takes a window, whatever a device's clock says."""


class Telemetry:
    """The windows of one process, and their way into the spool; ``device.telemetry`` of an application.

    Args:
        home: The enrolled device.
        spool: Where sealed batches wait.
        clock: Returns Unix time, seconds.
        elapsed: Returns seconds since some moment; no change of the clock moves it.
        wake: Is called where a forked process counts something for the first time.
    """

    def __init__(
        self,
        home: DeviceHome,
        spool: Spool,
        *,
        clock: Callable[[], float],
        elapsed: Callable[[], float] = elapsed_s,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._home = home
        self._identity = home.identity
        self._spool = spool
        self._clock = clock
        self._wake = wake
        self._windows: dict[tuple[str, int, str, str], PredictionWindow] = {}
        self._comparisons: dict[tuple[str, int, str, str], ComparisonWindow] = {}
        self._scopes: dict[tuple[str, int], Scope] = {}
        self._application = ApplicationWindow(now_s=clock(), wake=wake)
        self._pending: list[pb.Window] = []
        self._sealed_bytes = 0
        self._elapsed = elapsed
        self._taken_s = elapsed()
        self._lock = Lock()
        renew_in_child(self._renew)

    def __repr__(self) -> str:
        return f"Telemetry({self._identity.device!r})"

    def count(self, name: str, by: int = 1) -> None:
        """Count something that happened in the application: ``count("purchase")``.

        Sums over devices are all that is ever shown of it. Up to 64 names for counts and amounts together.

        Args:
            name: 1 to 59 of ``a-z 0-9 . _ -``, beginning with a letter or digit. Never a user's word.
            by: How often it happened, >= 1; at most 2**53 in one report.

        Raises:
            UsageError: It is no such name, one too many, or ``by`` is no such number.
        """
        self._application.count(name, by)

    def observe(self, name: str, value: float) -> None:
        """Add an amount to a histogram of the application's own: ``observe("seconds_saved", 3.2)``.

        Only the cell it falls into is kept, of edges 78 % apart from 0.001 to a billion of either sign, and its
        share in the sum.

        Args:
            name: As for ``count``, with the unit: ``seconds_saved``.
            value: The amount, a finite number in -1e100..1e100.

        Raises:
            UsageError: It is no such name, one too many, or no such number.
        """
        self._application.observe(name, value)

    def _add(self, name: str, by: int) -> None:
        """Count something that happened to the device, whatever the application does."""
        self._application.add(name, by)

    def window(
        self, *, model: str, version: int, variant: str, engine: str, scope: Scope | None = None
    ) -> Window:
        """Return the open window of a model version; the same one for the same names.

        Args:
            model: The model.
            version: Its version.
            variant: What runs, or ``none``.
            engine: What runs it, or ``none``.
            scope: What the package asks of all windows of this version, from now on; None where the caller does not
                know it: what was asked before holds.
        """
        with self._lock:
            if scope is not None:
                self._scopes[model, version] = scope
                for (name, number, *_), each in self._windows.items():
                    if (name, number) == (model, version):
                        each.mind(scope)
            of = (model, version, variant, engine)
            if (window := self._windows.get(of)) is None:
                others = [
                    each for key, each in self._windows.items() if key[:2] == of[:2] and key[3] != "none"
                ]
                window = self._windows[of] = PredictionWindow(
                    model=model,
                    version=version,
                    variant=variant,
                    engine=engine,
                    now_s=self._clock(),
                    wake=self._wake,
                )
                window.mind(self._scopes.get((model, version), NOTHING))
                if others:
                    window.beside(others[-1])
            return window

    def comparison(self, *, model: str, version: int, variant: str, engine: str, scope: Scope) -> Comparison:
        """Return the open window of a version that is asked beside the one that answers; the same one for the same names.

        Args:
            model: The model.
            version: The version that is asked.
            variant: What runs of it.
            engine: What runs it.
            scope: What is hidden of what both versions say.
        """
        # With a cipher for what it hides: few devices compare, and none does before its first prediction.
        from umbel._telemetry.comparison import ComparisonWindow

        with self._lock:
            of = (model, version, variant, engine)
            if of not in self._comparisons:
                self._comparisons[of] = ComparisonWindow(
                    model=model,
                    version=version,
                    variant=variant,
                    engine=engine,
                    scope=scope,
                    now_s=self._clock(),
                )
            return self._comparisons[of]

    def flush(self) -> int:
        """Close every window in which something happened, seal it and put it into the spool.

        Returns:
            How many batches were sealed.

        Raises:
            StorageError: The disk is full. What is closed waits in memory for the next flush; until it is on the
                disk, the windows that follow stay open and count on.
        """
        with self._lock:
            now_s = self._clock()
            sealed = self._drain(now_s)
            waiting, sealed_bytes = self._spool.depth().batches, self._sealed_bytes
            oldest_s = self._spool.oldest_made_s() if waiting else None
            taken = [window.take(now_s) for window in self._windows.values()]
            taken += [window.take(now_s) for window in self._comparisons.values()]
            closed = [window for window in taken if window is not None]
            own = self._application.take(
                now_s, beside=bool(closed), waiting=waiting, oldest_s=oldest_s, sealed_bytes=sealed_bytes
            )
            if own is not None:
                closed.append(own)
                self._sealed_bytes -= sealed_bytes
            before_s, self._taken_s = self._taken_s, self._elapsed()
            for window in closed:
                _set_times(window, now_s, self._taken_s - before_s)
            self._pending = closed
            return sealed + self._drain(now_s)

    def _renew(self) -> None:
        """In a forked process: what the parent holds it reports itself."""
        self._pending = []
        self._sealed_bytes = 0

    def _report(self, batch: pb.Batch) -> None:
        """Seal what is no window, and put it into the spool.

        Raises:
            StorageError: The disk is full: it is not there.
        """
        with self._lock:
            sealed = self._seal(batch, self._clock())
            self._spool.append(sealed)
            self._sealed_bytes += sealed.size

    def _drain(self, now_s: float) -> int:
        sealed = 0
        while self._pending:
            count = _fitting(self._pending)
            batch = self._seal(_batch(self._pending[:count]), now_s)
            self._spool.append(batch)
            self._sealed_bytes += batch.size
            del self._pending[:count]
            sealed += 1
        return sealed

    def _seal(self, batch: pb.Batch, now_s: float) -> Sealed:
        # The first prediction does not wait for what the first report needs.
        from umbel_proto.report import PACKED, pack
        from umbel_proto.seal import seal
        from umbel_proto.wire import telemetry_pb2 as pb

        key = self._home.telemetry_seal_key()
        batch_id = new_batch_id()
        header = pb.BatchHeader(
            schema=PACKED,
            suite=key.suite,
            key_id=key.key_id,
            fleet_id=self._identity.fleet,
            device_id=self._identity.device,
            batch_id=batch_id,
            sequence=self._spool.next_sequence(),
            created_s=_seconds(now_s),
        ).SerializeToString()
        return Sealed(batch_id, header, seal(key, header, pack(batch)))


def _batch(windows: list[pb.Window]) -> pb.Batch:
    from umbel_proto.wire import telemetry_pb2 as pb

    return pb.Batch(windows=windows)


def _set_times(window: pb.Window, now_s: float, open_s: float) -> None:
    """Let a window end now, and begin no longer ago than it was open: the clock may have been set meanwhile.

    Args:
        window: The window, with its beginning by the clock of then.
        now_s: The time now, Unix seconds.
        open_s: How long it was open at most, by no clock that is set.
    """
    window.end_s = _seconds(now_s)
    earliest_s = _seconds(now_s - math.ceil(open_s))
    if not earliest_s <= window.start_s <= window.end_s:
        window.start_s = earliest_s


def _seconds(time_s: float) -> int:
    """Return a clock's time as windows carry it: a clock may stand before 1970, or anywhere."""
    return min(max(int(time_s), 0), LATEST_S)


def _fitting(windows: list[pb.Window]) -> int:
    """Return how many of the windows go into one batch: at least one."""
    size = 0
    for count, window in enumerate(windows):
        size += window.ByteSize() + 8
        if count and size > MAX_BATCH_BYTES:
            return count
    return len(windows)
