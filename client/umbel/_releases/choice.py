"""Which variant of a model to run here: the fastest one that says the same as the reference."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.engines import Engine
from umbel_proto.manifest import CLASSIFICATION, REGRESSION

TIMING_S = 0.05
MIN_RUNS = 20
BURST = 5
# Five wins in a hundred are within what two measurements of the same variant differ by.
MARGIN = 0.05
ACCURACY_LOSS = 0.005
# Where all but five in a thousand labels agree, no accuracy can differ by more than ACCURACY_LOSS.
AGREEMENT = 1 - ACCURACY_LOSS
# How much larger the error of a model that answers with numbers may be, root mean square.
ERROR_GROWTH = 0.01
# Where answers differ from the reference's by less than this share of their spread, no error grows by more where
# the model is off by at least a tenth of its answers' spread: the two add up in squares, if they are independent.
DIFFERENCE = 0.014

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a variant showed on this device.

    Args:
        latency_us: Median time of one prediction, microseconds.
        agreement: Share of the samples to which it gives the reference's label, in [0, 1]; None where the model
            answers with numbers.
        accuracy: Share of the samples to which it gives the right label; None where labels are not known.
        difference: How far its numbers are from the reference's, root mean square, over the standard deviation of
            the reference's; None where the model classifies.
        error: Root mean square error of its numbers; None where it classifies, or the right ones are not known.
    """

    latency_us: float
    agreement: float | None = None
    accuracy: float | None = None
    difference: float | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant a device runs, and why.

    Args:
        variant: Its name.
        measured: What every variant showed, by name, at that moment.
    """

    variant: str
    measured: Mapping[str, Measured]

    @property
    def latency_us(self) -> dict[str, float]:
        """Median time of one prediction by variant, microseconds."""
        return {name: shown.latency_us for name, shown in self.measured.items()}


def choose(
    engines: Mapping[str, Engine],
    x: NDArray[Any],
    y: NDArray[Any] | None = None,
    *,
    reference: str,
    kind: str = CLASSIFICATION,
    clock: Clock = time.perf_counter,
) -> Choice:
    """Measure variants for 50 ms each, and name the one to run.

    Args:
        engines: The variants, loaded, by name.
        x: Samples that nothing was trained or calibrated on, shape (n, *example), n >= 1, as the contract
            passes them.
        y: Their labels, shape (n,), or targets, shape (n, *answer), where they are known.
        reference: The variant that the others are judged by.
        kind: What the model answers with.
        clock: What they are timed with, seconds.
    """
    answers = {name: engine.answers(x) for name, engine in engines.items()}
    latency_us = _latencies_us(engines, x[:1], clock)
    compared = _numbers if kind == REGRESSION else _labels
    measured = {
        name: compared(latency_us[name], said, answers[reference], y) for name, said in answers.items()
    }
    return Choice(decide(measured, reference=reference), measured)


def same_answers(kind: str, said: NDArray[Any], reference: NDArray[Any]) -> bool:
    """Whether answers are the reference's: every label, or numbers as near to its as ``decide`` asks.

    Args:
        kind: What the model answers with.
        said: Answers to some inputs.
        reference: The reference's to the same.
    """
    if kind == REGRESSION:
        difference = _numbers(0.0, said, reference, None).difference
        return difference is not None and difference <= DIFFERENCE
    return _labels(0.0, said, reference, None).agreement == 1


def _labels(
    latency_us: float, said: NDArray[Any], reference: NDArray[Any], y: NDArray[Any] | None
) -> Measured:
    labels = said.argmax(axis=1)
    return Measured(
        latency_us,
        agreement=float((labels == reference.argmax(axis=1)).mean()),
        accuracy=None if y is None else float((labels == y).mean()),
    )


def _numbers(
    latency_us: float, said: NDArray[Any], reference: NDArray[Any], y: NDArray[Any] | None
) -> Measured:
    spread = float(reference.std(dtype=np.float64))
    apart = _rms(said - reference)
    return Measured(
        latency_us,
        # Answers that are all alike have no spread to measure by: then only equal ones pass.
        difference=apart / spread if spread else apart and math.inf,
        error=None if y is None else _rms(said - y),
    )


def _rms(values: NDArray[Any]) -> float:
    return math.sqrt(float(np.mean(values.astype(np.float64) ** 2)))


def decide(measured: Mapping[str, Measured], *, reference: str) -> str:
    """Return the fastest variant that passes, or the reference where none is at least 5 % faster than it.

    A variant passes whose accuracy is no more than half a point below the reference's; without labels, one
    that gives 995 of 1000 samples the reference's label. Of a model that answers with numbers, one whose error is
    no more than 1 % above the reference's; where the right numbers are not known, one whose own differ from the
    reference's by no more than 1.4 % of their spread.
    """
    base = measured[reference]
    # A latency that is no number is never below a limit.
    faster = [
        name
        for name, shown in measured.items()
        if shown.latency_us < (1 - MARGIN) * base.latency_us and _passes(shown, base)
    ]
    return min(faster, key=lambda name: (measured[name].latency_us, name), default=reference)


def _passes(shown: Measured, base: Measured) -> bool:
    if shown.error is not None and base.error is not None:
        return shown.error <= base.error * (1 + ERROR_GROWTH)
    if shown.difference is not None:
        return shown.difference <= DIFFERENCE
    if shown.accuracy is None or base.accuracy is None:
        return shown.agreement is not None and shown.agreement >= AGREEMENT
    # Rounding of the two shares must not decide.
    return shown.accuracy >= base.accuracy - ACCURACY_LOSS - 1e-9


def _latencies_us(engines: Mapping[str, Engine], x: NDArray[Any], clock: Clock) -> dict[str, float]:
    """Return the median time of one prediction by variant.

    Variants take turns in short bursts: what else the device does hits all alike, and within a burst the
    caches hold what the variant needs.
    """
    for engine in engines.values():
        for _ in range(BURST):
            engine.answers(x)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    end = clock() + TIMING_S * len(engines)
    while min(map(len, seconds.values())) < MIN_RUNS or clock() < end:
        for name, engine in engines.items():
            for _ in range(BURST):
                begin = clock()
                engine.answers(x)
                seconds[name].append(clock() - begin)
    return {name: 1e6 * statistics.median(times) for name, times in seconds.items()}
