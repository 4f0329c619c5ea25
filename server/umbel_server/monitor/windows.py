"""What a device reports, read strictly: from an opened batch to rollups of one window each, and reviews."""

from __future__ import annotations

from dataclasses import dataclass

from umbel_proto.errors import UsageError
from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, ModelName, check_name
from umbel_proto.reviews import MAX_ANNOUNCED, EndedReview, WaitingReview
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.store.rollups import Rollup

HOUR_S = 3600
APPLICATION = ("", 0, "", "")
"""What the window of an application is of: no model."""
LATEST_S = 1 << 40  # Far in the future, and small enough for every column and every calendar.


@dataclass(frozen=True, slots=True)
class Report:
    """What an opened batch says.

    Args:
        windows: Its windows.
        waiting: Predictions that wait for a person.
        ended: Those that were announced before and wait no more.
    """

    windows: tuple[Rollup, ...]
    waiting: tuple[WaitingReview, ...] = ()
    ended: tuple[EndedReview, ...] = ()


def read_report(device: DeviceId, batch: pb.Batch) -> Report:
    """Return what an opened batch says.

    Args:
        device: Who sent it.
        batch: The batch, unpacked.

    Raises:
        UsageError: Too much of it, or what cannot be.
    """
    if max(len(batch.waiting_reviews), len(batch.ended_reviews)) > MAX_ANNOUNCED:
        raise UsageError(f"The batch has more than {MAX_ANNOUNCED} reviews.")
    return Report(
        tuple(_rollup(device, window) for window in batch.windows),
        tuple(map(WaitingReview.from_wire, batch.waiting_reviews)),
        tuple(map(EndedReview.from_wire, batch.ended_reviews)),
    )


def _rollup(device: DeviceId, window: pb.Window) -> Rollup:
    of = _of(window)
    if not window.start_s <= window.end_s < LATEST_S:
        raise UsageError(f"A window lasts from {window.start_s} to {window.end_s}.")
    histograms = {histogram.name: Histogram.from_wire(histogram) for histogram in window.histograms}
    if len(histograms) != len(window.histograms):
        raise UsageError("A window has two histograms of one name.")
    return Rollup(
        device=device,
        model=ModelName(of[0]),
        version=of[1],
        variant=of[2],
        engine=of[3],
        hour_s=window.start_s - window.start_s % HOUR_S,
        windows=1,
        until_s=window.end_s,
        counters={check_name(name, "counter"): count for name, count in sorted(window.counters.items())},
        histograms=histograms,
    )


def _of(window: pb.Window) -> tuple[str, int, str, str]:
    """Return what a window is of: model, version, variant and engine; empty for the application's own."""
    of = window.model, window.version, window.variant, window.engine
    if of == APPLICATION:
        return of
    if window.version < 1:
        raise UsageError("A window is of version 0 of its model.")
    return (
        check_name(window.model, "model"),
        window.version,
        check_name(window.variant, "variant"),
        check_name(window.engine, "engine"),
    )
