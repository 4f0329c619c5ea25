"""The most that a device says of a model in a minute: all labels, columns and outcomes, and two engines that answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from umbel._telemetry.scope import Scope
from umbel._telemetry.telemetry import Telemetry
from umbel_proto.contract import Field

ENGINES = {"int8": "onnx", "tflite-int8": "tflite"}
SOURCES = ("user", "expert", "sensor", "outcome", "rule", "other")
REVIEWS = ("asked", "dropped", "resolved", "changed", "overridden", "answered")
KINDS = ("missing", "below", "above")
BATCH = 2500


def fill(
    telemetry: Telemetry,
    field: Field,
    scope: Scope,
    x: NDArray[np.float32],
    *,
    model: str,
    predictions: int,
    broken: Sequence[str],
) -> None:
    """Let one process count as much as it can of a model.

    Args:
        telemetry: Where it counts.
        field: The model's input.
        scope: What its package asks.
        x: Examples, shape (n, *example).
        model: Its name.
        predictions: Of each engine: of all labels alike, any confidence, and times over two orders of magnitude.
        broken: The columns, or the field, that break the contract in every way.
    """
    rng, version = np.random.default_rng(1), 1000
    labels = max(scope.classes, 1)
    for variant, engine in ENGINES.items():
        window = telemetry.window(model=model, version=version, variant=variant, engine=engine, scope=scope)
        for number in range(max(predictions // BATCH, 1)):
            said, sure = rng.integers(0, labels, BATCH).tolist(), rng.random(BATCH).tolist()
            window.observe_batch(10 ** rng.normal(4.5, 0.35), said, sure, x[number % len(x)][None])
        window.count("errors", int(rng.integers(1, 10_000)))
        window.count("input_not_finite", int(rng.integers(1, 10_000)))
        for name in broken:
            for kind in KINDS:
                window.count(f"contract.{name}.{kind}", int(rng.integers(1, 1000)))
    beside = telemetry.window(model=model, version=version, variant="none", engine="none")
    names = [f"feedback.from.{source}" for source in SOURCES] + [f"review.{name}" for name in REVIEWS]
    for name in (*names, "feedback.compared", "feedback.alike", "model.fell_back"):
        beside.count(name, int(rng.integers(1, 300)))
    for number in range(300):
        beside.judged(agreed=number % 3 > 0, confidence=float(rng.random()))
    for name in ("delivery.bytes", "delivery.saved_bytes"):
        telemetry._add(name, int(rng.integers(10**5, 10**9)))


def columns(field: Field) -> list[str]:
    """Return what the contract's counters name of an input: its columns, or itself."""
    return [each.name for each in field.columns] or [field.slug]
