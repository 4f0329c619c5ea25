"""What rules find of the fleet: who is silent, what waits, what was refused, what ends, what is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from sqlalchemy import func, select

from umbel_server.monitor.alerts.rules import Rule
from umbel_server.monitor.alerts.scene import Scene, percent
from umbel_server.monitor.report import ONLINE_S, STALE_S
from umbel_server.monitor.spending import spending
from umbel_server.services.vitals import expiries
from umbel_server.store.admission import ACTIVE
from umbel_server.store.alerts import Reading
from umbel_server.store.batches import REJECTED, SEALED
from umbel_server.store.tables import batches, devices

_DAY_S = 86400.0


def of_fleet(scene: Scene, rule: Rule) -> list[Reading]:
    """Return what a rule about the fleet finds."""
    return _FIGURES[rule.what](scene, rule)


def _offline(scene: Scene, rule: Rule) -> list[Reading]:
    return _silent(scene, rule, STALE_S, "a day")


def _stale(scene: Scene, rule: Rule) -> list[Reading]:
    return _silent(scene, rule, ONLINE_S, "two minutes")


def _silent(scene: Scene, rule: Rule, patience_s: float, words: str) -> list[Reading]:
    """Devices that never called since they enrolled are not silent: they were not there yet."""
    there = (
        devices.c.status == ACTIVE,
        devices.c.quarantined_s.is_(None),
        devices.c.last_seen_s > devices.c.enrolled_s,
    )
    query = select(func.count(), func.min(devices.c.last_seen_s)).where(*there)
    silent = query.where(devices.c.last_seen_s < scene.now_s - patience_s)
    with scene.store.database.read() as connection:
        count = connection.execute(query).one()[0]
        missing = connection.execute(silent).one()[0]
    return _share(rule, missing, count, f"devices were not heard of for {words}")


def _certificates(scene: Scene, rule: Rule) -> list[Reading]:
    query = select(func.count()).where(devices.c.status == ACTIVE)
    with scene.store.database.read() as connection:
        count = connection.execute(query).scalar_one()
        ended = connection.execute(query.where(devices.c.certificate_not_after_s < scene.now_s)).scalar_one()
    return _share(rule, ended, count, "devices have a certificate that has ended")


def _share(rule: Rule, some: int, count: int, words: str) -> list[Reading]:
    if count < rule.least_devices:
        return [Reading({}, None, None, f"there are {count} devices, {rule.least_devices} are needed")]
    share = some / count
    why = f"{some:,} of {count:,} {words} ({percent(share)}, limit {percent(rule.threshold)})"
    return [Reading({}, share > rule.threshold, share, why)]


def _lag(scene: Scene, rule: Rule) -> list[Reading]:
    query = select(func.count(), func.min(batches.c.received_s)).where(batches.c.state == SEALED)
    with scene.store.database.read() as connection:
        waiting, oldest_s = connection.execute(query).one()
    lag_s = 0.0 if oldest_s is None else max(scene.now_s - oldest_s, 0.0)
    why = f"{waiting:,} sealed batches wait for the opener, the oldest for {lag_s:,.0f} s (limit {rule.threshold:,.0f} s)"
    return [Reading({}, lag_s > rule.threshold, lag_s, why)]


def _rejected(scene: Scene, rule: Rule) -> list[Reading]:
    query = (
        select(batches.c.state, func.count())
        .where(batches.c.received_s >= scene.now_s - rule.window_s)
        .group_by(batches.c.state)
    )
    with scene.store.database.read() as connection:
        counts: dict[str, int] = dict(iter(connection.execute(query)))
    count, refused = sum(counts.values()), counts.get(REJECTED, 0)
    if not count:
        return [Reading({}, False, 0.0, "no batch came in this time")]
    share = refused / count
    why = f"the opener refused {refused:,} of {count:,} batches ({percent(share)}, limit {percent(rule.threshold)})"
    return [Reading({}, share > rule.threshold, share, why)]


def _expiry(scene: Scene, rule: Rule) -> list[Reading]:
    return [
        Reading({"what": what}, days < rule.threshold, days, _ends(what, days, rule.threshold))
        for what, days in ((what, (ends_s - scene.now_s) / _DAY_S) for what, ends_s in expiries(scene.fleet))
        if what in _ends_of(rule)
    ]


def _ends_of(rule: Rule) -> frozenset[str]:
    """What renews itself within a day or a week is another matter than what people sign."""
    short = frozenset({"timestamp", "snapshot"})
    people = frozenset({"ca", "server", "root", "targets"})
    return short | people if rule.threshold < 1 else people


def _ends(what: str, days: float, threshold: float) -> str:
    kind = "certificate" if what in ("ca", "server") else "signed metadata"
    when = f"ended {-days:.1f} days ago" if days < 0 else f"ends in {days:.1f} days"
    return f"the {what} {kind} {when} (limit {threshold:g} days)"


def _budget(scene: Scene, rule: Rule) -> list[Reading]:
    policy = scene.fleet.policy()
    if math.isinf(policy.budget_epsilon):
        return [Reading({}, False, 0.0, "the policy sets no privacy budget")]
    lines = spending(scene.store, scene.fleet.runs, policy.budget_delta)
    shares = [each.epsilon / policy.budget_epsilon for each in lines]
    most = max(shares, default=0.0)
    above = sum(share > rule.threshold for share in shares)
    why = (
        f"{above:,} of {len(shares):,} devices that were charged have spent more than {percent(rule.threshold)} of "
        f"epsilon {policy.budget_epsilon:g}, at most {percent(most)}"
    )
    return [Reading({}, most > rule.threshold, most if math.isfinite(most) else None, why)]


_FIGURES: Mapping[str, Callable[[Scene, Rule], list[Reading]]] = {
    "devices_offline": _offline,
    "devices_stale": _stale,
    "device_certificates": _certificates,
    "opener_lag": _lag,
    "rejected_batches": _rejected,
    "expiry": _expiry,
    "privacy_budget": _budget,
}
