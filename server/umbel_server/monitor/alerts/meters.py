"""What the service of alerts counts, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Counter


class AlertMeters:
    """The counters of the process that looks at rules."""

    def __init__(self) -> None:
        from prometheus_client import Counter

        self._looks: Counter = Counter(
            "umbel_alert_looks", "Looks at rules: done, or failed, of which the log says why.", ["outcome"]
        )
        self._notices: Counter = Counter(
            "umbel_alert_notices",
            "Notices, by channel and what became of them: sent, failed, to be tried again, or given up.",
            ["channel", "outcome"],
        )

    def looked(self, outcome: str) -> None:
        """Count a look at a rule."""
        self._looks.labels(outcome).inc()

    def sent(self, channel: str, outcome: str) -> None:
        """Count what became of a notice."""
        self._notices.labels(channel, outcome).inc()


_meters: list[AlertMeters] = []


def meters() -> AlertMeters:
    """Return the process's counters, made when first asked for."""
    if not _meters:
        _meters.append(AlertMeters())
    return _meters[0]
