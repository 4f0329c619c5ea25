"""How often a node asks its SuperLink for messages: often in a round, seldom otherwise.

Each answer costs the SuperLink 5 ms of CPU, an empty one too, and all of a fleet's devices ask.
"""

from __future__ import annotations

import secrets

LEAST_S, MOST_S = 0.05, 1.0
"""Bounds on the pause while a round is open."""
BUSY_FOR_S = 10.0
"""How long after the last message a round counts as open."""
NEW_POLL_S = 0.4
"""How often to ask, give or take half, when just online: a round that waits for devices begins soon."""
IDLE_POLL_S = 2.0
"""How often to ask otherwise, give or take half."""


class Pace:
    """When to ask next.

    Args:
        now_s: When the node came online. All times are a monotonic clock's, seconds.
    """

    def __init__(self, now_s: float) -> None:
        self._last_s = now_s
        self._messages = 0

    def after_answer(self, asked_s: float, now_s: float) -> float:
        """Return the pause after a message was answered: half the time since the one before.

        Where none came lately, the time that the answer took stands for it: the others need about
        as long.

        Args:
            asked_s: When the message was received.
            now_s: When it was answered.
        """
        in_round = self._messages > 0 and asked_s < self._last_s + BUSY_FOR_S
        gap_s = now_s - (self._last_s if in_round else asked_s)
        self._last_s = now_s
        self._messages += 1
        return min(gap_s / 2, MOST_S)

    def after_nothing(self, now_s: float) -> float:
        """Return the pause when there was no message: an eighth of the time since the last one.

        A phase is so noticed an eighth of its length late at most, and a busy SuperLink, which
        answers slowly, is asked less.
        """
        since_s = now_s - self._last_s
        if since_s >= BUSY_FOR_S:
            return jitter(1.5 * IDLE_POLL_S)
        if not self._messages:
            return jitter(1.5 * NEW_POLL_S)
        return min(max(LEAST_S, since_s / 8), MOST_S)


def jitter(pause_s: float) -> float:
    """Return a random time between a third of ``pause_s`` and all of it, so that a fleet spreads out."""
    return pause_s * (1 + 2 * secrets.randbelow(1 << 16) / (1 << 16)) / 3
