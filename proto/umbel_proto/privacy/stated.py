"""What a package may state an epsilon for, and which: every start reads it, and few windows are randomized."""

from __future__ import annotations

from collections.abc import Mapping

from umbel_proto.errors import UsageError

MIN_EPSILON = 0.01
MAX_EPSILON = 20.0
"""Beyond it one event in 5e8 moves: that hides nothing, and says so by stating none."""

LABELS, CONFIDENCE, LATENCY, INPUT = "labels", "confidence", "latency_us", "input"
"""Telemetry tasks: what an epsilon may be stated for. The first two are of classifications alone."""


def check_epsilon(epsilon: float, what: str) -> float:
    """Return the epsilon of an event, if it is one.

    Args:
        epsilon: In [``MIN_EPSILON``, ``MAX_EPSILON``].
        what: What states it, for the error's sentence.

    Raises:
        UsageError: It is outside.
    """
    if not MIN_EPSILON <= epsilon <= MAX_EPSILON:
        raise UsageError(f"{what} has epsilon {epsilon}: state one from {MIN_EPSILON} to {MAX_EPSILON:g}.")
    return epsilon


def check_stated(stated: Mapping[str, float], *, classifies: bool) -> None:
    """Refuse epsilons of what a model does not report, or that are none.

    Args:
        stated: Epsilon by telemetry task.
        classifies: Whether the model is a classification.

    Raises:
        UsageError: There is one.
    """
    tasks = (LABELS, CONFIDENCE, LATENCY, INPUT) if classifies else (LATENCY, INPUT)
    for task, epsilon in stated.items():
        if task not in tasks:
            raise UsageError(
                f"The model has no telemetry task {task[:40]!r}: state an epsilon of {', '.join(tasks)}."
            )
        check_epsilon(epsilon, f"Telemetry task {task}")
