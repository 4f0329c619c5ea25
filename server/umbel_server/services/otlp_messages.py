"""Prometheus' figures as OTLP's messages; needs ``umbel[otlp]``.

Names and labels stay what they are in ``/metrics``: a dashboard over one is a dashboard over the other.

Source: OpenTelemetry specification 1.50, "Prometheus and OpenMetrics Compatibility", section "Prometheus Metric points
to OTLP", and "Metrics Data Model", section "Cumulative streams: handling unknown start time".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.samples import Sample

_UNITS = {"seconds": "s", "bytes": "By"}
_MOST_WORDS = 200


def request(families: Iterable[Metric], about: Mapping[str, str], *, since_s: float, now_s: float) -> bytes:
    """Return figures as the body of a POST: an ``ExportMetricsServiceRequest``.

    Args:
        families: Counters, gauges and histograms, as a registry collects them; others are left out.
        about: Attributes of who tells.
        since_s: When the sums were first looked at, Unix seconds. What was counted before is in them too, and nobody
            knows since when: the specification has the first look for their beginning.
        now_s: The time, Unix seconds.
    """
    since, now = round(since_s * 1e9), round(now_s * 1e9)
    metrics = [metric for family in families if (metric := _metric(family, since, now)) is not None]
    scope = InstrumentationScope(name="umbel", version=version("umbel"))
    told = pb.ResourceMetrics(
        resource=Resource(attributes=_attributes(about)),
        scope_metrics=[pb.ScopeMetrics(scope=scope, metrics=metrics)],
    )
    return service.ExportMetricsServiceRequest(resource_metrics=[told]).SerializeToString()


def rejected(answer: bytes) -> tuple[int, str]:
    """Return how many points a receiver left out, and why, of the body that it answers with; 0 of a body that is none."""
    try:
        told = service.ExportMetricsServiceResponse.FromString(answer).partial_success
    except DecodeError:
        return 0, ""
    words = "".join(each if each.isprintable() else " " for each in told.error_message)
    return max(told.rejected_data_points, 0), words[:_MOST_WORDS]


def _metric(family: Metric, since: int, now: int) -> pb.Metric | None:
    name = family.name
    metric = pb.Metric(
        description=family.documentation,
        unit=_UNITS.get(name.rpartition("_")[2], ""),
        metadata=_attributes({"prometheus.type": family.type}),
    )
    match family.type:
        case "counter":
            metric.name = f"{name}_total"
            metric.sum.is_monotonic = True
            metric.sum.aggregation_temporality = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
            metric.sum.data_points.extend(
                _number(each, now, since) for each in family.samples if each.name == metric.name
            )
        case "gauge":
            metric.name = name
            metric.gauge.data_points.extend(_number(each, now) for each in family.samples)
        case "histogram":
            metric.name = name
            metric.histogram.aggregation_temporality = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
            metric.histogram.data_points.extend(_histograms(family, since, now))
        case _:
            return None
    return metric


def _number(sample: Sample, now: int, since: int = 0) -> pb.NumberDataPoint:
    return pb.NumberDataPoint(
        attributes=_attributes(sample.labels),
        start_time_unix_nano=since,
        time_unix_nano=now,
        as_double=sample.value,
    )


def _histograms(family: Metric, since: int, now: int) -> Iterable[pb.HistogramDataPoint]:
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, int]]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        if sample.name == f"{family.name}_bucket":
            buckets.setdefault(labels, []).append((float(sample.labels["le"]), int(sample.value)))
        elif sample.name == f"{family.name}_sum":
            sums[labels] = sample.value
    for labels, found in buckets.items():
        found.sort()
        below = [count for _, count in found]  # Prometheus counts all that is not above an edge.
        yield pb.HistogramDataPoint(
            attributes=_attributes(dict(labels)),
            start_time_unix_nano=since,
            time_unix_nano=now,
            count=below[-1],
            sum=sums.get(labels),
            bucket_counts=[after - before for before, after in zip([0, *below], below, strict=False)],
            explicit_bounds=[edge for edge, _ in found[:-1]],
        )


def _attributes(values: Mapping[str, str]) -> list[KeyValue]:
    return [KeyValue(key=name, value=AnyValue(string_value=value)) for name, value in sorted(values.items())]
