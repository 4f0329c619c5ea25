"""What is remembered of the last predictions: what was said, and what people said of it. It ends with the process."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from umbel._fork import Lock

MAX_RECENT = 4096


class Said(NamedTuple):
    """What a model said in a prediction.

    Args:
        label: Index of the class that it gave.
        version: Its version.
        confidence: The class's probability, in [0, 1].
    """

    label: int
    version: int
    confidence: float


# Its appending takes no lock, and it forgets the oldest by itself.
_asked: deque[tuple[str, Said]] = deque(maxlen=MAX_RECENT)


def note(name: str, label: int, version: int, confidence: float) -> None:
    """Remember what a prediction said, until ``MAX_RECENT`` others were noted."""
    _asked.append((name, Said(label, version, confidence)))


def recall(name: str) -> Said | None:
    """Return what a prediction said, if it is remembered."""
    return next((said for known, said in reversed(list(_asked)) if known == name), None)


class Labeled:
    """Who gave which label to the last predictions of a model: whether two people agree can be counted."""

    def __init__(self) -> None:
        self._given: dict[str, tuple[str, int]] = {}
        self._lock = Lock()

    def agrees(self, name: str, annotator: str, label: int) -> bool | None:
        """Remember a label; return whether somebody else gave the same one before.

        Args:
            name: The prediction's id.
            annotator: Who gives the label; nobody is compared with who has no name.
            label: Index of the class.

        Returns:
            None where nobody else is known to have labeled this prediction.
        """
        if not annotator:
            return None
        with self._lock:
            before = self._given.pop(name, None)
            self._given[name] = annotator, label
            if len(self._given) > MAX_RECENT:
                del self._given[next(iter(self._given))]
        return None if before is None or before[0] == annotator else before[1] == label
