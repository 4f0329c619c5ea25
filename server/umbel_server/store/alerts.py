"""Alerts in the store: what was found, what people did about it, and what is to be told; each change in one transaction."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.monitor.alerts.state import (
    Acknowledge,
    Acknowledged,
    Assign,
    Clears,
    Event,
    Firing,
    Holds,
    Notice,
    Pending,
    Resolved,
    Silence,
    Silenced,
    State,
    Step,
    Timing,
    Told,
    Unsilence,
    step,
)
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database
from umbel_server.store.notices import enqueue, last_told
from umbel_server.store.tables_alerts import alert_events, alerts

SERVICE = Actor("service:alerts", frozenset())
"""Who acts where an alert's rule does."""
MAX_ALERTS = 1000
"""Of one rule at a time; further ones are left out, and the service's log says so."""
MAX_WHY = 2000
_NAMES: Mapping[type[State], str] = {
    Pending: "pending",
    Firing: "firing",
    Acknowledged: "acknowledged",
    Silenced: "silenced",
    Resolved: "resolved",
}
STATES = tuple(_NAMES.values())
OPEN = ("firing", "acknowledged", "silenced")
"""The states of what people may have to do with."""


class OutdatedAlertError(RefusedError):
    """Somebody else changed the alert meanwhile: look again."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule found about one thing.

    Args:
        labels: What it is about: model, version, feature and the like; the fleet: empty.
        holds: Whether the rule's condition holds; None: it cannot be told now, and nothing changes.
        value: The figure; None: it is none.
        why: In a sentence, with its numbers.
    """

    labels: Mapping[str, str]
    holds: bool | None
    value: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a rule found.

    Args:
        fingerprint: Its name: of rule and labels.
        rule: The rule.
        labels: What it is about.
        severity: How bad it is, as the rule says.
        state: Where it stands.
        value: The figure when it was last looked at.
        why: What was found.
        seen_s: When it was last looked at, Unix seconds.
        revision: Grows with every change of its state.
        created_s: When it was first found.
    """

    fingerprint: str
    rule: str
    labels: Mapping[str, str]
    severity: str
    state: State
    value: float | None
    why: str
    seen_s: float
    revision: int
    created_s: float

    @property
    def status(self) -> str:
        """The name of its state."""
        return _NAMES[type(self.state)]


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """Something that happened to an alert, or because of it.

    Args:
        at_s: When, Unix seconds.
        actor: Who did it.
        event: Its new state, or an action.
        reason: Why, or what came of it.
    """

    at_s: float
    actor: str
    event: str
    reason: str


@dataclass(frozen=True, slots=True)
class Telling:
    """How the alerts of a rule are told.

    Args:
        channels: To which channels, by name, with how often each is reminded, seconds; 0: never.
        body: Makes what is told of some alerts.
    """

    channels: Mapping[str, float]
    body: Callable[[Notice, Sequence[Alert]], Mapping[str, Any]]


Act = Callable[[Connection, Alert], Iterable[tuple[str, str]]]
"""Does what a rule says in the transaction in which its alert begins to fire; returns actions, and what came of each."""


def fingerprint(rule: str, labels: Mapping[str, str]) -> str:
    """Return the name of an alert: the same rule and labels are the same alert."""
    told = json.dumps([rule, sorted(labels.items())], ensure_ascii=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


class Alerts:
    """The alerts of a store.

    Args:
        database: The database.
        audit: Where what people do is recorded.
        clock: Dates changes.
    """

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    def look(
        self,
        rule: str,
        severity: str,
        readings: Sequence[Reading],
        timing: Timing,
        *,
        telling: Telling,
        act: Act,
    ) -> tuple[Alert, ...]:
        """Let happen what follows from looking at a rule: all of it, or nothing.

        An alert of the rule that no reading is about does not hold any longer.

        Args:
            rule: The rule.
            severity: How bad what it finds is.
            readings: What it found, one for each set of labels.
            timing: How patient it is.
            telling: How it is told.
            act: What is done when one begins to fire.

        Returns:
            The alerts whose state changed.
        """
        now_s = self._clock()
        found = {fingerprint(rule, each.labels): each for each in readings}
        with self._database.write() as connection:
            known = {each.fingerprint: each for each in _of_rule(connection, rule)}
            changed: list[Alert] = []
            told: dict[Notice, list[Alert]] = {}
            for name in [*known, *(name for name in found if name not in known)]:
                reading = found.get(name)
                if reading is not None and reading.holds is None:
                    continue
                before = known.get(name)
                holds = reading is not None and reading.holds is True
                if before is None and not holds:
                    continue
                after, then = _seen(before, rule, severity, name, reading, holds, timing, now_s)
                _write(connection, before, after)
                if before is None or type(before.state) is not type(after.state):
                    _happened(connection, after, 0, SERVICE.name, after.status, after.why, now_s)
                    changed.append(after)
                if then.notice is not None:
                    told.setdefault(then.notice, []).append(after)
                if then.fires:
                    for part, (action, came) in enumerate(act(connection, after), start=1):
                        _happened(connection, after, part, SERVICE.name, action, came, now_s)
            for kind, those in told.items():
                for channel in telling.channels:
                    enqueue(connection, channel, rule, kind.value, telling.body(kind, those), now_s)
            self._remind(connection, rule, telling, now_s)
        return tuple(changed)

    def get(self, name: str) -> Alert:
        """Return an alert by its fingerprint, or by as much of its beginning as no other one has.

        Raises:
            UsageError: There is none, or there are several.
        """
        with self._database.read() as connection:
            return _found(connection, name)

    def all(self, *, states: Sequence[str] = STATES, rule: str | None = None) -> tuple[Alert, ...]:
        """Return alerts, those that began last first.

        Args:
            states: In these states only.
            rule: Of one rule only.
        """
        query = select(alerts).where(alerts.c.state.in_(states))
        if rule is not None:
            query = query.where(alerts.c.rule == rule)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(alerts.c.since_s.desc(), alerts.c.fingerprint))
            return tuple(map(_alert, rows))

    def counts(self) -> dict[tuple[str, str], int]:
        """Return how many alerts there are by severity and state, of those that are not resolved."""
        query = (
            select(alerts.c.severity, alerts.c.state, func.count())
            .where(alerts.c.state != "resolved")
            .group_by(alerts.c.severity, alerts.c.state)
        )
        with self._database.read() as connection:
            return {(row.severity, row.state): row[2] for row in connection.execute(query)}

    def rules(self) -> frozenset[str]:
        """Return the rules of alerts that are not resolved, in alerts.toml or not."""
        query = select(alerts.c.rule).where(alerts.c.state != "resolved").distinct()
        with self._database.read() as connection:
            return frozenset(connection.execute(query).scalars())

    def events(self, name: str) -> tuple[AlertEvent, ...]:
        """Return what happened to an alert, the oldest first."""
        query = select(alert_events).where(alert_events.c.fingerprint == name)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(alert_events.c.number, alert_events.c.part)).all()
        return tuple(AlertEvent(row.at_s, row.actor, row.event, row.reason) for row in rows)

    def acknowledge(self, name: str, *, actor: Actor, reason: str, revision: int | None = None) -> Alert:
        """Note that somebody takes care of an alert: nobody is reminded of it.

        Args:
            name: The alert.
            actor: Who does.
            reason: In their words.
            revision: The revision that they saw; None: whatever it is by now.

        Raises:
            UsageError: There is no such alert.
            RefusedError: It does not fire.
            OutdatedAlertError: It was changed since that revision.
        """
        return self._do(name, Acknowledge(actor.name, reason), actor, reason, revision)

    def assign(self, name: str, *, to: str, actor: Actor, reason: str, revision: int | None = None) -> Alert:
        """Note who is to take care of an alert: as if they had acknowledged it.

        Args:
            name: The alert.
            to: Who is; whether there is such an account, the caller checks.
            actor: Who says so.
            reason: Why.
            revision: The revision that they saw; None: whatever it is by now.

        Raises:
            UsageError: There is no such alert.
            RefusedError: It neither fires nor is acknowledged.
            OutdatedAlertError: It was changed since that revision.
        """
        return self._do(name, Assign(to, reason), actor, reason, revision)

    def silence(
        self, name: str, *, until_s: float, actor: Actor, reason: str, revision: int | None = None
    ) -> Alert:
        """Tell nobody of an alert for some time, and do nothing because of it.

        Args:
            name: The alert.
            until_s: Until when, Unix seconds.
            actor: Who wants it so.
            reason: Why.
            revision: The revision that they saw; None: whatever it is by now.

        Raises:
            UsageError: There is no such alert, or the time is over.
            RefusedError: It is resolved.
            OutdatedAlertError: It was changed since that revision.
        """
        if not self._clock() < until_s < 1e11:
            raise UsageError("A silence ends in the future: choose how long it lasts, as 2h or 7d.")
        return self._do(name, Silence(actor.name, reason, until_s), actor, reason, revision)

    def unsilence(self, name: str, *, actor: Actor, reason: str, revision: int | None = None) -> Alert:
        """End a silence. If it still holds, it fires at the rule's next look, and its actions are done.

        Raises:
            UsageError: There is no such alert.
            RefusedError: It is not silenced.
            OutdatedAlertError: It was changed since that revision.
        """
        return self._do(name, Unsilence(), actor, reason, revision)

    def prune(self, *, before_s: float) -> int:
        """Forget alerts that were resolved before a time, with what happened to them; return how many."""
        old = and_(alerts.c.state == "resolved", alerts.c.seen_s < before_s, alerts.c.since_s < before_s)
        with self._database.write() as connection:
            names = select(alerts.c.fingerprint).where(old)
            connection.execute(delete(alert_events).where(alert_events.c.fingerprint.in_(names)))
            return connection.execute(delete(alerts).where(old)).rowcount

    def _do(self, name: str, event: Event, actor: Actor, reason: str, revision: int | None = None) -> Alert:
        now_s = self._clock()
        with self._database.write() as connection:
            before = _found(connection, name)
            if revision is not None and before.revision != revision:
                raise OutdatedAlertError(f"The alert was changed meanwhile: it is {before.status}.")
            # What people do tells nobody and acts on nothing: both are for the next look.
            after = replace(
                before,
                state=step(before.state, event, Timing(), now_s=now_s).state,
                revision=before.revision + 1,
            )
            _write(connection, before, after)
            _happened(connection, after, 0, actor.name, _VERBS[type(event)], reason, now_s)
            self._audit.append(
                connection,
                actor,
                action=f"alert.{_VERBS[type(event)]}",
                object=f"alert:{before.fingerprint}",
                reason=reason,
                before={"rule": before.rule, "state": before.status},
                after={
                    "state": after.status,
                    **({"until_s": event.until_s} if isinstance(event, Silence) else {}),
                    **({"who": event.who} if isinstance(event, Assign) else {}),
                },
            )
        return after

    def _remind(self, connection: Connection, rule: str, telling: Telling, now_s: float) -> None:
        """Tell channels again of what still fires, where they want that."""
        asked = {name: every_s for name, every_s in telling.channels.items() if every_s}
        if not asked:
            return
        still = [each for each in _of_rule(connection, rule) if isinstance(each.state, Firing)]
        still = [each for each in still if each.state.told.open]
        for channel, every_s in asked.items():
            if still and now_s - last_told(connection, channel, rule) >= every_s:
                enqueue(connection, channel, rule, "firing", telling.body(Notice.FIRING, still), now_s)


_VERBS: Mapping[type[Event], str] = {
    Acknowledge: "acknowledge",
    Assign: "assign",
    Silence: "silence",
    Unsilence: "unsilence",
}


def _seen(
    before: Alert | None,
    rule: str,
    severity: str,
    name: str,
    reading: Reading | None,
    holds: bool,
    timing: Timing,
    now_s: float,
) -> tuple[Alert, Step]:
    """Return an alert after it was looked at."""
    state: State = Resolved(now_s) if before is None else before.state
    then = step(state, Holds() if holds else Clears(), timing, now_s=now_s)
    if before is not None and reading is None:
        labels, value, why = before.labels, before.value, before.why
    else:
        assert reading is not None
        labels = reading.labels
        value = reading.value if reading.value is not None and math.isfinite(reading.value) else None
        # Of what is over it is told why it was.
        why = reading.why[:MAX_WHY] if holds or before is None else before.why
    moved = before is None or type(before.state) is not type(then.state)
    return (
        Alert(
            fingerprint=name,
            rule=rule,
            labels=labels,
            severity=severity,
            state=then.state,
            value=value,
            why=why,
            seen_s=now_s,
            revision=(0 if before is None else before.revision) + moved,
            created_s=now_s if before is None else before.created_s,
        ),
        then,
    )


def _write(connection: Connection, before: Alert | None, after: Alert) -> None:
    state = after.state
    values = {
        "severity": after.severity,
        "state": after.status,
        "since_s": state.since_s,
        "clear_s": getattr(state, "clear_s", None),
        "until_s": getattr(state, "until_s", None),
        "who": getattr(state, "who", ""),
        "reason": getattr(state, "reason", ""),
        "told_s": state.told.at_s,
        "told_open": int(state.told.open),
        "value": after.value,
        "why": after.why,
        "seen_s": after.seen_s,
        "revision": after.revision,
    }
    if before is not None:
        connection.execute(update(alerts).where(alerts.c.fingerprint == after.fingerprint).values(**values))
        return
    labels = json.dumps(dict(sorted(after.labels.items())))
    connection.execute(
        insert(alerts).values(
            fingerprint=after.fingerprint,
            rule=after.rule,
            labels=labels,
            created_s=after.created_s,
            **values,
        )
    )


def _happened(
    connection: Connection, alert: Alert, part: int, actor: str, event: str, reason: str, now_s: float
) -> None:
    connection.execute(
        insert(alert_events).values(
            fingerprint=alert.fingerprint,
            number=alert.revision,
            part=part,
            at_s=now_s,
            actor=actor,
            event=event,
            reason=reason[:MAX_WHY],
        )
    )


def _of_rule(connection: Connection, rule: str) -> list[Alert]:
    rows = connection.execute(select(alerts).where(alerts.c.rule == rule).order_by(alerts.c.fingerprint))
    return list(map(_alert, rows))


def _found(connection: Connection, name: str) -> Alert:
    query = select(alerts).where(alerts.c.fingerprint.startswith(name, autoescape=True)).limit(2)
    rows = connection.execute(query).all() if name else []
    if len(rows) == 1:
        return _alert(rows[0])
    if rows:
        raise UsageError(f"Several alerts begin with {name[:40]!r}: write more of it.")
    raise UsageError(f"There is no alert {name[:40]!r}:  umbel alert list --all  shows them.")


def _alert(row: Row[Any]) -> Alert:
    return Alert(
        fingerprint=row.fingerprint,
        rule=row.rule,
        labels=json.loads(row.labels),
        severity=row.severity,
        state=_state(row),
        value=row.value,
        why=row.why,
        seen_s=row.seen_s,
        revision=row.revision,
        created_s=row.created_s,
    )


def _state(row: Row[Any]) -> State:
    told = Told(row.told_s, bool(row.told_open))
    match row.state:
        case "pending":
            return Pending(row.since_s, told)
        case "firing":
            return Firing(row.since_s, told, row.clear_s)
        case "acknowledged":
            return Acknowledged(row.since_s, told, row.who, row.reason, row.clear_s)
        case "silenced":
            return Silenced(row.since_s, told, row.until_s, row.who, row.reason, row.clear_s)
        case _:
            return Resolved(row.since_s, told)
