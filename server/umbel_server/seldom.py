"""Say what goes wrong when it begins, and then now and then while it lasts: not each time that something is tried again."""

from __future__ import annotations

from umbel_server.clock import Clock

EVERY_S = 300.0
"""How often a sentence is said that is true all the time."""


class Seldom:
    """Tells whether a sentence is to be said now.

    Args:
        clock: Tells the time. One that is set back lets everything be said again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said_s: dict[str, float] = {}

    def lets(self, sentence: str) -> bool:
        """Return whether it was not said within the last five minutes; then it counts as said."""
        now_s = self._clock()
        self._said_s = {each: at_s for each, at_s in self._said_s.items() if 0 <= now_s - at_s < EVERY_S}
        if sentence in self._said_s:
            return False
        self._said_s[sentence] = now_s
        return True
