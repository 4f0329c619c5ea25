"""What is counted of a version that is asked beside the one that answers: of the same size however often it was asked.

Source: docs/spec/telemetry.md, section 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from umbel._fork import Lock, renew_in_child
from umbel._telemetry.randomize import AGREEMENT, DIFFERENCE, SHADOW_LATENCY
from umbel._telemetry.scope import NOTHING, Scope
from umbel._telemetry.window import Tally, _closed
from umbel_proto.histogram import LATENCY_US, SHIFT, whole_edges
from umbel_proto.privacy.stated import LABELS

if TYPE_CHECKING:
    from umbel_proto.wire import telemetry_pb2 as pb


class Comparison(Protocol):
    """Where it is counted what a candidate says to what the active version has answered."""

    def compared(self, *, agreed: bool, difference: float | None, latency_ns: float) -> None:
        """See ``ComparisonWindow``."""
        ...

    def error(self) -> None:
        """See ``ComparisonWindow``."""
        ...

    def dropped(self, by: int) -> None:
        """See ``ComparisonWindow``."""
        ...


class ComparisonWindow:
    """Counts what a candidate says to what the active version has answered.

    Args:
        model: The model's name.
        version: The candidate's version.
        variant: Its variant.
        engine: What computes it.
        scope: What both versions' packages ask: what is randomized, and how.
        now_s: When it begins, Unix seconds.
    """

    def __init__(
        self, *, model: str, version: int, variant: str, engine: str, scope: Scope = NOTHING, now_s: float
    ) -> None:
        self._of = {"model": model, "version": version, "variant": variant, "engine": engine}
        # An agreement tells of a label: where labels are hidden it is.
        self._hidden = LABELS in scope.epsilon
        self._scope = scope
        self._lock = Lock()
        self._begin(now_s)
        renew_in_child(self._renew)

    def _begin(self, now_s: float) -> None:
        self._start_s = now_s
        self._counters: dict[str, int] = {}
        self._agreement = Tally(AGREEMENT, whole_edges(2))
        self._difference = Tally(DIFFERENCE, SHIFT)
        self._latency = Tally(SHADOW_LATENCY, LATENCY_US)

    def compared(self, *, agreed: bool, difference: float | None, latency_ns: float) -> None:
        """Count one answer of the candidate.

        Args:
            agreed: Whether it says what the active version said.
            difference: Of a classification, how much surer of its label it is; None where there is no confidence.
            latency_ns: How long it took, nanoseconds.
        """
        with self._lock:
            self._count("shadow.compared")
            if self._hidden:
                self._agreement.add(float(agreed))
            elif agreed:
                self._count("shadow.agreed")
            if difference is not None:
                self._difference.add(difference)
            self._latency.add(latency_ns / 1000)

    def error(self) -> None:
        """Count something that the active version answered and the candidate did not."""
        with self._lock:
            self._count("shadow.errors")

    def dropped(self, by: int) -> None:
        """Count answers that were chosen for a comparison and could not wait for it."""
        if by:
            with self._lock:
                self._count("shadow.dropped", by)

    def take(self, now_s: float) -> pb.Window | None:
        """Close the window and begin the next; None if nothing happened in it."""
        with self._lock:
            start_s, counters = self._start_s, self._counters
            tallies = self._agreement, self._difference, self._latency
            self._begin(now_s)
        if not counters:
            return None
        return _closed(self._of, start_s, now_s, counters, tallies, self._scope)

    def _renew(self) -> None:
        """In a forked process: what the parent compared it reports itself."""
        self._begin(self._start_s)

    def _count(self, name: str, by: int = 1) -> None:
        self._counters[name] = self._counters.get(name, 0) + by


def strictest(one: Scope, other: Scope) -> Scope:
    """Return what hides all that either hides: a comparison tells of two versions.

    Args:
        one: What one package asks.
        other: What the other one asks.
    """
    epsilon = dict(one.epsilon)
    for task, value in other.epsilon.items():
        epsilon[task] = min(value, epsilon.get(task, value))
    return Scope(epsilon=epsilon)
