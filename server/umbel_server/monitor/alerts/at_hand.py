"""Alerts where the fleet's directory is at hand, as commands read and change them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umbel_proto.errors import UsageError
from umbel_server.access.actor import local_actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.act import require_possible
from umbel_server.monitor.alerts.evaluate import rules_of, rules_shown
from umbel_server.monitor.alerts.rules import Rules
from umbel_server.monitor.alerts.send import Sender
from umbel_server.monitor.alerts.shown import (
    alert_json,
    channel_json,
    event_json,
    notice_json,
    proposed_json,
    rule_json,
    trial_body,
)
from umbel_server.store.proposed_runs import ProposedRun
from umbel_server.store.store import Store


class AlertsAtHand:
    """The alerts of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def all(self, states: Sequence[str], rule: str | None) -> list[dict[str, Any]]:
        """Return alerts in some states, those that began last first."""
        rules = rules_shown(self._fleet)
        return [alert_json(each, rules) for each in self._store.alerts.all(states=states, rule=rule)]

    def show(self, name: str) -> dict[str, Any]:
        """Return an alert, and what happened to it."""
        return shown(self._fleet, self._store, name)

    def acknowledge(self, name: str, reason: str) -> dict[str, Any]:
        """Note that somebody takes care of an alert."""
        alert = self._store.alerts.acknowledge(name, actor=local_actor(), reason=reason)
        return self._changed(alert.fingerprint)

    def silence(self, name: str, seconds: float, reason: str) -> dict[str, Any]:
        """Hear nothing of an alert for so long."""
        until_s = self._store.clock() + seconds
        alert = self._store.alerts.silence(name, until_s=until_s, actor=local_actor(), reason=reason)
        return self._changed(alert.fingerprint)

    def unsilence(self, name: str, reason: str) -> dict[str, Any]:
        """End a silence."""
        alert = self._store.alerts.unsilence(name, actor=local_actor(), reason=reason)
        return self._changed(alert.fingerprint)

    def rules(self) -> dict[str, Any]:
        """Return the rules and channels."""
        return rules_json(rules_of(self._fleet))

    def test(self, channel: str) -> str:
        """Tell a channel something now; return what came of it.

        Raises:
            UsageError: There is no such channel.
            UnavailableError: It does not answer, or refuses.
        """
        found = rules_of(self._fleet).channels.get(channel)
        if found is None:
            raise unknown_channel(channel, rules_of(self._fleet))
        body = trial_body(self._fleet.name, channel)
        Sender(self._fleet.path, os.environ).send(found, 0, body, now_s=self._store.clock())
        return f"Channel {channel} took it."

    def notices(self, limit: int) -> list[dict[str, Any]]:
        """Return what was told, or is to be, the newest first."""
        return [notice_json(each) for each in self._store.notices.recent(limit=limit)]

    def proposals(self) -> list[dict[str, Any]]:
        """Return the runs that alerts propose, the newest first."""
        return [proposed_json(each) for each in self._store.proposed_runs.all()]

    def accept(self, number: int, reason: str) -> dict[str, Any]:
        """Let a proposed run begin."""
        require_possible(self._fleet, self._store, dict(self._store.proposed_runs.get(number).plan))
        return self._decided(self._store.proposed_runs.accept(number, actor=local_actor(), reason=reason))

    def decline(self, number: int, reason: str) -> dict[str, Any]:
        """Let a proposed run be."""
        return self._decided(self._store.proposed_runs.decline(number, actor=local_actor(), reason=reason))

    def _decided(self, proposed: ProposedRun) -> dict[str, Any]:
        keep_checkpoint(self._fleet, self._store)
        return proposed_json(proposed)

    def _changed(self, name: str) -> dict[str, Any]:
        keep_checkpoint(self._fleet, self._store)
        return shown(self._fleet, self._store, name)


def shown(fleet: FleetDir, store: Store, name: str) -> dict[str, Any]:
    """Return an alert, and what happened to it.

    Raises:
        UsageError: There is none.
    """
    alert = store.alerts.get(name)
    events = [event_json(each) for each in store.alerts.events(alert.fingerprint)]
    return {**alert_json(alert, rules_shown(fleet)), "events": events}


def rules_json(rules: Rules) -> dict[str, Any]:
    """Return rules and channels."""
    return {
        "rules": [rule_json(each, rules) for each in rules.rules.values()],
        "channels": [channel_json(each) for each in rules.channels.values()],
    }


def unknown_channel(name: str, rules: Rules) -> UsageError:
    """Return the sentence that there is no such channel."""
    known = ", ".join(rules.channels) or "none: alerts.toml has no [[channel]]"
    return UsageError(f"There is no channel {name[:40]!r}; there is {known}.")
