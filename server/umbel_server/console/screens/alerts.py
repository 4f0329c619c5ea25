"""Screen "Alerts": what fires, who takes care of it, for how long it is silenced, and what was told to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from umbel_proto.errors import UmbelError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing, status_of_error
from umbel_server.api.service import Service, ServiceOf, StoreOf
from umbel_server.console.confirm import REASON
from umbel_server.console.export import export
from umbel_server.console.form import Form, FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.rollouts import ROWS, Place
from umbel_server.console.seen.alerts import (
    SEVERITY_TONES,
    WORDS,
    AlertRow,
    alert_rows,
    channel_rows,
    link_of,
    rules_now,
)
from umbel_server.console.session import ActorOf, SessionOf
from umbel_server.learning.schedule import parse_duration
from umbel_server.monitor.alerts.rules import SEVERITIES
from umbel_server.store.alerts import OPEN, STATES, Alert
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

COLUMNS = (
    "alert",
    "rule",
    "about",
    "severity",
    "state",
    "since_s",
    "value",
    "why",
    "who",
    "reason",
    "until_s",
    "runbook",
)
NOTICES = ("id", "channel", "rule", "kind", "made_s", "state", "tries", "said", "done_s")
SILENCES = ("1h", "4h", "1d", "7d")
_READ = [may(Permission.ALERTS_READ)]
_WRITE = [may(Permission.ALERTS_WRITE)]
_Fingerprint = Annotated[str, Path(alias="name", pattern=r"^[0-9a-f]{32}$")]

State = Literal["open", "firing", "acknowledged", "silenced", "pending", "resolved", "any"]
Severity = Literal["", "critical", "warning", "info"]
What = Literal["acknowledge", "assign", "silence", "unsilence"]


@router.get("/alerts", dependencies=_READ)
def show_alerts(
    request: Request,
    service: ServiceOf,
    session: SessionOf,
    state: State = "open",
    severity: Severity = "",
    rule: Annotated[str, Query(max_length=63)] = "",
    who: Annotated[str, Query(max_length=255)] = "",
    cursor: Place = 0,
) -> Response:
    """Show what fires, and what was before."""
    rules, wrong = rules_now(service.fleet)
    states = {"open": OPEN, "any": STATES}.get(state, (state,))
    rows = alert_rows(service.store, rules, states=states, rule=rule, severity=severity, who=who)
    file = export(request, "alerts", COLUMNS, map(_cells, rows))
    if file is not None:
        return file
    return page(
        request,
        "alerts.html",
        live="alerts",
        tab="alerts",
        rows=rows[cursor : cursor + ROWS],
        total=len(rows),
        next=cursor + ROWS if len(rows) > cursor + ROWS else None,
        counts=_counts(service.store),
        state=state,
        states=() if state == "any" else tuple(states),
        severity=severity,
        severities=SEVERITIES,
        rule=rule,
        rule_names=sorted(rules.rules),
        who=who,
        me=session.account.name,
        words=WORDS,
        tones=SEVERITY_TONES,
        rules=rules,
        wrong=wrong,
        ever=bool(service.store.alerts.all()),
    )


@router.get("/alerts/-/rules", dependencies=_READ)
def show_rules(request: Request, service: ServiceOf) -> Response:
    """Show what is looked for, and who is told."""
    rules, wrong = rules_now(service.fleet)
    open_now: dict[str, int] = {}
    for each in service.store.alerts.all(states=OPEN):
        open_now[each.rule] = open_now.get(each.rule, 0) + 1
    rows = (
        (each.name, each.what, each.model, each.threshold, each.severity, each.enabled, each.runbook)
        for each in rules.rules.values()
    )
    columns = ("rule", "what", "model", "threshold", "severity", "enabled", "runbook")
    file = export(request, "alert-rules", columns, rows)
    if file is not None:
        return file
    return page(
        request,
        "alert_rules.html",
        title="Alerts",
        tab="rules",
        rules=rules,
        wrong=wrong,
        open_now=open_now,
        channels=channel_rows(rules),
        tones=SEVERITY_TONES,
        link_of=link_of,
    )


@router.get("/alerts/-/notices", dependencies=_READ)
def show_notices(request: Request, store: StoreOf) -> Response:
    """Show what was told to whom lately, and what could not be."""
    found = store.notices.recent(limit=500)
    rows = (
        (
            each.id,
            each.channel,
            each.rule,
            each.kind,
            each.made_s,
            each.state,
            each.tries,
            each.said,
            each.done_s,
        )
        for each in found
    )
    file = export(request, "alert-notices", NOTICES, rows)
    if file is not None:
        return file
    return page(
        request,
        "alert_notices.html",
        title="Alerts",
        live="alerts",
        tab="notices",
        rows=found[:200],
        waiting=store.notices.waiting(),
    )


@router.get("/alerts/{name}", dependencies=_READ)
def show_alert(request: Request, service: ServiceOf, session: SessionOf, name: _Fingerprint) -> Response:
    """Show an alert, and what happened to it."""
    alert = _found(service.store, name)
    return _shown(request, service, session.account.name, alert)


@router.post("/alerts/{name}/{what}", dependencies=_WRITE)
def act_on(
    request: Request,
    service: ServiceOf,
    session: SessionOf,
    actor: ActorOf,
    name: _Fingerprint,
    what: What,
    form: FormOf,
) -> Response:
    """Acknowledge an alert, give it to somebody, silence it, or end its silence."""
    alert, store = _found(service.store, name), service.store
    said = {field: form.text(field) for field in ("to", "for", REASON)} | {"what": what}
    seen = form.number("revision")
    try:
        reason = said[REASON]
        if not reason:
            raise UsageError("Nothing was done: give a reason, for those who look after you.")
        match what:
            case "acknowledge":
                store.alerts.acknowledge(name, actor=actor, reason=reason, revision=seen)
                told = f"You take care of {alert.rule}: nobody is reminded of it."
            case "assign":
                _require_account(store, said["to"])
                store.alerts.assign(name, to=said["to"], actor=actor, reason=reason, revision=seen)
                told = f"{said['to']} is to take care of {alert.rule}."
            case "silence":
                until_s = store.clock() + parse_duration(_asked_time(form))
                store.alerts.silence(name, until_s=until_s, actor=actor, reason=reason, revision=seen)
                told = f"{alert.rule} is silenced for {said['for']}: nobody is told, and nothing is done because of it."
            case "unsilence":
                store.alerts.unsilence(name, actor=actor, reason=reason, revision=seen)
                told = f"{alert.rule} is heard again, from the next look at it on."
    except UmbelError as exc:
        status = status_of_error(exc)
        if status is None:
            raise
        now = _found(store, name)
        return _shown(request, service, session.account.name, now, problem=str(exc), status=status, said=said)
    return done(f"/alerts/{name}", told)


def _shown(
    request: Request,
    service: Service,
    me: str,
    alert: Alert,
    *,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    said: Mapping[str, str] | None = None,
) -> Response:
    rules, wrong = rules_now(service.fleet)
    row = AlertRow(alert, rules.rules.get(alert.rule))
    events = tuple(reversed(service.store.alerts.events(alert.fingerprint)))
    cells = ((each.at_s, each.event, each.actor, each.reason) for each in events)
    file = export(request, f"alert-{alert.rule}", ("at_s", "event", "actor", "reason"), cells)
    if file is not None:
        return file
    return page(
        request,
        "alert.html",
        title=f"{alert.rule}: {row.about}",
        status=status,
        live="alerts",
        row=row,
        alert=alert,
        word=WORDS[alert.status],
        tones=SEVERITY_TONES,
        events=events,
        proposals=[
            each for each in service.store.proposed_runs.all() if each.fingerprint == alert.fingerprint
        ],
        accounts=[each.name for each in service.store.accounts.all() if each.active],
        me=me,
        silences=SILENCES,
        problem=problem,
        wrong=wrong,
        said=said or {"what": "", "to": me, "for": SILENCES[0], REASON: ""},
    )


def _counts(store: Store) -> dict[str, int]:
    counts = dict.fromkeys((*SEVERITIES, "acknowledged", "silenced"), 0)
    for (severity, state), count in store.alerts.counts().items():
        if state == "firing":
            counts[severity] += count
        elif state in counts:
            counts[state] += count
    return counts


def _found(store: Store, name: str) -> Alert:
    try:
        return store.alerts.get(name)
    except UsageError:
        raise missing(f"alert {name}") from None


def _require_account(store: Store, name: str) -> None:
    account = store.accounts.get(name) if name else None
    if account is None or not account.active:
        raise UsageError(
            "Nothing was done: there is no such account, or it may not sign in; choose another one."
        )


def _asked_time(form: Form) -> str:
    asked = form.text("for", most=20)
    if not asked:
        raise UsageError("Nothing was done: say for how long, as 2h or 7d.")
    return asked


def _cells(row: AlertRow) -> Sequence[Any]:
    alert = row.alert
    return (
        alert.fingerprint,
        alert.rule,
        row.about,
        alert.severity,
        alert.status,
        alert.state.since_s,
        alert.value,
        alert.why,
        row.who,
        row.reason,
        row.until_s,
        row.rule.runbook if row.rule else "",
    )
