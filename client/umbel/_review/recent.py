"""What was said in the predictions whose ids an application asked for: feedback comes back with an id alone."""

from __future__ import annotations

from collections import deque

MAX_RECENT = 4096

# Its appending takes no lock, and it forgets the oldest by itself.
_asked: deque[tuple[str, int, int]] = deque(maxlen=MAX_RECENT)


def note(name: str, label: int, version: int) -> None:
    """Remember the label and the model version of a prediction, until ``MAX_RECENT`` others were noted."""
    _asked.append((name, label, version))


def recall(name: str) -> tuple[int, int] | None:
    """Return the label and the model version of a prediction, if they are remembered."""
    return next(((label, version) for known, label, version in reversed(list(_asked)) if known == name), None)
