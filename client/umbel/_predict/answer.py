"""What a model says: a prediction or an estimate. To make one takes a fraction of a microsecond."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from umbel._fork import Lock, renew_in_child
from umbel._review.recent import note

Decision = Literal["automatic", "review"]


class _Numbers:
    """Gives every prediction of a process its number. A fork begins elsewhere."""

    def __init__(self) -> None:
        self._renew()
        renew_in_child(self._renew)

    def _renew(self) -> None:
        """Begin at a place that no other process of this device will come to."""
        self.next: Callable[[], int] = itertools.count(secrets.randbits(64)).__next__


_numbers, _drawing = _Numbers(), Lock()


def new_id() -> int:
    """Return the number of a prediction: of 64 bits, unique on this device for all practical purposes."""
    return _numbers.next()


class _Answer:
    """What has an id. Its number is drawn when somebody asks for that: most answers are never asked."""

    __slots__ = ("_number",)

    @property
    def id(self) -> str:
        """16 hexadecimal digits, unique: feedback refers to it."""
        try:
            number = self._number
        except AttributeError:
            number = self._drawn()
        return f"{number & (1 << 64) - 1:016x}"

    def __getstate__(self) -> object:
        """What is copied or pickled: with its number, as a copy is the same answer."""
        self._drawn()
        return super().__getstate__()

    def _drawn(self) -> int:
        # Of two threads that ask at once the later one finds what the other drew.
        with _drawing:
            if not hasattr(self, "_number"):
                self._number: int = new_id()
            return self._number


class Prediction(_Answer):
    """What a model says about one example.

    Args:
        label: Index of the likeliest class.
        name: Its name.
        confidence: Its probability, in [0, 1].
        decision: ``automatic`` where the confidence reaches the model's threshold; otherwise a person
            should have a look: ``review``.
        model_version: Version of the model that said so.
        probabilities: Of every class, in the precision of float32: an array, or its bytes.
    """

    # A frozen data class takes five times as long to make as a small model to answer.
    __slots__ = ("_probabilities", "confidence", "decision", "label", "model_version", "name")

    def __init__(
        self,
        label: int,
        name: str,
        confidence: float,
        decision: Decision,
        model_version: int,
        probabilities: bytes | NDArray[np.float32],
    ) -> None:
        self.label: int = label
        self.name: str = name
        self.confidence: float = confidence
        self.decision: Decision = decision
        self.model_version: int = model_version
        self._probabilities = probabilities

    @property
    def id(self) -> str:
        """16 hexadecimal digits, unique: feedback refers to it."""
        name = super().id
        note(name, self.label, self.model_version, self.confidence)
        return name

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Of every class, shape (classes,)."""
        if isinstance(self._probabilities, bytes):
            self._probabilities = np.frombuffer(self._probabilities, np.float32).copy()
        return self._probabilities

    def __repr__(self) -> str:
        return (
            f"Prediction(label={self.label}, name={self.name!r}, confidence={self.confidence:.4g}, "
            f"decision={self.decision!r}, model_version={self.model_version}, id={self.id!r})"
        )


class Estimate(_Answer):
    """What a model that answers with numbers says about one example. It does not say how sure it is.

    Args:
        values: The numbers, of the model's own shape.
        model_version: Version of the model that said so.
    """

    __slots__ = ("model_version", "values")

    def __init__(self, values: NDArray[np.float32], model_version: int) -> None:
        self.values: NDArray[np.float32] = values
        self.model_version: int = model_version

    def __repr__(self) -> str:
        return f"Estimate(shape={self.values.shape}, model_version={self.model_version}, id={self.id!r})"
