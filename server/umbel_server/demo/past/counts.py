"""What a device of the past counts in a quarter of a day: drawn like what the model was made for, but for its habits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.monitor.baseline import Baseline
from umbel_server.monitor.confidences import confidences
from umbel_server.monitor.report import LABELS

PREDICTIONS, LABELED = 60, 16
"""In a window, and how many of them somebody says the right answer of."""
WINDOW_S = 3600
LABEL = 0
"""The label that cohorts are treated differently with; the console looks at it where nobody names another."""
MORE = 0.07
"""How much more often devices of one cohort give it."""
MISSED = 0.25
"""How often devices of another cohort miss it."""
DARK, UNSURE = 0.5, 0.3
"""Of how many inputs grey levels are higher since they drifted, and of how many answers are less sure."""


@dataclass(frozen=True, slots=True)
class Habit:
    """What a device's figures depend on.

    Args:
        speed: How long a prediction takes there, as a share of what is usual.
        more: Whether it sees more of ``LABEL`` than the others do.
        misses: Whether it takes some of ``LABEL`` for something else.
        drifted: Whether its inputs are darker than those that the model was made for.
    """

    speed: float = 1.0
    more: bool = False
    misses: bool = False
    drifted: bool = False


def of_model(
    rng: Generator, baseline: Baseline, habit: Habit, *, model: str, version: int, start_s: int
) -> pb.Window:
    """Return a window of predictions of a model."""
    usual = baseline.histograms
    sure = _drawn(rng, usual["confidence"], PREDICTIONS)
    mean = _drawn(rng, usual["input_mean"], PREDICTIONS)
    if habit.drifted:
        sure, mean = _moved(rng, sure, UNSURE, -4), _moved(rng, mean, DARK, 1)
    shares = np.array(usual[LABELS].counts, np.float64) / usual[LABELS].count
    if habit.more:
        shares *= (1 - shares[LABEL] - MORE) / (1 - shares[LABEL])
        shares[LABEL] = 1 - shares.sum() + shares[LABEL]
    labels = rng.multinomial(PREDICTIONS, shares)
    said = rng.choice(confidences(), LABELED, p=np.array(sure.counts) / sure.count)
    right = rng.random(LABELED) < said
    latency = rng.lognormal(np.log(300.0 * habit.speed), 0.25, PREDICTIONS)
    asked = int(rng.binomial(PREDICTIONS, 0.05))
    resolved = int(rng.binomial(asked, 0.9))
    counters = {
        "predictions": PREDICTIONS,
        **{f"label.{number}": int(count) for number, count in enumerate(labels)},
        "errors": int(rng.random() < 0.1),
        "contract.x.above": int(habit.drifted and rng.random() < 0.5),
        "feedback": LABELED,
        "feedback.agreed": int(right.sum()),
        "feedback.from.user": LABELED - 4,
        "feedback.from.expert": 4,
        "feedback.compared": 4,
        "feedback.alike": int(rng.binomial(4, 0.95)),
        "review.asked": asked,
        "review.resolved": resolved,
        "review.changed": int(rng.binomial(resolved, 0.2)),
    }
    histograms = (
        sure,
        mean,
        Histogram.empty("latency_us", LATENCY_US).observe(latency),
        Histogram.empty("feedback.right", CONFIDENCE).observe(said[right]),
        Histogram.empty("feedback.wrong", CONFIDENCE).observe(said[~right]),
    )
    return _window(start_s, counters, histograms, model=model, version=version, variant="int8", engine="onnx")


def of_application(rng: Generator, labels: int, habit: Habit, *, accepts: float, start_s: int) -> pb.Window:
    """Return a window of what an application and its device count: right labels beside those given, energy, bytes.

    Args:
        rng: Draws it.
        labels: How many labels the model has.
        habit: The device's.
        accepts: How often its driver accepts what is proposed, in [0, 1].
        start_s: When it begins, Unix seconds.
    """
    truth = rng.integers(labels, size=LABELED)
    given = np.where(rng.random(LABELED) < 0.03, (truth + 1) % labels, truth)
    if habit.misses:
        given = np.where((truth == LABEL) & (rng.random(LABELED) < MISSED), labels - 2, given)
    pairs, counts = np.unique(np.stack((truth, given)), axis=1, return_counts=True)
    told = {
        f"app.truth.{right}.{said}": int(count) for (right, said), count in zip(pairs.T, counts, strict=True)
    }
    counters = {
        **told,
        "app.proposed": PREDICTIONS,
        "app.accepted": int(rng.binomial(PREDICTIONS, accepts)),
        "energy_rapl_uj": int(PREDICTIONS * 20_000 * habit.speed * rng.uniform(0.9, 1.1)),
        "report.bytes": 2_100,
        "delivery.bytes": 900,
        "spool.waiting": int(rng.integers(3)),
    }
    return _window(start_s, counters, ())


def _drawn(rng: Generator, of: Histogram, count: int) -> Histogram:
    shares = np.array(of.counts, np.float64) / of.count
    return Histogram(of.name, of.edges, _whole(rng.multinomial(count, shares)), of.sum / of.count * count)


def _moved(rng: Generator, of: Histogram, share: float, cells: int) -> Histogram:
    """Return a histogram of whose values a share lies so many cells higher."""
    counts = np.array(of.counts)
    away = rng.binomial(counts, share)
    where = np.clip(np.arange(len(counts)) + cells, 0, len(counts) - 1)
    moved = counts - away
    np.add.at(moved, where, away)
    return Histogram(of.name, of.edges, _whole(moved), of.sum)


def _whole(counts: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(count) for count in counts)


def _window(
    start_s: int,
    counters: Mapping[str, int],
    histograms: tuple[Histogram, ...],
    *,
    model: str = "",
    version: int = 0,
    variant: str = "",
    engine: str = "",
) -> pb.Window:
    return pb.Window(
        model=model,
        version=version,
        variant=variant,
        engine=engine,
        start_s=start_s,
        end_s=start_s + WINDOW_S,
        counters={name: count for name, count in counters.items() if count},
        histograms=[each.to_wire() for each in histograms if each.count],
    )
