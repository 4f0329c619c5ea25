"""Which cohorts may be shown: none that is small, and none from which a small one follows by subtracting.

Source: Hundepool et al., "Statistical Disclosure Control", Wiley 2012, section 4.4 (secondary suppression).
"""

from __future__ import annotations

from collections.abc import Mapping

Members = frozenset[str]


def shown(cohorts: Mapping[str, Members], everybody: Members, least: int) -> frozenset[str]:
    """Return the cohorts whose figures may be shown beside those of everybody.

    Args:
        cohorts: Devices of each cohort, by name; a device may be in several, or none.
        everybody: All devices.
        least: Of how many devices anything shown is at least, and every difference of two things shown.
    """
    open_ = {name for name, members in cohorts.items() if len(members) >= least}
    while True:
        hidden = _telling(cohorts, everybody, open_, least)
        if hidden is None:
            return frozenset(open_)
        open_.discard(hidden)


def _telling(cohorts: Mapping[str, Members], everybody: Members, open_: set[str], least: int) -> str | None:
    """Return a cohort to hide, because with the others it tells of few devices; None: there is none."""
    order = sorted(open_, key=lambda name: (len(cohorts[name]), name))
    for name in order:
        if _few(everybody - cohorts[name], least):
            return name
        for other in order:
            if cohorts[name] < cohorts[other] and _few(cohorts[other] - cohorts[name], least):
                return name
    rest = everybody.difference(*(cohorts[name] for name in open_))
    # All that is shown, taken off everybody, must not leave a few.
    return order[0] if order and _few(rest, least) else None


def _few(devices: Members, least: int) -> bool:
    return 0 < len(devices) < least
