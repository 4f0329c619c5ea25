"""Of which features drift is asked, and what they are compared with.

Only what counts one value of an example is tested: the values of an image are not independent of each other, so
``input`` is taken as worth no more than the examples it comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from umbel_proto.histogram import Histogram, whole_edges
from umbel_server.monitor.baseline import Baseline, coarser
from umbel_server.monitor.drift import Pair
from umbel_server.monitor.report import COLUMN, CONFIDENCE, LABEL, LABELS, OWN_LABELS
from umbel_server.monitor.sample import Sample
from umbel_server.store.reports import Report, histograms

INPUT, INPUT_MEAN = "input", "input_mean"
WANTED = (INPUT, INPUT_MEAN, COLUMN, CONFIDENCE, LABELS)
"""What has to be read of the reports."""


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """A feature as devices counted it.

    Args:
        sample: Its values.
        edges: Inner edges of its cells.
        ordered: Whether the cells have an order; labels have none.
    """

    sample: Sample
    edges: tuple[float, ...]
    ordered: bool = True


def features(reports: Sequence[Report], *, labels: int) -> dict[str, Feature]:
    """Return what devices counted, by feature: columns and inputs, then confidence and labels.

    Args:
        reports: One of each device.
        labels: How many labels the model has; 0 of a regression. What is told of others is left out.
    """
    names = sorted({name for report in reports for name in report.histograms})
    found = {
        name: _feature(histograms(reports, name))
        for name in names
        if name.startswith(COLUMN) or name in (INPUT, INPUT_MEAN, CONFIDENCE)
    }
    if INPUT in found and INPUT_MEAN in found:
        one = found[INPUT]
        found[INPUT] = Feature(one.sample.limited_to(found[INPUT_MEAN].sample.values), one.edges)
    if labels:
        told = [each for report in reports if (each := label_counts(report, labels)) is not None]
        # As most devices tell them: a device that says it randomizes does not keep the others' from being read.
        kinds = Counter(each.epsilon for each in told)
        if kinds:
            usual = max(kinds, key=lambda kind: (kinds[kind], kind is None))
            alike = [each for each in told if each.epsilon == usual]
            found[LABELS] = Feature(Sample.of_devices(alike), alike[0].edges, ordered=False)
    return found


def label_counts(report: Report, labels: int) -> Histogram | None:
    """Return how often a device gave each label; None if it told nothing that this model could say."""
    cells = min(labels, OWN_LABELS + 1)
    hidden = report.histograms.get(LABELS)
    if hidden is not None:
        return hidden if hidden.edges == whole_edges(cells) else None
    counts = [report.counters.get(f"{LABEL}{number}", 0) for number in range(cells)]
    if labels > OWN_LABELS:
        counts[OWN_LABELS] = report.counters.get(f"{LABEL}other", 0)
    return Histogram(LABELS, whole_edges(cells), tuple(counts)) if any(counts) else None


def against_baseline(current: Mapping[str, Feature], baseline: Baseline) -> dict[str, Pair]:
    """Return each feature with what it was when the model was made, where the package tells in the same cells."""
    pairs = {}
    for name, feature in current.items():
        before = baseline.histograms.get(name)
        joined = None if before is None else coarser(before, feature.edges)
        if joined is None:
            continue
        sample = Sample.of(joined)
        if name == INPUT and INPUT_MEAN in baseline.histograms:
            sample = sample.limited_to(baseline.histograms[INPUT_MEAN].count)
        pairs[name] = Pair(sample, feature.sample, feature.edges if feature.ordered else None)
    return pairs


def against_before(current: Mapping[str, Feature], before: Mapping[str, Feature]) -> dict[str, Pair]:
    """Return each feature with what it was in the time before, where that was counted in the same cells."""
    return {
        name: Pair(before[name].sample, feature.sample, feature.edges if feature.ordered else None)
        for name, feature in current.items()
        if name in before and before[name].edges == feature.edges
    }


def _feature(told: Sequence[Histogram]) -> Feature:
    return Feature(Sample.of_devices(told), told[0].edges)
