"""What a model's inputs and answers looked like when it was made: ``baseline.json`` of a package.

Telemetry later says what they look like. ``input``, ``input_mean`` and ``confidence`` have the names and
edges of telemetry's histograms, so that the two compare cell by cell; the others are there for a closer look:

- ``prediction``: how often each label was given, a cell for each label.
- ``confidence.K``: confidence where label number K was given.
- ``value.K``: number K of an answer, of a model that answers with numbers, of at most ``MAX_FEATURES``; there is
  then no ``confidence`` and no ``prediction``.
- ``feature.K``: the values of feature K, where an example is a row of at most ``MAX_FEATURES``; otherwise
  ``channel.K.mean`` and ``channel.K.deviation``, along an example's first or last axis, the shorter one.

The edges of features and channels are twentieths of the data itself: every cell then says as much as any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.histogram import CONFIDENCE, INPUT, Histogram
from umbel_proto.manifest import CLASSIFICATION, REGRESSION

FORMAT = 1
MAX_FEATURES = 256
_TWENTIETHS = np.arange(1, 20) / 20


def baseline(
    x: NDArray[Any], answers: NDArray[np.float32], *, kind: str = CLASSIFICATION
) -> tuple[Histogram, ...]:
    """Return the histograms of some inputs and of what a model makes of them.

    Args:
        x: Inputs, shape (n, *example), n >= 1, in the contract's unit; NaN where a value is missing.
        answers: What it makes of them: probabilities, shape (n, classes), or values, shape (n, *answer).
        kind: Which of them.
    """
    values = x.astype(np.float64)
    means = [float(row[np.isfinite(row)].mean()) for row in values if np.isfinite(row).any()]
    return (
        Histogram.empty("input", INPUT).observe(values),
        Histogram.empty("input_mean", INPUT).observe(means),
        *(_values(answers) if kind == REGRESSION else _predictions(answers)),
        *(Histogram.empty(name, edges(of)).observe(of) for name, of in _summaries(values)),
    )


def _values(answers: NDArray[np.float32]) -> Iterator[Histogram]:
    rows = answers.reshape(len(answers), -1).astype(np.float64)
    for number in range(min(rows.shape[1], MAX_FEATURES)):
        column = rows[:, number]
        yield Histogram.empty(f"value.{number}", edges(column)).observe(column)


def _predictions(probabilities: NDArray[np.float32]) -> tuple[Histogram, ...]:
    confidence, labels = probabilities.max(1), probabilities.argmax(1)
    classes = probabilities.shape[1]
    halves = tuple(number - 0.5 for number in range(1, classes))
    return (
        Histogram.empty("prediction", halves).observe(labels),
        Histogram.empty("confidence", CONFIDENCE).observe(confidence),
        *(
            Histogram.empty(f"confidence.{number}", CONFIDENCE).observe(confidence[labels == number])
            for number in range(classes)
        ),
    )


def edges(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Return up to 19 edges that divide values evenly, of six digits; (0.0,) where there are none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (0.0,)
    return tuple(sorted({float(f"{value:.6g}") for value in np.quantile(finite, _TWENTIETHS)}))


def to_json(histograms: Sequence[Histogram]) -> bytes:
    """Return ``baseline.json``: the same histograms, the same bytes."""
    body = {
        "format": FORMAT,
        "histograms": [
            {"name": h.name, "edges": list(h.edges), "counts": list(h.counts), "sum": h.sum}
            for h in histograms
        ],
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _summaries(x: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    if x.ndim == 2 and x.shape[1] <= MAX_FEATURES:
        for number in range(x.shape[1]):
            yield f"feature.{number}", x[:, number]
        return
    if x.ndim < 3:
        return
    # Images have their channels first, and windows of a sensor last.
    channels = x if x.shape[1] <= x.shape[-1] else np.moveaxis(x, -1, 1)
    for number in range(min(channels.shape[1], MAX_FEATURES)):
        channel = channels[:, number].reshape(len(x), -1)
        yield f"channel.{number}.mean", channel.mean(1)
        yield f"channel.{number}.deviation", channel.std(1)
