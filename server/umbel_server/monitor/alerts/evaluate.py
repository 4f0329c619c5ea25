"""The evaluator: looks at every rule again and again, and lets happen what follows. One acts at a time."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from umbel_proto.errors import UmbelError, UnavailableError
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.act import acting, begin_accepted
from umbel_server.monitor.alerts.candidate_figures import of_candidates
from umbel_server.monitor.alerts.fleet_figures import of_fleet
from umbel_server.monitor.alerts.meters import meters
from umbel_server.monitor.alerts.model_figures import of_models
from umbel_server.monitor.alerts.rules import Rule, Rules, read_rules
from umbel_server.monitor.alerts.scene import MAX_READINGS, Scene
from umbel_server.monitor.alerts.shown import body_of
from umbel_server.monitor.alerts.state import Timing
from umbel_server.store.alerts import Reading, Telling
from umbel_server.store.database import DiskFullError
from umbel_server.store.store import Store

POLL_S = 10.0
LEASE = "alerts"
LEASE_S = 60.0
PRUNE_S = 3600.0
_DAY_S = 86400.0

log = logging.getLogger(__name__)

_MEASURES: Mapping[str, Callable[[Scene, Rule], list[Reading]]] = {
    "fleet": of_fleet,
    "model": of_models,
    "candidate": of_candidates,
}


def rules_of(fleet: FleetDir) -> Rules:
    """Return the rules of a fleet, as its file says now.

    Raises:
        UsageError: A rule or channel cannot be used.
        StorageError: The file cannot be read.
    """
    return read_rules(rules_path(fleet))


def rules_shown(fleet: FleetDir) -> Rules:
    """Return the rules as alerts are shown with; none while the file cannot be read.

    What fires is seen and silenced also while somebody mends the rules, which only lend it a runbook.
    """
    try:
        return rules_of(fleet)
    except UmbelError:
        return Rules(directory=fleet.path)


def rules_path(fleet: FleetDir) -> Path:
    """Return where the rules of a fleet are."""
    return fleet.path / fleet.settings.alerts.rules


def measure(scene: Scene, rule: Rule) -> list[Reading]:
    """Return what a rule finds now; it changes nothing.

    Raises:
        UmbelError: It cannot be told: the store or a file fails.
    """
    return _MEASURES[rule.kind.of](scene, rule)


class Evaluator:
    """Looks at the rules of a fleet.

    What it keeps itself is only when it looked last: killed at any moment, the next one goes on. Rules that are
    edited count from the next look; while they cannot be read, the ones before do.

    Args:
        fleet: The fleet.
        store: Its store.

    Raises:
        UsageError: A rule or channel cannot be used.
    """

    def __init__(self, fleet: FleetDir, store: Store) -> None:
        self._fleet, self._store = fleet, store
        self._name = secrets.token_hex(8)
        self._rules = rules_of(fleet)
        self._stamp = self._stamped()
        self._looked: dict[str, float] = {}
        self._pruned_s = -PRUNE_S

    @property
    def rules(self) -> Rules:
        """The rules that count now."""
        return self._rules

    def run_once(self) -> int:
        """Look at the rules that are due.

        Returns:
            How many alerts changed their state.

        Raises:
            StorageError: The store fails; nothing is half done.
        """
        if not self._store.rollouts.lease(LEASE, self._name, seconds=LEASE_S):
            return 0
        self._read_again()
        changed = 0
        for rule in self._rules.rules.values():
            now_s = self._store.clock()
            if rule.enabled and now_s - self._looked.get(rule.name, -rule.every_s) >= rule.every_s:
                self._looked[rule.name] = now_s
                changed += self._look(rule, now_s)
        changed += self._retire()
        begin_accepted(self._fleet, self._store)
        self._prune()
        return changed

    def run(self, stopped: Callable[[float], bool], *, poll_s: float = POLL_S) -> None:
        """Look until told to stop.

        Args:
            stopped: Waits up to so many seconds and tells whether to stop, as ``Event.wait`` does.
            poll_s: How long to wait between looks, seconds.

        Raises:
            StorageError: The store is damaged.
        """
        while not stopped(poll_s):
            try:
                self.run_once()
            except (DiskFullError, UnavailableError) as exc:
                log.warning("alerts stay as they are for now: %s", exc)
        self._store.rollouts.release(LEASE, self._name)

    def _look(self, rule: Rule, now_s: float) -> int:
        try:
            readings = measure(Scene(self._fleet, self._store, now_s), rule)
        except (DiskFullError, UnavailableError):
            raise
        except UmbelError as exc:
            meters().looked("failed")
            log.warning("rule %s cannot be looked at: %s", rule.name, exc)
            return 0
        meters().looked("done")
        if len(readings) > MAX_READINGS:
            log.warning("rule %s finds %d things: %d are looked at", rule.name, len(readings), MAX_READINGS)
            readings = readings[:MAX_READINGS]
        return self._happen(rule, readings)

    def _happen(self, rule: Rule, readings: list[Reading]) -> int:
        changed = self._store.alerts.look(
            rule.name,
            rule.severity,
            readings,
            rule.timing,
            telling=Telling(
                {channel.name: channel.remind_s for channel in self._rules.told(rule)},
                partial(body_of, self._fleet.name, rule),
            ),
            act=acting(self._store, rule, self._rules.directory),
        )
        for alert in changed:
            log.info("alert %s %s is %s: %s", alert.rule, alert.fingerprint[:8], alert.status, alert.why)
        return len(changed)

    def _retire(self) -> int:
        """End the alerts of rules that are there no more, or are not looked at any longer."""
        gone = self._store.alerts.rules() - {rule.name for rule in self._rules.rules.values() if rule.enabled}
        changed = 0
        for name in gone:
            severity = self._store.alerts.all(rule=name)[0].severity
            rule = Rule(name, "error_rate", 0.0, severity=severity, timing=Timing())  # type: ignore[arg-type]
            changed += self._happen(rule, [])
        return changed

    def _read_again(self) -> None:
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._rules = rules_of(self._fleet)
        except UmbelError as exc:
            log.warning("the rules stay as they were: %s", exc)
            return
        self._looked.clear()
        log.info("%d rules and %d channels are read", len(self._rules.rules), len(self._rules.channels))

    def _stamped(self) -> tuple[int, int] | None:
        try:
            found = rules_path(self._fleet).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def _prune(self) -> None:
        now_s = self._store.clock()
        if now_s - self._pruned_s < PRUNE_S:
            return
        self._pruned_s = now_s
        before_s = now_s - self._fleet.settings.alerts.keep_days * _DAY_S
        self._store.alerts.prune(before_s=before_s)
        self._store.notices.prune(before_s=before_s)
