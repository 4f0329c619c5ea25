"""Randomizes what a window counted, where a package states an epsilon: before it is sealed, once.

Source: docs/spec/telemetry.md, "Randomized reports".
"""

from __future__ import annotations

from collections.abc import Iterable

from umbel._telemetry.columns import PREFIX
from umbel._telemetry.scope import JUDGED_RIGHT, JUDGED_WRONG, MAX_LABELS, Scope
from umbel_proto.histogram import Histogram, whole_edges
from umbel_proto.prg import Keystream
from umbel_proto.privacy.response import Response
from umbel_proto.privacy.stated import CONFIDENCE, INPUT, LABELS, LATENCY

LABEL, OTHER = "label.", "label.other"
TOLD_LABELS = "label"
"""The histogram of randomized labels: a cell for each class, in the place of counters."""
AGREEMENT, DIFFERENCE, SHADOW_LATENCY = "shadow.agreement", "shadow.confidence", "shadow.latency_us"
"""Histograms of two versions that were asked the same."""
_TASKS = {
    AGREEMENT: LABELS,
    DIFFERENCE: CONFIDENCE,
    SHADOW_LATENCY: LATENCY,
    JUDGED_RIGHT: CONFIDENCE,
    JUDGED_WRONG: CONFIDENCE,
}


def randomized(
    counters: dict[str, int], histograms: Iterable[Histogram], scope: Scope
) -> tuple[dict[str, int], list[Histogram]]:
    """Return what a window says: each event of a task with an epsilon in a cell that chance has a part in.

    Args:
        counters: What was counted.
        histograms: What was observed.
        scope: What the package asks.
    """
    stream = Keystream()
    shown = [_hidden(each, scope.epsilon.get(_task(each.name)), stream) for each in histograms]
    if LABELS in scope.epsilon and scope.classes:
        labels = _labels(counters, scope.classes)
        counters = {name: count for name, count in counters.items() if not name.startswith(LABEL)}
        shown.append(_hidden(labels, scope.epsilon[LABELS], stream))
    return counters, shown


def _task(histogram: str) -> str:
    """Return the telemetry task that a histogram belongs to: all that is told of input values is one."""
    return INPUT if histogram.startswith(("input", PREFIX)) else _TASKS.get(histogram, histogram)


def _hidden(histogram: Histogram, epsilon: float | None, stream: Keystream) -> Histogram:
    if epsilon is None:
        return histogram
    counts = Response(len(histogram.counts), epsilon).randomize(histogram.counts, stream)
    # No sum: it would tell what the cells hide.
    return Histogram(histogram.name, histogram.edges, counts, epsilon=epsilon)


def _labels(counters: dict[str, int], classes: int) -> Histogram:
    """Return the labels of a window as a histogram of all classes, those that were never given as well."""
    cells = min(classes, MAX_LABELS + 1)
    counts = [0] * cells
    for name, count in counters.items():
        if name.startswith(LABEL):
            counts[cells - 1 if name == OTHER else int(name.removeprefix(LABEL))] += count
    return Histogram(TOLD_LABELS, whole_edges(cells), tuple(counts))
