"""``umbel fleet telemetry``: what devices reported, of each by itself or of all together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import UsageError
from umbel_server.clock import system_clock
from umbel_server.fleet.wanted import TABLE_ROWS, StatusOption, TagOption, VersionOption, wanted_of
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import monitor_at
from umbel_server.store.wanted import ANY
from umbel_server.terminal import duration, print_json, print_table

if TYPE_CHECKING:
    from umbel_proto.histogram import Histogram
    from umbel_server.monitor.report import ModelLine, TelemetryLine

DAY_S = 86400.0
_HISTOGRAM_HEAD = ("model", "what", "epsilon", "count", "mean", "p10", "p50", "p90")


def telemetry(
    directory: FleetOption = None,
    server: ServerOption = None,
    as_sum: Annotated[bool, typer.Option("--sum", help="All devices together, in more detail.")] = False,
    days: Annotated[
        float | None, typer.Option(min=0, help="Of the last so many days.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many devices; 100 in a table.", show_default=False)
    ] = None,
    after: Annotated[str, typer.Option(help="Devices after this name.", show_default=False)] = "",
    status: StatusOption = None,
    version: VersionOption = None,
    tag: TagOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List what devices reported, by model, version and variant."""
    wanted = wanted_of(status, version, tag)
    if as_sum and wanted != ANY:
        raise UsageError("--sum is of all devices: leave --status, --version and --tag out.")
    if as_sum and (limit is not None or after):
        raise UsageError("--sum is of all devices: leave --limit and --after out.")
    most = TABLE_ROWS if limit is None and not as_json else limit
    since_s = 0.0 if days is None else max(0.0, system_clock() - days * DAY_S)
    with monitor_at(directory, server) as monitor:
        if as_json:
            monitor.export()
        if as_sum:
            _show_sum(monitor.together(since_s=since_s), as_json=as_json)
            return
        lines = monitor.devices(wanted, limit=most, after=after, since_s=since_s)
    _show(lines, as_json=as_json)
    if not as_json and len(lines) == most:
        typer.echo(f"There may be more:  --after {lines[-1].device}", err=True)


def _show(lines: Sequence[TelemetryLine], *, as_json: bool) -> None:
    if as_json:
        print_json([_device_json(line) for line in lines])
        return
    now_s = system_clock()
    rows = []
    for line in lines:
        batches = f"{line.opened}" + (f" (+{line.sealed})" if line.sealed else "")
        batches += f" ({line.rejected} rejected)" if line.rejected else ""
        last = "-" if line.last_received_s is None else f"{duration(now_s - line.last_received_s)} ago"
        for model in list(filter(_ran, line.models)) or (None,):
            rows.append((line.device, batches, last, *_model_cells(model)))
            batches = last = ""
    print_table(
        ("device", "batches", "last", "model", "predictions", "errors", "p50 us", "p90 us", "confidence"),
        rows,
    )
    own = [
        (line.device, name, *cells)
        for line in lines
        for name, *cells in (
            *((name, f"{count:,}", "", "") for name, count in line.counters.items()),
            *(
                (name, f"{amount.count:,}", f"{amount.mean or 0:.4g}", f"{amount.quantile(0.9) or 0:.4g}")
                for name, amount in line.amounts.items()
            ),
        )
    ]
    if own:
        print_table(("device", "of the application and the device", "count", "mean", "p90"), own)


def _show_sum(lines: Sequence[ModelLine], *, as_json: bool) -> None:
    from umbel_server.monitor.report import LABELS

    if as_json:
        print_json([_model_json(line) for line in lines])
        return
    print_table(
        ("model", "predictions", "errors"),
        [(_name(line), f"{line.predictions:,}", f"{line.errors:,}") for line in filter(_ran, lines)],
    )
    rows = [
        (_name(line), *_histogram_cells(each))
        for line in lines
        for name, each in line.histograms.items()
        if name != LABELS
    ]
    if rows:
        print_table(_HISTOGRAM_HEAD, rows)
    labels = [(_name(line), *cells) for line in lines for cells in _label_cells(line)]
    if labels:
        print_table(("model", "label", "epsilon", "count", "of all", "95 % interval"), labels)


def _device_json(line: TelemetryLine) -> dict[str, Any]:
    return {
        "device": line.device,
        "batches": {"opened": line.opened, "sealed": line.sealed, "rejected": line.rejected},
        "last_received_s": line.last_received_s,
        "predictions": line.predictions,
        "models": [_model_json(model) for model in line.models],
        "counters": dict(line.counters),
        "amounts": {
            name: {"count": amount.count, "mean": amount.mean, **(_quantiles(amount) or {})}
            for name, amount in line.amounts.items()
        },
    }


