"""A model that an application asks: contract check, engine, confidence, decision."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel.engines import Engine
from umbel_proto.package import Package

Decision = Literal["automatic", "review"]


class Window(Protocol):
    """What a model tells telemetry. It counts and keeps no input; it never blocks."""

    def observe(
        self, *, latency_us: float, label: int, confidence: float, inputs: NDArray[Any] | None
    ) -> None:
        """Count one prediction.

        Args:
            latency_us: Time it took, microseconds; in a batch, its share of the batch's.
            label: The label given.
            confidence: Its probability, in [0, 1].
            inputs: The example, for statistics; the window may look at one in many.
        """

    def error(self) -> None:
        """Count an input that was refused, or a prediction that failed."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model says about one example.

    Args:
        label: Index of the likeliest class.
        name: Its name.
        confidence: Its probability, in [0, 1].
        decision: ``automatic`` where the confidence reaches the model's threshold; otherwise a person
            should have a look: ``review``.
        model_version: Version of the model that said so.
        id: 16 hexadecimal digits, unique: feedback refers to it.
        probabilities: Of every class, shape (classes,).
    """

    label: int
    name: str
    confidence: float
    decision: Decision
    model_version: int
    id: str
    probabilities: NDArray[np.float32] = field(repr=False)


class Model:
    """A loaded model. Any number of threads may ask it at once; no question waits on network or disk.

    Args:
        package: Where the model comes from.
        engine: What runs it.
        window: What counts its predictions, if telemetry is on.
    """

    def __init__(self, package: Package, engine: Engine, window: Window | None = None) -> None:
        manifest = package.manifest
        self._manifest = manifest
        self._engine = engine
        self._window = window
        # Looked up once: a prediction takes microseconds.
        self._check = manifest.contract.fields[0].check
        self._labels: Sequence[str] = manifest.labels
        self._threshold = manifest.decision_threshold

    @property
    def name(self) -> str:
        """The model's name."""
        return self._manifest.model

    @property
    def version(self) -> int:
        """Its version."""
        return self._manifest.version

    @property
    def variant(self) -> str:
        """The variant that runs."""
        return self._engine.variant

    @property
    def engine(self) -> str:
        """The engine that runs it."""
        return self._engine.name

    @property
    def labels(self) -> Sequence[str]:
        """Name of each class."""
        return self._labels

    def predict(self, x: object) -> Prediction | list[Prediction]:
        """Return a prediction for one example, or a list of them for a batch.

        Args:
            x: One example of the contract's shape, or a batch of them, in the contract's unit.

        Raises:
            UsageError: The input breaks the data contract.
        """
        begin = time.perf_counter()
        batch, single, probabilities = self._run(x)
        labels = probabilities.argmax(axis=1).tolist()
        predictions = []
        for row, label in zip(probabilities, labels, strict=True):
            confidence = float(row[label])
            decision: Decision = "automatic" if confidence >= self._threshold else "review"
            predictions.append(
                Prediction(
                    label,
                    self._labels[label],
                    confidence,
                    decision,
                    self._manifest.version,
                    secrets.token_hex(8),
                    row,
                )
            )
        if self._window is not None:
            latency_us = 1e6 * (time.perf_counter() - begin) / len(predictions)
            for example, prediction in zip(batch, predictions, strict=True):
                self._window.observe(
                    latency_us=latency_us,
                    label=prediction.label,
                    confidence=prediction.confidence,
                    inputs=example,
                )
        return predictions[0] if single else predictions

    def predict_proba(self, x: object) -> NDArray[np.float32]:
        """Return class probabilities: shape (classes,) for one example, (n, classes) for a batch.

        Nothing is counted: this is for evaluation.

        Raises:
            UsageError: The input breaks the data contract.
        """
        _, single, probabilities = self._run(x)
        return probabilities[0] if single else probabilities

    def _run(self, x: object) -> tuple[NDArray[Any], bool, NDArray[np.float32]]:
        try:
            batch, single = self._check(x)
            return batch, single, self._engine.probabilities(batch)
        except Exception:
            if self._window is not None:
                self._window.error()
            raise
