"""The fleet policy, and whether the service is well."""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from umbel_proto.credentials import FleetPolicy, open_policy, rules_message
from umbel_proto.wire.authority_pb2 import PolicyChange
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.service import Service, ServiceOf, TokenOf
from umbel_server.api.texts import Asked, Reason
from umbel_server.api.versions import IfMatch, check_match, tagged
from umbel_server.ca.authority import open_authority

router = APIRouter(prefix="/api/v1/policy", tags=["policy"], route_class=GuardedRoute)
health = APIRouter(prefix="/api/v1/health", tags=["health"], route_class=GuardedRoute)


class RulesShown(BaseModel):
    """When a device may train."""

    idle: bool
    charging: bool
    unmetered: bool
    min_battery: float
    consent: bool
    unknown: Literal["allow", "refuse"]


class PolicyShown(BaseModel):
    """What every device of the fleet insists on."""

    fleet: str
    version: int
    corrupt_fraction: float
    dropout_fraction: float
    server_malicious: bool
    min_cohort: int
    noise_floor: float
    budget_epsilon: float | None = Field(description="Null: no limit.")
    budget_delta: float
    example_budget_epsilon: float | None = Field(description="Null: no limit.")
    training: RulesShown
    announce_reviews: bool = Field(
        description="Devices announce which predictions wait for a person, where their users allow it."
    )


class NewRules(Asked):
    """When devices may train from now on; what is left away stays as it is."""

    idle: bool | None = None
    charging: bool | None = None
    unmetered: bool | None = None
    min_battery: Annotated[float | None, Field(ge=0, le=1)] = None
    consent: bool | None = None
    unknown: Literal["allow", "refuse"] | None = None
    reason: Reason


class NewAnnouncing(Asked):
    """Whether devices announce, from now on, which predictions wait for a person."""

    announce_reviews: bool
    reason: Reason


class Health(BaseModel):
    """The service, as it answers."""

    status: Literal["ok"]
    fleet: str
    version: str = Field(description="Of umbel.")


@router.get("", dependencies=[may(Permission.POLICY_READ)])
def get_policy(service: ServiceOf, response: Response) -> PolicyShown:
    """Show the policy."""
    return _tagged(response, service.fleet.policy())


@router.patch("/training", dependencies=[may(Permission.POLICY_WRITE)])
def change_training_rules(
    service: ServiceOf, response: Response, token: TokenOf, new: NewRules, if_match: IfMatch = None
) -> PolicyShown:
    """Change when devices may train. They learn of it within a day. The fleet's authority checks the token and signs."""
    seen = service.fleet.policy()
    check_match(if_match, _show(seen))
    rules = replace(seen.training, **new.model_dump(exclude={"reason"}, exclude_none=True))
    change = PolicyChange(token=token, version=seen.version, training=rules_message(rules), reason=new.reason)
    return _tagged(response, _changed(service, change))


@router.patch("/reviews", dependencies=[may(Permission.POLICY_WRITE)])
def change_announcing(
    service: ServiceOf, response: Response, token: TokenOf, new: NewAnnouncing, if_match: IfMatch = None
) -> PolicyShown:
    """Change whether devices announce which predictions wait for a person; only those do whose users allow it."""
    seen = service.fleet.policy()
    check_match(if_match, _show(seen))
    change = PolicyChange(
        token=token,
        version=seen.version,
        training=rules_message(seen.training),
        reason=new.reason,
        announce_reviews=new.announce_reviews,
    )
    return _tagged(response, _changed(service, change))


@health.get("", dependencies=[may(Permission.HEALTH_READ)])
def get_health(service: ServiceOf) -> Health:
    """Say that the API and its store answer."""
    service.store.audit.newest()
    return Health(status="ok", fleet=service.fleet.name, version=importlib.metadata.version("umbel"))


def _changed(service: Service, change: PolicyChange) -> FleetPolicy:
    """Return the policy that the fleet's authority made of a change: it checks the token, and signs."""
    fleet, store = service.fleet, service.store
    signed = open_authority(fleet, store, clock=store.clock).change_policy(change)
    return open_policy(signed.SerializeToString(), authority=fleet.authority_public(), fleet=fleet.name)


def _tagged(response: Response, policy: FleetPolicy) -> PolicyShown:
    shown = _show(policy)
    tagged(response, shown)
    return shown


def _show(policy: FleetPolicy) -> PolicyShown:
    rules = policy.training
    return PolicyShown(
        fleet=policy.fleet,
        version=policy.version,
        corrupt_fraction=policy.corrupt_fraction,
        dropout_fraction=policy.dropout_fraction,
        server_malicious=policy.server_malicious,
        min_cohort=policy.min_cohort,
        noise_floor=policy.noise_floor,
        budget_epsilon=_finite(policy.budget_epsilon),
        budget_delta=policy.budget_delta,
        example_budget_epsilon=_finite(policy.example_budget_epsilon),
        training=RulesShown(
            idle=rules.idle,
            charging=rules.charging,
            unmetered=rules.unmetered,
            min_battery=rules.min_battery,
            consent=rules.consent,
            unknown=rules.unknown,
        ),
        announce_reviews=policy.announce_reviews,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
