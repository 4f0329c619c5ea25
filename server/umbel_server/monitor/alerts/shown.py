"""Alerts, rules, channels and proposed runs as JSON: for commands, the API and those who are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from umbel_server.monitor.alerts.channels import Channel, Mail, kind_of
from umbel_server.monitor.alerts.rules import Rule, Rules
from umbel_server.monitor.alerts.state import Notice, Resolved
from umbel_server.store.alerts import Alert, AlertEvent
from umbel_server.store.notices import Queued
from umbel_server.store.proposed_runs import ProposedRun

MAX_TOLD = 100
"""So many alerts of a rule are told one by one; of more, how many."""
VERSION = 1


def alert_json(alert: Alert, rules: Rules) -> dict[str, Any]:
    """Return an alert; the rule's runbook is as the rules say now."""
    rule, state = rules.rules.get(alert.rule), alert.state
    return {
        "fingerprint": alert.fingerprint,
        "rule": alert.rule,
        "labels": dict(alert.labels),
        "severity": alert.severity,
        "state": alert.status,
        "since_s": state.since_s,
        "until_s": getattr(state, "until_s", None),
        "who": getattr(state, "who", ""),
        "reason": getattr(state, "reason", ""),
        "value": alert.value,
        "why": alert.why,
        "runbook": "" if rule is None else rule.runbook,
        "seen_s": alert.seen_s,
        "told_s": state.told.at_s or None,
        "created_s": alert.created_s,
        "revision": alert.revision,
    }


def event_json(event: AlertEvent) -> dict[str, Any]:
    """Return something that happened to an alert."""
    return {"at_s": event.at_s, "actor": event.actor, "event": event.event, "reason": event.reason}


def rule_json(rule: Rule, rules: Rules) -> dict[str, Any]:
    """Return a rule, and whom it tells."""
    return {
        "rule": rule.name,
        "what": rule.what,
        "means": rule.kind.means,
        "model": None if rule.kind.of == "fleet" else rule.model,
        "version": rule.version,
        "tag": rule.tag,
        "threshold": rule.threshold,
        "window_s": rule.window_s,
        "every_s": rule.every_s,
        "for_s": rule.timing.for_s,
        "severity": rule.severity,
        "runbook": rule.runbook,
        "actions": list(rule.actions),
        "channels": [channel.name for channel in rules.told(rule)],
        "enabled": rule.enabled,
    }


def channel_json(channel: Channel) -> dict[str, Any]:
    """Return a channel without what may be secret of it: its URL too may be."""
    return {
        "channel": channel.name,
        "kind": kind_of(channel),
        "to": ", ".join(channel.to) if isinstance(channel, Mail) else "",
        "severities": list(channel.severities),
        "remind_s": channel.remind_s or None,
    }


def notice_json(notice: Queued) -> dict[str, Any]:
    """Return a notice, without what it says."""
    return {
        "id": notice.id,
        "channel": notice.channel,
        "rule": notice.rule,
        "kind": notice.kind,
        "made_s": notice.made_s,
        "state": notice.state,
        "tries": notice.tries,
        "said": notice.said,
        "done_s": notice.done_s,
    }


def proposed_json(proposed: ProposedRun) -> dict[str, Any]:
    """Return a proposed run."""
    return {
        "id": proposed.id,
        "rule": proposed.rule,
        "alert": proposed.fingerprint,
        "model": str(proposed.model),
        "why": proposed.why,
        "state": proposed.state,
        "made_s": proposed.made_s,
        "decided_s": proposed.decided_s,
        "decided_by": proposed.decided_by,
        "said": proposed.said,
        "run": proposed.run,
        "plan": dict(proposed.plan),
    }


def body_of(fleet: str, rule: Rule, kind: Notice, alerts: Sequence[Alert]) -> dict[str, Any]:
    """Return what channels are told of some alerts of a rule."""
    return {
        "version": VERSION,
        "fleet": fleet,
        "kind": kind.value,
        "rule": rule.name,
        "severity": rule.severity,
        "runbook": rule.runbook,
        "alerts": [_told(alert) for alert in alerts[:MAX_TOLD]],
        "more": max(len(alerts) - MAX_TOLD, 0),
    }


def trial_body(fleet: str, channel: str) -> dict[str, Any]:
    """Return what a channel is told to see whether it works."""
    return {
        "version": VERSION,
        "fleet": fleet,
        "kind": "test",
        "rule": "test",
        "severity": "info",
        "runbook": "",
        "alerts": [],
        "more": 0,
        "channel": channel,
    }


def _told(alert: Alert) -> dict[str, Any]:
    over = isinstance(alert.state, Resolved)
    return {
        "fingerprint": alert.fingerprint,
        "labels": dict(alert.labels),
        "state": alert.status,
        "since_s": alert.state.told.at_s if over else alert.state.since_s,
        "ended_s": alert.state.since_s if over else None,
        "value": alert.value,
        "why": alert.why,
    }