def _model_json(model: ModelLine) -> dict[str, Any]:
    return {
        "model": model.model,
        "version": model.version,
        "variant": model.variant,
        "engine": model.engine,
        "until_s": model.until_s,
        "predictions": model.predictions,
        "errors": model.errors,
        "fell_back": model.fell_back,
        "labels": dict(model.labels),
        "latency_us": _quantiles(model.latency_us),
        "confidence_mean": None if model.confidence is None else model.confidence.mean,
        "columns": {
            name: {
                "count": each.count,
                "mean": each.mean,
                "edges": list(each.edges),
                "counts": list(each.counts),
                **(_quantiles(each) or {}),
            }
            for name, each in model.columns.items()
        },
        "randomized": {name: _estimates_json(each) for name, each in model.randomized.items()},
    }


def _estimates_json(histogram: Histogram) -> dict[str, Any]:
    from umbel_server.monitor.estimate import cells

    return {
        "epsilon": histogram.epsilon,
        "count": histogram.count,
        "edges": list(histogram.edges),
        "cells": [{"value": each.value, "low": each.low, "high": each.high} for each in cells(histogram)],
        **(_quantiles(histogram) or {}),
    }


def _quantiles(histogram: Histogram | None) -> dict[str, Any] | None:
    from umbel_server.monitor.estimate import quantile

    if histogram is None:
        return None
    found = {"p50": quantile(histogram, 0.5), "p90": quantile(histogram, 0.9)}
    told: dict[str, Any] = {name: each.value for name, each in found.items()}
    if histogram.epsilon is not None:
        told |= {f"{name}_interval": [each.low, each.high] for name, each in found.items()}
    return told


def _ran(model: ModelLine) -> bool:
    """Whether anything was asked of it there, or it was given up: reviews are counted of models that no engine ran."""
    return bool(model.predictions or model.errors or model.fell_back)


def _model_cells(model: ModelLine | None) -> tuple[str, ...]:
    if model is None:
        return ("-",) * 6
    if model.fell_back:
        return (f"{model.model}@{model.version} failed there", *("-",) * 5)
    latency = model.latency_us
    mean = None if model.confidence is None else model.confidence.mean
    return (
        _name(model),
        str(model.predictions),
        str(model.errors),
        *("-" if latency is None else _quantile_cell(latency, q, ".0f") for q in (0.5, 0.9)),
        "-" if mean is None else f"{mean:.3f}",
    )


def _histogram_cells(histogram: Histogram) -> tuple[str, ...]:
    return (
        histogram.name,
        "" if histogram.epsilon is None else f"{histogram.epsilon:g}",
        f"{histogram.count:,}",
        "-" if histogram.mean is None else f"{histogram.mean:.4g}",
        *(_quantile_cell(histogram, q, ".4g") for q in (0.1, 0.5, 0.9)),
    )


def _quantile_cell(histogram: Histogram, q: float, form: str) -> str:
    """Return a quantile, and of randomized counts the interval it is in; ``..`` where that has no end."""
    from umbel_server.monitor.estimate import quantile

    found = quantile(histogram, q)
    if found.value is None:
        return "-"
    if histogram.epsilon is None:
        return format(found.value, form)
    low, high = ("" if end is None else format(end, form) for end in (found.low, found.high))
    return f"{found.value:{form}} ({low}..{high})"


def _label_cells(line: ModelLine) -> list[tuple[str, ...]]:
    from umbel_server.monitor.estimate import cells
    from umbel_server.monitor.report import LABELS, OWN_LABELS

    total = sum(line.labels.values())
    found: list[tuple[str, ...]] = [
        (label, "", f"{count:,}", f"{count / total:.3f}", "") for label, count in line.labels.items()
    ]
    if (hidden := line.histograms.get(LABELS)) is not None and hidden.epsilon is not None:
        all_ = hidden.count
        found += [
            (
                "other" if label == OWN_LABELS else str(label),
                f"{hidden.epsilon:g}",
                f"{each.value:,.0f}",
                f"{each.value / all_:.3f}",
                f"{each.low / all_:.3f}..{each.high / all_:.3f}",
            )
            for label, each in enumerate(cells(hidden))
        ]
    return found


def _name(model: ModelLine) -> str:
    return f"{model.model}@{model.version} {model.variant} {model.engine}"
