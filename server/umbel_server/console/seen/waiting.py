"""Reports that wait on a device until the gateway has them: how many, and for how long, as the device itself tells."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from umbel_proto.ids import DeviceId
from umbel_server.store.device_days import DAY_S, DeviceSum
from umbel_server.store.store import Store

BATCHES, AGE = "spool.waiting", "spool_age_s"
"""Names of its counter and its histogram: docs/spec/telemetry.md, 1.2."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waited on a device whenever it closed a window.

    Args:
        windows: How many windows say it.
        mean: Batches that waited, over the windows.
        newest_day_s: Start of the newest day that is told of, Unix seconds by the device's clock.
        newest_mean: Batches that waited, over that day's windows.
        longest: Between which lengths, seconds, the longest wait of the oldest batch lies; of the second None: it has
            no end. None: nothing waited, or the device does not tell.
    """

    windows: int
    mean: float
    newest_day_s: int
    newest_mean: float
    longest: tuple[float, float | None] | None


def waiting_of(store: Store, device: DeviceId, *, since_s: float) -> Waiting | None:
    """Return what waited on a device; None: it told nothing of itself.

    Args:
        store: The store.
        device: The device.
        since_s: From when on, Unix seconds.
    """
    days = [each for each in store.device_days.days(device, since_s=since_s, wanted=(AGE,)) if not each.model]
    windows = sum(each.windows for each in days)
    if not windows:
        return None
    newest = max(days, key=lambda each: each.since_s)
    spans = [span for each in days if (span := _longest(each)) is not None]
    return Waiting(
        windows=windows,
        mean=sum(each.counters.get(BATCHES, 0) for each in days) / windows,
        newest_day_s=newest.since_s,
        newest_mean=newest.counters.get(BATCHES, 0) / newest.windows,
        longest=max(spans, key=lambda span: span[0]) if spans else None,
    )


def waiting_lately(store: Store, devices: Collection[DeviceId]) -> dict[DeviceId, float]:
    """Return how many batches waited on devices, a page of them, on average when a window closed since yesterday.

    Who told nothing of itself since then is not among them.
    """
    since_s = store.clock() // DAY_S * DAY_S - DAY_S
    return {
        each.device: each.counters.get(BATCHES, 0) / each.windows
        for each in store.device_days.totals(devices, since_s=since_s, wanted=(), model="")
        if each.windows
    }


def _longest(day: DeviceSum) -> tuple[float, float | None] | None:
    """Return the highest cell of a day's waits that is not empty."""
    found: tuple[float, float | None] | None = None
    for shape in day.histograms:
        if shape.name != AGE:
            continue
        for place, count in enumerate(shape.counts):
            if count:
                low = max(shape.edges[place - 1], 0.0) if place else 0.0
                high = shape.edges[place] if place < len(shape.edges) else None
                found = max(found, (low, high), key=lambda span: span[0]) if found else (low, high)
    return found
