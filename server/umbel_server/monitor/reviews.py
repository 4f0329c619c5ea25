"""What people did with predictions that waited for them, as devices count it: never an example, only how many.

The examples stay on the devices, where ``umbel review`` shows them to whoever is there. These are sums over all devices,
which are there at once of a fleet of any size. How far a device that lies may move a rate, and how much devices differ,
only figures of single devices tell: ``umbel_server.monitor.performance``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from umbel_server.monitor.performance import CHANGED, RESOLVED
from umbel_server.monitor.rates import wilson
from umbel_server.store.cohorts import SPANS, Span
from umbel_server.store.store import Store

ASKED, DROPPED, OVERRIDDEN = "review.asked", "review.dropped", "review.overridden"
COMPARED, ALIKE = "feedback.compared", "feedback.alike"
_TOLD = ("review.", COMPARED)
_BY_HOUR_S = 3 * 86400.0
"""Of longer stretches, whole days are summed: fewer rows, and hours are not kept for so long."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many of some were so.

    Args:
        value: In 0..1.
        low: Where its interval of 95 % begins, if each was decided by itself.
        high: Where it ends.
        counted: Of how many.
    """

    value: float
    low: float
    high: float
    counted: int


@dataclass(frozen=True, slots=True)
class Reviews:
    """The reviews of a version in some time.

    Args:
        model: The model.
        version: The version.
        asked: Predictions that began to wait for a person.
        resolved: Those that a person decided on; some may have been asked before.
        changed: Those of them that the person changed.
        overridden: Answers that a person changed which waited for nobody, or were decided before.
        dropped: Given up undecided, for want of room or time.
        agreement: How many of the decided ones people let stand; None: nobody decided anything.
        alike: How often two people said the same of one prediction; None: no two were asked about one.
        since_s: From when on, Unix seconds.
        until_s: To when.
    """

    model: str
    version: int
    asked: int
    resolved: int
    changed: int
    overridden: int
    dropped: int
    agreement: Share | None
    alike: Share | None
    since_s: float
    until_s: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def reviews(store: Store, *, since_s: float, until_s: float) -> tuple[Reviews, ...]:
    """Return the reviews of each version that any device told of, by model and version.

    Args:
        store: The store.
        since_s: From when on, Unix seconds by the devices' clocks; of more than three days, the day that it is in.
        until_s: To when.
    """
    span: Span = "hour" if until_s - since_s <= _BY_HOUR_S else "day"
    begin_s = since_s - since_s % SPANS[span]
    models = sorted({model for model, _ in store.cohorts.models(since_s=begin_s - begin_s % SPANS["day"])})
    counts: dict[tuple[str, int], Counter[str]] = {}
    for model in models:
        for told in store.cohorts.totals(model, span=span, since_s=begin_s, until_s=until_s, wanted=()):
            counts.setdefault((model, told.version), Counter()).update(told.counters)
    return tuple(
        Reviews(
            model,
            version,
            asked=told[ASKED],
            resolved=told[RESOLVED],
            changed=told[CHANGED],
            overridden=told[OVERRIDDEN],
            dropped=told[DROPPED],
            agreement=share(told[RESOLVED] - told[CHANGED], told[RESOLVED]),
            alike=share(told[ALIKE], told[COMPARED]),
            since_s=begin_s,
            until_s=until_s,
        )
        for (model, version), told in sorted(counts.items())
        if any(name.startswith(_TOLD) and count for name, count in told.items())
    )


def share(hits: int, of: int) -> Share | None:
    """Return how many of some were so; None where there are none, or devices told of more than there can be."""
    return Share(hits / of, *wilson(hits / of, of), of) if of and 0 <= hits <= of else None
