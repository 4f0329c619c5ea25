"""What a package tells of the data its model was made for, under the names that telemetry has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from umbel_proto.errors import PackageError, UmbelError
from umbel_proto.histogram import Histogram, whole_edges
from umbel_proto.manifest import BASELINE, CLASSIFICATION
from umbel_proto.package import Package, read_unsigned
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.report import COLUMN, LABELS
from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Baseline:
    """A version's data and answers as they were when it was made.

    Args:
        histograms: By telemetry's names: ``column.NAME``, ``input_mean``, ``confidence``, ``label``.
        labels: Names of a classification's labels, in order; none of a regression.
        confidence_of: Of each label's number, the confidence where it was given.
    """

    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    confidence_of: Mapping[int, Histogram] = field(default_factory=dict)


def released(fleet: FleetDir, store: Store, model: str, version: int) -> Baseline:
    """Return the baseline of a released version.

    Raises:
        PackageError: There is no such release, or its package cannot be read.
    """
    for release in store.releases.all():
        if (release.model, release.version) == (model, version):
            try:
                return read_baseline(read_unsigned(fleet.package(release.sha256).read_bytes()))
            except OSError as exc:
                raise PackageError(
                    f"The package of {model} {version} cannot be read: {exc.strerror}."
                ) from exc
    raise PackageError(f"No version {version} of {model} is released: there is no baseline to compare with.")


def read_baseline(package: Package) -> Baseline:
    """Return the baseline in a package; an empty one where there is none.

    Raises:
        PackageError: It cannot be read.
    """
    manifest = package.manifest
    labels = manifest.labels if manifest.kind == CLASSIFICATION else ()
    name = manifest.documents.get(BASELINE)
    if name is None:
        return Baseline(labels=labels)
    try:
        told = {str(each["name"]): _histogram(each) for each in json.loads(package.file(name))["histograms"]}
    except (ValueError, KeyError, TypeError, AttributeError, UmbelError) as exc:
        raise PackageError(f"The baseline of {manifest.model} cannot be read: build it anew.") from exc
    known: dict[str, Histogram] = {
        name: told[name] for name in ("input", "input_mean", "confidence") if name in told
    }
    if "prediction" in told and len(told["prediction"].counts) == len(labels):
        known[LABELS] = Histogram(LABELS, whole_edges(len(labels)), told["prediction"].counts)
    for each in manifest.contract.fields:
        form = "feature.{}" if len(each.shape) == 1 else "channel.{}.mean"
        for place, column in enumerate(each.columns):
            if (seen := told.get(form.format(place))) is not None:
                known[COLUMN + column.name] = seen
    confidence_of = {
        number: told[f"confidence.{number}"]
        for number in range(len(labels))
        if f"confidence.{number}" in told
    }
    return Baseline(known, labels, confidence_of)


def coarser(histogram: Histogram, edges: tuple[float, ...]) -> Histogram | None:
    """Return a histogram with some of its cells joined; None if its edges do not have all of these."""
    if not set(edges) <= set(histogram.edges):
        return None
    counts = [0] * (len(edges) + 1)
    group = 0
    for edge, count in zip((*histogram.edges, None), histogram.counts, strict=True):
        counts[group] += count
        group += edge is not None and group < len(edges) and edge == edges[group]
    return Histogram(histogram.name, edges, tuple(counts), histogram.sum, histogram.epsilon)


def _histogram(body: Mapping[str, Any]) -> Histogram:
    edges = tuple(float(edge) for edge in body["edges"])
    return Histogram(str(body["name"]), edges, tuple(int(count) for count in body["counts"]), body["sum"])
