"""Alerts as their screens show them: what fires, who takes care of it, what rules look for, and what was told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UmbelError
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.channels import kind_of
from umbel_server.monitor.alerts.evaluate import rules_of
from umbel_server.monitor.alerts.rules import SEVERITIES, Rule, Rules
from umbel_server.store.alerts import OPEN, Alert
from umbel_server.store.store import Store

WORDS: Mapping[str, tuple[str, str]] = {
    "pending": ("pending", "muted"),
    "firing": ("firing", "bad"),
    "acknowledged": ("acknowledged", "warn"),
    "silenced": ("silenced", "hold"),
    "resolved": ("resolved", "ok"),
}
SEVERITY_TONES: Mapping[str, str] = {"critical": "bad", "warning": "warn", "info": "info"}


@dataclass(frozen=True, slots=True)
class AlertRow:
    """An alert in the list.

    Args:
        alert: The alert.
        rule: Its rule, as alerts.toml says now; None: it is there no more.
    """

    alert: Alert
    rule: Rule | None

    @property
    def who(self) -> str:
        """Who takes care of it or silenced it; empty: nobody."""
        return getattr(self.alert.state, "who", "")

    @property
    def reason(self) -> str:
        """Why, in their words."""
        return getattr(self.alert.state, "reason", "")

    @property
    def until_s(self) -> float | None:
        """When its silence ends."""
        return getattr(self.alert.state, "until_s", None)

    @property
    def about(self) -> str:
        """What it is about, in a line."""
        return (
            ", ".join(f"{name} {value}" for name, value in sorted(self.alert.labels.items())) or "the fleet"
        )

    @property
    def runbook(self) -> str:
        """Where to read what to do, if it is a link that a browser may follow; else empty."""
        return link_of(self.rule.runbook) if self.rule is not None else ""

    @property
    def where(self) -> str:
        """The screen that shows what it is about."""
        labels = self.alert.labels
        if rollout := labels.get("rollout"):
            return f"/rollouts/{rollout}"
        if model := labels.get("model"):
            version = labels.get("version")
            return f"/models/{model}/{version}" if version else f"/models/{model}"
        return "/health"


def link_of(text: str) -> str:
    """Return a link to another site, if a text is one: no script, and no path of ours."""
    return text if text.startswith(("https://", "http://")) else ""


def alert_rows(
    store: Store,
    rules: Rules,
    *,
    states: Sequence[str] = OPEN,
    rule: str = "",
    severity: str = "",
    who: str = "",
) -> tuple[AlertRow, ...]:
    """Return alerts, the worst that fire first, those that began last before others.

    Args:
        store: The store.
        rules: The rules as they are now.
        states: In these states only.
        rule: Of this rule only; empty: of any.
        severity: Of this severity only; empty: of any.
        who: That this account takes care of only; empty: anybody's and nobody's.
    """
    found = [
        AlertRow(each, rules.rules.get(each.rule))
        for each in store.alerts.all(states=states, rule=rule or None)
        if not severity or each.severity == severity
    ]
    if who:
        found = [each for each in found if each.who == who]
    order: dict[str, int] = {name: place for place, name in enumerate(SEVERITIES)}
    return tuple(sorted(found, key=lambda each: (each.alert.status != "firing", order[each.alert.severity])))


def rules_now(fleet: FleetDir) -> tuple[Rules, str]:
    """Return the rules of a fleet, and what is wrong with its file; with a mistake in it there are none."""
    try:
        return rules_of(fleet), ""
    except UmbelError as exc:
        return Rules(), str(exc)


def channel_rows(rules: Rules) -> list[dict[str, Any]]:
    """Return the channels, without what may be secret of them."""
    return [
        {
            "name": each.name,
            "kind": kind_of(each),
            "severities": ", ".join(each.severities),
            "remind_s": each.remind_s or None,
            "rules": sum(each in rules.told(rule) for rule in rules.rules.values()),
        }
        for each in rules.channels.values()
    ]
