"""How good a model is on examples that it did not learn from: by label, by cohort, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_models.card import Metric
from umbel_models.task import Examples, OwnMetric
from umbel_proto.errors import UmbelError, UsageError
from umbel_proto.manifest import Target

_Z = 1.959964  # of a two-sided 95 % interval
_LEAST = 1e-12  # one impossible example must not make a mean infinite


def evaluate(
    probabilities: NDArray[np.float32],
    examples: Examples,
    labels: Sequence[str],
    cohorts: Sequence[str] = (),
) -> tuple[Metric, ...]:
    """Return the figures of a model card.

    Args:
        probabilities: What the model says of the examples, shape (n, classes).
        examples: With labels; with cohorts, accuracy is told for each of them.
        labels: Name of each class.
        cohorts: Name of each cohort.

    Raises:
        UsageError: There is no example, or a label or cohort without a name.
    """
    count = len(examples.y)
    if not count:
        raise UsageError("There is no example to evaluate on: give some that were held out.")
    _require_named(examples.y, labels, "label")
    predicted = probabilities.argmax(1)
    right = predicted == examples.y
    given = probabilities[np.arange(count), examples.y].astype(np.float64)
    metrics = [
        Metric("examples", count),
        _share("accuracy", right),
        Metric("log loss", -float(np.log(np.maximum(given, _LEAST)).mean())),
    ]
    for number, name in enumerate(labels):
        of, said = examples.y == number, predicted == number
        if of.any():
            metrics.append(_share("recall", said[of], f"label {name}"))
        if said.any():
            metrics.append(_share("precision", of[said], f"label {name}"))
    if examples.cohort is not None:
        _require_named(examples.cohort, cohorts, "cohort")
        for number in np.unique(examples.cohort):
            name = cohorts[number] if cohorts else str(number)
            metrics.append(_share("accuracy", right[examples.cohort == number], f"cohort {name}"))
    return tuple(metrics)


def evaluate_numbers(
    values: NDArray[np.float32],
    examples: Examples,
    targets: Sequence[Target] = (),
    cohorts: Sequence[str] = (),
) -> tuple[Metric, ...]:
    """Return the figures of the card of a model that answers with numbers.

    R^2 compares with always saying the examples' own mean; where all targets are alike it is left out.

    Args:
        values: What the model says of the examples, shape (n, *answer).
        examples: With targets of that shape; with cohorts, errors are told for each of them.
        targets: What each number of an answer is; where there is more than one, errors are told for each.
        cohorts: Name of each cohort.

    Raises:
        UsageError: There is no example, or a cohort without a name, or a target that is not finite or of
            another shape.
    """
    if not len(examples.y):
        raise UsageError("There is no example to evaluate on: give some that were held out.")
    if examples.y.shape != values.shape or not np.isfinite(examples.y).all():
        raise UsageError(
            f"The targets have shape {examples.y.shape}, and the model's answers {values.shape}: give finite numbers "
            "of that shape."
        )
    off = (values.astype(np.float64) - examples.y).reshape(len(values), -1)
    metrics = [Metric("examples", len(off)), *_errors(off, examples.y.reshape(off.shape))]
    if len(targets) > 1:
        for number, target in enumerate(targets):
            column = slice(number, number + 1)
            right = examples.y.reshape(off.shape)[:, column]
            metrics += _errors(off[:, column], right, f"target {target.name}")
    if examples.cohort is not None:
        _require_named(examples.cohort, cohorts, "cohort")
        for each in np.unique(examples.cohort):
            rows = examples.cohort == each
            name = cohorts[each] if cohorts else str(each)
            metrics.append(_mean("mean absolute error", np.abs(off[rows]).mean(1), f"cohort {name}"))
    return tuple(metrics)


def evaluate_own(
    metrics: Mapping[str, OwnMetric], said: NDArray[np.float32], examples: Examples
) -> tuple[Metric, ...]:
    """Return a task's own figures.

    Args:
        metrics: What computes each, by name.
        said: What the model says of the examples, probabilities or values.
        examples: With labels or targets.

    Raises:
        UsageError: One fails, or gives no finite number.
    """
    return tuple(Metric(name, _figure(name, metric, said, examples.y)) for name, metric in metrics.items())


def _figure(name: str, metric: OwnMetric, said: NDArray[np.float32], y: NDArray[Any]) -> float:
    try:
        value = float(metric(said.copy(), y.copy()))
    except UmbelError:
        raise
    except Exception as exc:  # whatever the caller's own function raises
        raise UsageError(f"The metric {name!r} fails on the held-out examples: {exc}.") from exc
    if not math.isfinite(value):
        raise UsageError(f"The metric {name!r} is {value} on the held-out examples: return a finite number.")
    return value


def _errors(off: NDArray[np.float64], right: NDArray[np.float32], part: str = "") -> list[Metric]:
    squares = (off**2).mean(1)
    metrics = [
        _mean("mean squared error", squares, part),
        Metric("root mean squared error", math.sqrt(float(squares.mean())), part),
        _mean("mean absolute error", np.abs(off).mean(1), part),
    ]
    spread = float(((right - right.mean(0, dtype=np.float64)) ** 2).sum())
    if spread:
        metrics.append(Metric("R2", 1 - float((off**2).sum()) / spread, part))
    return metrics


def _mean(kind: str, each: NDArray[np.float64], part: str) -> Metric:
    """Return a mean over examples with its interval, normal approximation; without one for one example."""
    mean = float(each.mean())
    if len(each) < 2:
        return Metric(kind, mean, part)
    half = _Z * float(each.std(ddof=1)) / math.sqrt(len(each))
    return Metric(kind, mean, part, (max(0.0, mean - half), mean + half))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of which ``hits`` of ``count`` draws are seen, count >= 1.

    Source:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927.
    """
    share, square = hits / count, _Z**2 / count
    middle = share + square / 2
    half = math.sqrt(square * (share * (1 - share) + square / 4))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def _share(kind: str, hits: NDArray[np.bool_], part: str = "") -> Metric:
    return Metric(kind, float(hits.mean()), part, wilson(int(hits.sum()), len(hits)))


def _require_named(numbers: NDArray[np.int64], names: Sequence[str], what: str) -> None:
    if numbers.min() < 0 or (names and numbers.max() >= len(names)):
        raise UsageError(
            f"The examples have the {what} {numbers.max()}, and {len(names)} are named: name every {what}."
        )
