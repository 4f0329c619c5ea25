"""Which variant of a model to run here: the fastest one that says the same as the reference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.engines import Engine

TIMING_S = 0.05
MIN_RUNS = 20
BURST = 5
# Five wins in a hundred are within what two measurements of the same variant differ by.
MARGIN = 0.05
ACCURACY_LOSS = 0.005
# Where all but five in a thousand labels agree, no accuracy can differ by more than ACCURACY_LOSS.
AGREEMENT = 1 - ACCURACY_LOSS

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a variant showed on this device.

    Args:
        latency_us: Median time of one prediction, microseconds.
        agreement: Share of the samples to which it gives the reference's label, in [0, 1].
        accuracy: Share of the samples to which it gives the right label; None where labels are not known.
    """

    latency_us: float
    agreement: float
    accuracy: float | None = None


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
    y: NDArray[np.int64] | None = None,
    *,
    reference: str,
    clock: Clock = time.perf_counter,
) -> Choice:
    """Measure variants for 50 ms each, and name the one to run.

    Args:
        engines: The variants, loaded, by name.
        x: Samples that nothing was trained or calibrated on, shape (n, *example), n >= 1, as the contract
            passes them.
        y: Their labels, shape (n,), where they are known.
        reference: The variant that the others are judged by.
        clock: What they are timed with, seconds.
    """
    labels = {name: engine.probabilities(x).argmax(axis=1) for name, engine in engines.items()}
    latency_us = _latencies_us(engines, x[:1], clock)
    measured = {
        name: Measured(
            latency_us[name],
            float((said == labels[reference]).mean()),
            None if y is None else float((said == y).mean()),
        )
        for name, said in labels.items()
    }
    return Choice(decide(measured, reference=reference), measured)


def decide(measured: Mapping[str, Measured], *, reference: str) -> str:
    """Return the fastest variant that passes, or the reference where none is at least 5 % faster than it.

    A variant passes whose accuracy is no more than half a point below the reference's; without labels, one
    that gives 995 of 1000 samples the reference's label.
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
    if shown.accuracy is None or base.accuracy is None:
        return shown.agreement >= AGREEMENT
    # Rounding of the two shares must not decide.
    return shown.accuracy >= base.accuracy - ACCURACY_LOSS - 1e-9


def _latencies_us(engines: Mapping[str, Engine], x: NDArray[Any], clock: Clock) -> dict[str, float]:
    """Return the median time of one prediction by variant.

    Variants take turns in short bursts: what else the device does hits all alike, and within a burst the
    caches hold what the variant needs.
    """
    for engine in engines.values():
        for _ in range(BURST):
            engine.probabilities(x)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    end = clock() + TIMING_S * len(engines)
    while min(map(len, seconds.values())) < MIN_RUNS or clock() < end:
        for name, engine in engines.items():
            for _ in range(BURST):
                begin = clock()
                engine.probabilities(x)
                seconds[name].append(clock() - begin)
    return {name: 1e6 * statistics.median(times) for name, times in seconds.items()}
