"""What people did with predictions that waited for them, as devices count it: never an example, only how many.

The examples stay on the devices, where ``umbel review`` shows them to whoever is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from umbel_server.monitor.performance import CHANGED, RESOLVED
from umbel_server.monitor.rates import Rate, rate
from umbel_server.store.reports import Report
from umbel_server.store.store import Store

ASKED, DROPPED, OVERRIDDEN = "review.asked", "review.dropped", "review.overridden"
COMPARED, ALIKE = "feedback.compared", "feedback.alike"
_TOLD = ("review.", COMPARED)


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
        devices: How many devices told of any.
        since_s: From when on, Unix seconds.
        until_s: To when.
        read: Of how many of the fleet's devices this is.
        trusted: How many there are, neither revoked nor quarantined.
    """

    model: str
    version: int
    asked: int
    resolved: int
    changed: int
    overridden: int
    dropped: int
    agreement: Rate | None
    alike: Rate | None
    devices: int
    since_s: float
    until_s: float
    read: int
    trusted: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def reviews(store: Store, *, since_s: float, until_s: float) -> tuple[Reviews, ...]:
    """Return the reviews of each version that any device told of, by model and version."""
    found = []
    for model, version in store.cohorts.models(since_s=since_s - since_s % 86400):
        told = store.reports.of(model, version, since_s=since_s, until_s=until_s, wanted=())
        some = [each for each in told.devices if any(name.startswith(_TOLD) for name in each.counters)]
        if some:
            found.append(
                Reviews(
                    model,
                    version,
                    asked=_sum(some, ASKED),
                    resolved=_sum(some, RESOLVED),
                    changed=_sum(some, CHANGED),
                    overridden=_sum(some, OVERRIDDEN),
                    dropped=_sum(some, DROPPED),
                    agreement=_agreement(some),
                    alike=rate(
                        (each.counters.get(ALIKE, 0), each.counters.get(COMPARED, 0)) for each in some
                    ),
                    devices=len(some),
                    since_s=since_s,
                    until_s=until_s,
                    read=told.asked,
                    trusted=told.trusted,
                )
            )
    return tuple(found)


def _agreement(told: Sequence[Report]) -> Rate | None:
    """Return how many decided ones stand: what each device left, of what it decided."""
    return rate(
        (each.counters.get(RESOLVED, 0) - each.counters.get(CHANGED, 0), each.counters.get(RESOLVED, 0))
        for each in told
    )


def _sum(told: Sequence[Report], name: str) -> int:
    return sum(each.counters.get(name, 0) for each in told)
