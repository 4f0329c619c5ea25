"""How devices run a model: how fast, how often it fails, what it costs, and what comes to an end.

Every figure of cost names its method. What no device tells is not made up, as what it drew from a battery.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from umbel_proto.histogram import MAX_COUNT
from umbel_server.monitor.rates import Rate, rate
from umbel_server.monitor.report import ERRORS, FELL_BACK, LATENCY, PREDICTIONS
from umbel_server.monitor.sample import Sample, Shares
from umbel_server.store.devices import Device
from umbel_server.store.reports import Report, histograms

ENERGY, BYTES, SAVED = "energy_rapl_uj", "delivery.bytes", "delivery.saved_bytes"
TRAININGS, TRAINING_ENERGY = "round.trainings", "round.energy_rapl_uj"
RAPL = "RAPL: the processor's own counters, all processes of the device; devices without them are left out"
MEMORY_MIB = "memory_mib"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_ODD, _NOT_ODD, _MOST_BYTES = 1000.0, 1e6, 1 << 50
_MOST_UJ = 10**15
"""More than a device can have spent between two windows: a kilowatt for eleven days."""
_MOST_TRAININGS = 10**6
"""More than a device can have done between two windows."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a thousand predictions cost, on the devices that tell.

    Args:
        joules: Per thousand predictions.
        devices: Of how many devices.
        predictions: Of how many predictions.
        method: How it was measured.
    """

    joules: float
    devices: int
    predictions: int
    method: str = RAPL


@dataclass(frozen=True, slots=True)
class Training:
    """What a device's part in a round costs, on the devices that tell; of all models.

    Args:
        joules: Of one training: the median device's mean.
        devices: Of how many devices.
        trainings: Of how many trainings.
        method: How it was measured.
    """

    joules: float
    devices: int
    trainings: int
    method: str = RAPL


@dataclass(frozen=True, slots=True)
class Ending:
    """Something that ends.

    Args:
        what: What.
        ends_s: When, Unix seconds.
    """

    what: str
    ends_s: float


@dataclass(frozen=True, slots=True)
class Operations:
    """How devices run a model.

    Args:
        devices: How many reported.
        predictions: How many were made; without what the odd ones told.
        odd: Devices that told of a thousand times as many predictions as usual ones, or of more than there can be: no
            sum has them.
        errors: How many inputs were refused or failed, of all that were asked.
        latency_us: Quantiles of a prediction's time, microseconds; none were told: empty.
        memory_mib: The same of the memory that processes hold.
        gave_up: Devices on which this version failed, and which fell back.
        energy: What it costs; None: no device tells.
        delivered_bytes: Of packages and deltas that arrived, all models.
        saved_bytes: That deltas saved.
        waiting: Sealed batches that wait for the opener.
        rejected: Batches that the opener refused.
        expiring: Devices whose certificate ends within a week, those that can still renew it.
        expired: Devices whose certificate has ended.
        endings: The service's own certificates and signed metadata, the first to end first.
        training: What a device's part in a round costs; None: no device tells.
    """

    devices: int
    predictions: int
    odd: tuple[str, ...]
    errors: Rate | None
    latency_us: Mapping[str, float]
    memory_mib: Mapping[str, float]
    gave_up: tuple[str, ...]
    energy: Cost | None
    delivered_bytes: int
    saved_bytes: int
    waiting: int
    rejected: int
    expiring: int
    expired: int
    endings: tuple[Ending, ...]
    training: Training | None = None


def operations(
    reports: Sequence[Report],
    own: Sequence[Report],
    *,
    devices: Sequence[Device],
    waiting: int,
    rejected: int,
    endings: Sequence[Ending],
    now_s: float,
) -> Operations:
    """Return how devices run a model.

    Args:
        reports: Of the model, one of each device.
        own: Of applications and devices themselves, one of each.
        devices: The fleet's devices.
        waiting: Sealed batches that wait.
        rejected: Batches that were refused.
        endings: What of the service ends.
        now_s: The time, Unix seconds.
    """
    active = [device for device in devices if device.active]
    odd = _odd(reports, own)
    reports = [each for each in reports if each.device not in odd]
    own = [each for each in own if each.device not in odd]
    return Operations(
        devices=sum(1 for each in reports if each.counters.get(PREDICTIONS) or each.counters.get(ERRORS)),
        predictions=_sum(reports, PREDICTIONS),
        odd=tuple(sorted(odd)),
        errors=rate(
            (
                each.counters.get(ERRORS, 0),
                min(each.counters.get(ERRORS, 0) + each.counters.get(PREDICTIONS, 0), MAX_COUNT),
            )
            for each in reports
        ),
        latency_us=quantiles(reports, LATENCY),
        memory_mib=quantiles(own, MEMORY_MIB),
        gave_up=tuple(each.device for each in reports if each.counters.get(FELL_BACK)),
        energy=energy(reports, own),
        delivered_bytes=_sum(own, BYTES),
        saved_bytes=_sum(own, SAVED),
        waiting=waiting,
        rejected=rejected,
        expiring=sum(now_s <= each.certificate_not_after_s < now_s + 7 * 86400 for each in active),
        expired=sum(each.certificate_not_after_s < now_s for each in active),
        endings=tuple(sorted(endings, key=lambda each: each.ends_s)),
        training=training(own),
    )


def quantiles(
    reports: Sequence[Report], name: str, wanted: Mapping[str, float] = QUANTILES
) -> dict[str, float]:
    """Return quantiles of a histogram over devices, none of which counts for more than a few; empty: none told.

    Within a cell values are taken as evenly spread; in the outer cells the answer is the nearest edge.

    Args:
        reports: What devices told.
        name: The histogram's name.
        wanted: Which quantiles, in 0..1, by name.
    """
    told = histograms(reports, name)
    if not any(each.count for each in told):
        return {}
    sample = Sample.of_devices(told)
    gain, noise = sample.response()
    shares = np.maximum((sample.told - noise) / gain, 0.0)
    return {label: _quantile(shares / shares.sum(), told[0].edges, q) for label, q in wanted.items()}


def energy(reports: Sequence[Report], own: Sequence[Report]) -> Cost | None:
    """Return what a thousand predictions cost in energy, on devices that tell; None: none does.

    The whole device's energy is set against one model's predictions: an upper bound of what the model needs.
    """
    spent = {each.device: uj for each in own if 0 < (uj := each.counters.get(ENERGY, 0)) < _MOST_UJ}
    made = {
        each.device: each.counters.get(PREDICTIONS, 0)
        for each in reports
        if each.device in spent and each.counters.get(PREDICTIONS, 0)
    }
    if not made:
        return None
    # The median device: one that tells nonsense is not the fleet's bill.
    each_j = np.array([spent[device] / 1e6 / (count / 1000) for device, count in made.items()])
    return Cost(float(np.median(each_j)), len(made), sum(made.values()))


def training(own: Sequence[Report]) -> Training | None:
    """Return what a device's part in a round costs in energy, on devices that tell; None: none does.

    The whole device's energy while it trains is counted: an upper bound of what the training needs.
    """
    told = [
        (uj, count)
        for each in own
        if 0 < (uj := each.counters.get(TRAINING_ENERGY, 0)) < _MOST_UJ
        and 0 < (count := each.counters.get(TRAININGS, 0)) <= _MOST_TRAININGS
    ]
    if not told:
        return None
    # The median device, as for predictions.
    joules = float(np.median([uj / 1e6 / count for uj, count in told]))
    return Training(joules, len(told), sum(count for _, count in told))


def _odd(reports: Sequence[Report], own: Sequence[Report]) -> frozenset[str]:
    """Return devices whose counts are not to be believed."""
    made = {each.device: each.counters.get(PREDICTIONS, 0) for each in reports}
    usual = float(np.median([count for count in made.values() if count] or [0]))
    most = max(_ODD * usual, _NOT_ODD)
    return frozenset(
        (
            *(device for device, count in made.items() if count > most),
            *(
                each.device
                for each in own
                if max(each.counters.get(BYTES, 0), each.counters.get(SAVED, 0)) > _MOST_BYTES
            ),
        )
    )


def _quantile(shares: Shares, edges: Sequence[float], q: float) -> float:
    below = np.concatenate(([0.0], np.cumsum(shares)))
    cell = max(bisect.bisect_left(below.tolist(), q) - 1, 0)
    if cell == 0 or cell >= len(edges):
        return float(edges[0] if cell == 0 else edges[-1])
    low, high = edges[cell - 1], edges[cell]
    return float(low + (high - low) * (q - below[cell]) / shares[cell])


def _sum(reports: Sequence[Report], name: str) -> int:
    return min(sum(each.counters.get(name, 0) for each in reports), MAX_COUNT)
