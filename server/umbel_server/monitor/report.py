"""What an operator reads: who is in the fleet, and what the devices reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.store.cohorts import CohortSum
from umbel_server.store.device_days import DeviceSum
from umbel_server.store.devices import Device
from umbel_server.store.store import Store
from umbel_server.store.wanted import ONLINE_S as ONLINE_S
from umbel_server.store.wanted import STALE_S as STALE_S
from umbel_server.store.wanted import Status as Status

PREDICTIONS, ERRORS, LABEL, FELL_BACK = "predictions", "errors", "label.", "model.fell_back"
LATENCY, CONFIDENCE = "latency_us", "confidence"
COLUMN = "column."
LABELS = "label"
"""The histogram of labels that are randomized."""
FOREVER_S = 1 << 62
OWN_LABELS = 1000
"""Its cells but the last one, of a model with more classes."""


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """A device as an operator sees it.

    Args:
        device: The device.
        status: ``online`` if it called within two minutes, ``stale`` within a day, else ``offline``, or ``never seen``
            if it never called since it enrolled; but ``quarantined`` and ``revoked`` first.
        models: The newest version of each model that it reported.
        rounds: Rounds whose sum has it.
        rounds_missed: Rounds it took part in without getting into the sum.
    """

    device: Device
    status: Status
    models: Mapping[ModelName, int]
    rounds: int
    rounds_missed: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        device = self.device
        return {
            "id": device.id,
            "status": self.status,
            "enrolled_s": device.enrolled_s,
            "last_seen_s": device.last_seen_s,
            "certificate_not_after_s": device.certificate_not_after_s,
            # Text: a JSON number of 64 bits loses digits in many readers.
            "node_id": None if device.node_id is None else str(device.node_id),
            "models": dict(self.models),
            "rounds": self.rounds,
            "rounds_missed": self.rounds_missed,
        }


@dataclass(frozen=True, slots=True)
class ModelLine:
    """What a device reported about a model, summed over time.

    Args:
        model: The model.
        version: Its version.
        variant: ``fp32`` or ``int8``.
        engine: ``onnx`` or ``tflite``.
        until_s: Latest end of a window, Unix seconds by the device's clock.
        predictions: How many were made.
        errors: How many failed.
        fell_back: How often the device gave it up, because it failed there: it does not run it.
        labels: Predictions by label; none where they are randomized: then they are histogram ``label``.
        histograms: All that was reported of it, by name.
    """

    model: ModelName
    version: int
    variant: str
    engine: str
    until_s: int
    predictions: int
    errors: int
    fell_back: int
    labels: Mapping[str, int]
    histograms: Mapping[str, Histogram]

    @property
    def latency_us(self) -> Histogram | None:
        """Latencies, microseconds; None if none was reported."""
        return self.histograms.get(LATENCY)

    @property
    def confidence(self) -> Histogram | None:
        """Confidences; None if none was reported."""
        return self.histograms.get(CONFIDENCE)

    @property
    def columns(self) -> Mapping[str, Histogram]:
        """Values of the input, by column; none where the contract names no columns."""
        return {
            name.removeprefix(COLUMN): each
            for name, each in self.histograms.items()
            if name.startswith(COLUMN)
        }

    @property
    def randomized(self) -> Mapping[str, Histogram]:
        """Those whose counts are randomized, by name, columns among them."""
        return {name: each for name, each in self.histograms.items() if each.epsilon is not None}


@dataclass(frozen=True, slots=True)
class TelemetryLine:
    """What a device reported.

    Args:
        device: The device.
        opened: Batches in the sums.
        sealed: Batches that wait for the opener.
        rejected: Batches that the opener refused.
        last_received_s: When the newest batch arrived, Unix seconds; None if there is none.
        models: Its reports by model, version, variant and engine.
        counters: What the application counted, and the device beside it.
        amounts: What they observed.
    """

    device: DeviceId
    opened: int
    sealed: int
    rejected: int
    last_received_s: float | None
    models: tuple[ModelLine, ...]
    counters: Mapping[str, int]
    amounts: Mapping[str, Histogram]

    @property
    def predictions(self) -> int:
        """How many predictions the device reported."""
        return sum(line.predictions for line in self.models)


def devices(store: Store, page: Sequence[Device], *, now_s: float) -> tuple[DeviceLine, ...]:
    """Return devices, a page of them, with what they reported and took part in."""
    names = [device.id for device in page]
    models: dict[DeviceId, dict[ModelName, int]] = {}
    for told in store.device_days.totals(names, wanted=()):
        # The application's own, or a version that failed there.
        if not told.model or FELL_BACK in told.counters:
            continue
        newest = models.setdefault(told.device, {})
        newest[told.model] = max(told.version, newest.get(told.model, 0))
    summed: dict[DeviceId, int] = {}
    missed: dict[DeviceId, int] = {}
    for line in store.runs.ledger(names):
        summed[line.device] = summed.get(line.device, 0) + line.summed
        missed[line.device] = missed.get(line.device, 0) + line.charged + line.dropped
    return tuple(
        DeviceLine(
            device,
            status_of(device, now_s),
            models.get(device.id, {}),
            summed.get(device.id, 0),
            missed.get(device.id, 0),
        )
        for device in page
    )


def telemetry(store: Store, page: Sequence[Device], *, since_s: float = 0) -> tuple[TelemetryLine, ...]:
    """Return what devices, a page of them, reported.

    Args:
        store: The store.
        page: The devices.
        since_s: Of which days: those that began since, Unix seconds.
    """
    names = [device.id for device in page]
    reports: dict[DeviceId, list[DeviceSum]] = {}
    for told in store.device_days.totals(names, since_s=since_s):
        reports.setdefault(told.device, []).append(told)
    deliveries = store.delivered.of(names)
    lines = []
    for name in names:
        own: dict[str, Histogram] = {}
        counters: dict[str, int] = {}
        for told in reports.get(name, ()):
            if not told.model:
                own |= shapes_of(told)
                counters |= told.counters
        models = tuple(_model_line(told) for told in reports.get(name, ()) if told.model)
        delivery = deliveries.get(name)
        if delivery is None:
            lines.append(TelemetryLine(name, 0, 0, 0, None, models, counters, own))
            continue
        counts = (delivery.opened, delivery.sealed, delivery.rejected)
        lines.append(TelemetryLine(name, *counts, delivery.last_received_s, models, counters, own))
    return tuple(lines)


def together(store: Store, *, since_s: float = 0) -> tuple[ModelLine, ...]:
    """Return what all devices of the fleet reported of each model that answered, summed over them by cohorts' days.

    Args:
        store: The store.
        since_s: Of which days: those that began since, Unix seconds.
    """
    models = sorted({model for model, _ in store.cohorts.models(since_s=since_s)})
    return lines_of(
        told
        for model in models
        for told in store.cohorts.totals(model, span="day", since_s=since_s, until_s=FOREVER_S)
    )


def lines_of(sums: Iterable[CohortSum]) -> tuple[ModelLine, ...]:
    """Return what sums say of models that answered."""
    lines = map(_model_line, sums)
    return tuple(line for line in lines if line.predictions or line.errors)


def _model_line(told: DeviceSum | CohortSum) -> ModelLine:
    counters = told.counters
    return ModelLine(
        model=told.model,
        version=told.version,
        variant=told.variant,
        engine=told.engine,
        until_s=told.until_s,
        predictions=counters.get(PREDICTIONS, 0),
        errors=counters.get(ERRORS, 0),
        fell_back=counters.get(FELL_BACK, 0),
        labels={
            name.removeprefix(LABEL): count for name, count in counters.items() if name.startswith(LABEL)
        },
        histograms=shapes_of(told),
    )


def shapes_of(told: DeviceSum | CohortSum) -> dict[str, Histogram]:
    """Return histograms by name; of several of one name, as from two versions of umbel, that with the most counts."""
    by_counts = sorted(told.histograms, key=lambda each: sum(each.counts))
    return dict(sorted({each.name: each for each in by_counts}.items()))


def status_of(device: Device, now_s: float) -> Status:
    """Return whether a device is heard of, and how lately."""
    if not device.active:
        return "revoked"
    if device.quarantined:
        return "quarantined"
    silent_s = now_s - device.last_seen_s
    if silent_s < ONLINE_S:
        return "online"
    if device.last_seen_s <= device.enrolled_s:
        return "never seen"
    return "stale" if silent_s < STALE_S else "offline"
