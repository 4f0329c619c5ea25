"""Alerts: what fires, what people do about it, whom it is told to, and the runs that are proposed because of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from umbel_proto.errors import UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after, after_number, page_of
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, Service, ServiceOf
from umbel_server.api.texts import Asked, Named, Reason, Why
from umbel_server.monitor.alerts.act import require_possible
from umbel_server.monitor.alerts.at_hand import rules_json
from umbel_server.monitor.alerts.evaluate import rules_of, rules_shown
from umbel_server.monitor.alerts.shown import (
    alert_json,
    event_json,
    notice_json,
    proposed_json,
    trial_body,
)
from umbel_server.store.alerts import STATES, Alert
from umbel_server.store.proposed_runs import ProposedRun

router = APIRouter(prefix="/api/v1/alerts", tags=["alerts"], route_class=GuardedRoute)
rules = APIRouter(prefix="/api/v1/alert-rules", tags=["alerts"], route_class=GuardedRoute)
channels = APIRouter(prefix="/api/v1/alert-channels", tags=["alerts"], route_class=GuardedRoute)
notices = APIRouter(prefix="/api/v1/alert-notices", tags=["alerts"], route_class=GuardedRoute)
proposals = APIRouter(prefix="/api/v1/proposed-runs", tags=["alerts"], route_class=GuardedRoute)

Fingerprint = Annotated[
    str, Path(pattern=r"^[0-9a-f]{4,32}$", description="Its fingerprint, or how it begins.")
]
Number = Annotated[int, Path(ge=1, lt=1 << 62, description="Its number.")]
State = Literal["pending", "firing", "acknowledged", "silenced", "resolved"]
MAX_SILENCE_S = 366 * 86400


class AlertShown(BaseModel):
    """An alert."""

    fingerprint: str
    rule: str
    labels: dict[str, str] = Field(description="What it is about, as model, version, feature.")
    severity: Literal["critical", "warning", "info"]
    state: State
    since_s: float = Field(description="When what it is about began or, resolved, ended; Unix seconds.")
    until_s: float | None = Field(description="When its silence ends.")
    who: str = Field(description="Who acknowledged or silenced it; empty: nobody.")
    reason: str = Field(description="Why, in their words.")
    value: float | None = Field(description="The figure when it was last looked at.")
    why: str = Field(description="What was found.")
    runbook: str = Field(description="Where to read what to do.")
    seen_s: float = Field(description="When it was last looked at.")
    told_s: float | None = Field(description="When it was last told that it fires.")
    created_s: float
    revision: int = Field(description="Grows with every change of its state.")


class AlertEventShown(BaseModel):
    """What happened to an alert, or because of it."""

    at_s: float
    actor: str
    event: str
    reason: str


class AlertStatus(AlertShown):
    """An alert, and what happened to it."""

    events: list[AlertEventShown]


class RuleShown(BaseModel):
    """A rule."""

    rule: str
    what: str = Field(description="The figure that it looks at.")
    means: str = Field(description="What its threshold is of.")
    model: str | None = Field(description="`*`: every model; null: it is of the fleet.")
    version: int | None = Field(description="Null: the one that most was reported of.")
    tag: str
    threshold: float
    window_s: float
    every_s: float
    for_s: float
    severity: Literal["critical", "warning", "info"]
    runbook: str
    actions: list[str]
    channels: list[str] = Field(description="Whom it tells.")
    enabled: bool


class ChannelShown(BaseModel):
    """A channel, without what may be secret of it."""

    channel: str
    kind: Literal["webhook", "email", "alertmanager"]
    to: str
    severities: list[str]
    remind_s: float | None


class RulesShown(BaseModel):
    """What `alerts.toml` says."""

    rules: list[RuleShown]
    channels: list[ChannelShown]


class NoticeShown(BaseModel):
    """What a channel was told, or is to be."""

    id: int
    channel: str
    rule: str | None = Field(description="Null: it is a test.")
    kind: Literal["firing", "resolved", "test"]
    made_s: float
    state: Literal["waiting", "sent", "given-up"]
    tries: int
    said: str = Field(description="Why the last try failed.")
    done_s: float | None


class ProposedShown(BaseModel):
    """A run that an alert proposes."""

    id: int
    rule: str
    alert: str = Field(description="The alert's fingerprint.")
    model: str
    why: str
    state: Literal["open", "accepted", "begun", "declined", "failed"]
    made_s: float
    decided_s: float | None
    decided_by: str
    said: str
    run: str | None = Field(description="The run that it becomes.")
    plan: dict[str, Any]


class Quiet(Asked):
    """How long to hear nothing."""

    seconds: Annotated[float, Field(ge=60, le=MAX_SILENCE_S, allow_inf_nan=False)]
    reason: Reason


class Trial(Asked):
    """Nothing more is needed."""


class Made(BaseModel):
    """A notice that waits."""

    id: int


@router.get("", dependencies=[may(Permission.ALERTS_READ)])
def list_alerts(
    service: ServiceOf,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    state: Annotated[list[State] | None, Query(description="In these states only.")] = None,
) -> Page[AlertShown]:
    """List the alerts by fingerprint."""
    last, known = after(cursor) or "", rules_shown(service.fleet)
    found = sorted(service.store.alerts.all(states=state or STATES), key=lambda each: each.fingerprint)
    those = [each for each in found if each.fingerprint > last]
    return page_of(
        those[: limit + 1],
        limit,
        key=lambda each: each.fingerprint,
        show=lambda each: AlertShown.model_validate(alert_json(each, known)),
    )


@router.get("/{fingerprint}", dependencies=[may(Permission.ALERTS_READ)])
def get_alert(service: ServiceOf, fingerprint: Fingerprint) -> AlertStatus:
    """Show an alert, and what happened to it."""
    return _shown(service, _found(service, fingerprint))


@router.post("/{fingerprint}/acknowledge", dependencies=[may(Permission.ALERTS_WRITE)])
def acknowledge_alert(service: ServiceOf, actor: ActorOf, fingerprint: Fingerprint, why: Why) -> AlertStatus:
    """Say that you take care of it: nobody is reminded."""
    name = _found(service, fingerprint).fingerprint
    return _shown(service, service.store.alerts.acknowledge(name, actor=actor, reason=why.reason))


@router.post("/{fingerprint}/silence", dependencies=[may(Permission.ALERTS_WRITE)])
def silence_alert(service: ServiceOf, actor: ActorOf, fingerprint: Fingerprint, quiet: Quiet) -> AlertStatus:
    """Hear nothing of it for some time; nothing is done because of it meanwhile."""
    name = _found(service, fingerprint).fingerprint
    until_s = service.store.clock() + quiet.seconds
    return _shown(
        service, service.store.alerts.silence(name, until_s=until_s, actor=actor, reason=quiet.reason)
    )


@router.post("/{fingerprint}/unsilence", dependencies=[may(Permission.ALERTS_WRITE)])
def unsilence_alert(service: ServiceOf, actor: ActorOf, fingerprint: Fingerprint, why: Why) -> AlertStatus:
    """End its silence: what follows, the next look at its rule says."""
    name = _found(service, fingerprint).fingerprint
    return _shown(service, service.store.alerts.unsilence(name, actor=actor, reason=why.reason))


@rules.get("", dependencies=[may(Permission.ALERTS_READ)])
def get_rules(service: ServiceOf) -> RulesShown:
    """Show the rules and channels."""
    return RulesShown.model_validate(rules_json(rules_of(service.fleet)))


@channels.post("/{name}/test", status_code=202, dependencies=[may(Permission.ALERTS_WRITE)])
def try_channel(service: ServiceOf, name: Named, trial: Trial) -> Made:
    """Let the service of alerts tell a channel something: the list of notices shows what came of it."""
    if name not in rules_of(service.fleet).channels:
        raise missing(f"channel {name}")
    return Made(id=service.store.notices.add(name, trial_body(service.fleet.name, name)))


@notices.get("", dependencies=[may(Permission.ALERTS_READ)])
def list_notices(
    service: ServiceOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[NoticeShown]:
    """List what channels were told, or are to be, the newest first."""
    found = service.store.notices.recent(limit=limit + 1, before=after_number(cursor))
    return page_of(
        found,
        limit,
        key=lambda each: str(each.id),
        show=lambda each: NoticeShown.model_validate(notice_json(each)),
    )


@proposals.get("", dependencies=[may(Permission.ALERTS_READ)])
def list_proposed_runs(
    service: ServiceOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[ProposedShown]:
    """List the runs that alerts propose, the newest first."""
    last = after_number(cursor)
    found = [each for each in service.store.proposed_runs.all() if last is None or each.id < last]
    return page_of(found[: limit + 1], limit, key=lambda each: str(each.id), show=_proposed)


@proposals.post("/{number}/accept", dependencies=[may(Permission.RUNS_WRITE)])
def accept_proposed_run(service: ServiceOf, actor: ActorOf, number: Number, why: Why) -> ProposedShown:
    """Let a proposed run begin."""
    require_possible(service.fleet, service.store, dict(_proposal(service, number).plan))
    return _proposed(service.store.proposed_runs.accept(number, actor=actor, reason=why.reason))


@proposals.post("/{number}/decline", dependencies=[may(Permission.RUNS_WRITE)])
def decline_proposed_run(service: ServiceOf, actor: ActorOf, number: Number, why: Why) -> ProposedShown:
    """Let a proposed run be."""
    _proposal(service, number)
    return _proposed(service.store.proposed_runs.decline(number, actor=actor, reason=why.reason))


def _found(service: Service, fingerprint: str) -> Alert:
    try:
        return service.store.alerts.get(fingerprint)
    except UsageError as exc:
        raise missing(f"alert {fingerprint}") from exc


def _proposal(service: Service, number: int) -> ProposedRun:
    try:
        return service.store.proposed_runs.get(number)
    except UsageError as exc:
        raise missing(f"proposed run {number}") from exc


def _shown(service: Service, alert: Alert) -> AlertStatus:
    events = [event_json(each) for each in service.store.alerts.events(alert.fingerprint)]
    return AlertStatus.model_validate({**alert_json(alert, rules_shown(service.fleet)), "events": events})


def _proposed(proposed: ProposedRun) -> ProposedShown:
    return ProposedShown.model_validate(proposed_json(proposed))
