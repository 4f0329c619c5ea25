"""What an operator reads: who is in the fleet, and what the devices reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.store.devices import Device
from umbel_server.store.rollups import Rollup, add_counters, add_histograms
from umbel_server.store.store import Store

ONLINE_S = 120
STALE_S = 86400  # What has not called for so long has no valid certificate left.
PREDICTIONS, ERRORS, LABEL = "predictions", "errors", "label."
LATENCY, CONFIDENCE = "latency_us", "confidence"

Status = Literal["online", "stale", "offline", "revoked"]


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """A device as an operator sees it.

    Args:
        device: The device.
        status: ``online`` if it called within two minutes, ``stale`` within a day, else ``offline``.
        models: The newest version of each model that it reported.
        rounds: Rounds whose sum has it.
        rounds_missed: Rounds it took part in without getting into the sum.
    """

    device: Device
    status: Status
    models: Mapping[ModelName, int]
    rounds: int
    rounds_missed: int


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
        labels: Predictions by label.
        latency_us: Latencies, microseconds; None if none was reported.
        confidence: Confidences; None if none was reported.
    """

    model: ModelName
    version: int
    variant: str
    engine: str
    until_s: int
    predictions: int
    errors: int
    labels: Mapping[str, int]
    latency_us: Histogram | None
    confidence: Histogram | None


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
    """

    device: DeviceId
    opened: int
    sealed: int
    rejected: int
    last_received_s: float | None
    models: tuple[ModelLine, ...]

    @property
    def predictions(self) -> int:
        """How many predictions the device reported."""
        return sum(line.predictions for line in self.models)


def devices(store: Store, *, now_s: float) -> tuple[DeviceLine, ...]:
    """Return every device of the fleet, by name."""
    models: dict[DeviceId, dict[ModelName, int]] = {}
    for rollup in store.rollups.all():
        newest = models.setdefault(rollup.device, {})
        newest[rollup.model] = max(rollup.version, newest.get(rollup.model, 0))
    summed: dict[DeviceId, int] = {}
    missed: dict[DeviceId, int] = {}
    for line in store.runs.ledger():
        summed[line.device] = summed.get(line.device, 0) + line.summed
        missed[line.device] = missed.get(line.device, 0) + line.charged + line.dropped
    return tuple(
        DeviceLine(
            device,
            _status(device, now_s),
            models.get(device.id, {}),
            summed.get(device.id, 0),
            missed.get(device.id, 0),
        )
        for device in store.devices.all()
    )


def telemetry(store: Store) -> tuple[TelemetryLine, ...]:
    """Return what every device of the fleet reported, by name."""
    rollups: dict[DeviceId, list[Rollup]] = {}
    for rollup in store.rollups.all():
        rollups.setdefault(rollup.device, []).append(rollup)
    deliveries = {delivery.device: delivery for delivery in store.batches.deliveries()}
    lines = []
    for device in store.devices.all():
        models = _model_lines(rollups.get(device.id, ()))
        delivery = deliveries.get(device.id)
        if delivery is None:
            lines.append(TelemetryLine(device.id, 0, 0, 0, None, models))
            continue
        counts = (delivery.opened, delivery.sealed, delivery.rejected)
        lines.append(TelemetryLine(device.id, *counts, delivery.last_received_s, models))
    return tuple(lines)


def _model_lines(rollups: Iterable[Rollup]) -> tuple[ModelLine, ...]:
    groups: dict[tuple[ModelName, int, str, str], list[Rollup]] = {}
    for rollup in rollups:
        groups.setdefault((rollup.model, rollup.version, rollup.variant, rollup.engine), []).append(rollup)
    return tuple(_model_line(group) for group in groups.values())


def _model_line(rollups: list[Rollup]) -> ModelLine:
    counters: dict[str, int] = {}
    histograms: dict[str, Histogram] = {}
    for rollup in rollups:
        counters = add_counters(counters, rollup.counters)
        # An hour with other edges, from another version of umbel, does not add: the newest stand.
        histograms = _add_newest(histograms, rollup.histograms)
    first = rollups[0]
    return ModelLine(
        model=first.model,
        version=first.version,
        variant=first.variant,
        engine=first.engine,
        until_s=max(rollup.until_s for rollup in rollups),
        predictions=counters.get(PREDICTIONS, 0),
        errors=counters.get(ERRORS, 0),
        labels={
            name.removeprefix(LABEL): count for name, count in counters.items() if name.startswith(LABEL)
        },
        latency_us=histograms.get(LATENCY),
        confidence=histograms.get(CONFIDENCE),
    )


def _add_newest(old: Mapping[str, Histogram], new: Mapping[str, Histogram]) -> dict[str, Histogram]:
    other_edges = {name for name in new if name in old and old[name].edges != new[name].edges}
    return add_histograms({name: old[name] for name in old if name not in other_edges}, new)


def _status(device: Device, now_s: float) -> Status:
    if not device.active:
        return "revoked"
    silent_s = now_s - device.last_seen_s
    if silent_s < ONLINE_S:
        return "online"
    return "stale" if silent_s < STALE_S else "offline"
