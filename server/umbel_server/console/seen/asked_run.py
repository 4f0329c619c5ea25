"""A federated run that somebody is about to start: its plan as text, where plans are to take one from, and what it would spend."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from umbel_proto.errors import UsageError
from umbel_proto.privacy.accounting import SKELLAM_ORDERS, rdp_to_epsilon
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.begin import Checked
from umbel_server.learning.fleet_ledger import FleetLedger
from umbel_server.learning.plan import RunPlan
from umbel_server.store.store import Store

MAX_TOML = 12_000
"""Characters of a plan: it travels in the page's address."""
MOST_STORED = 50
"""Of each kind, the newest."""
_PINNED = ("version", "package_sha256")
"""What a new run takes anew from the newest release."""


@dataclass(frozen=True, slots=True)
class Spending:
    """What a run would take of devices' privacy budgets, if each took part as often as it may.

    Args:
        participations: How often a device may take part.
        before: Most that a device has spent already; epsilon, None: infinite.
        after: Most that one that can pay for it would have spent; None: infinite.
        budget: What it may; None: there is no bound.
        delta: At which delta.
        able: Devices that can pay for all of it, after what they spent and what other runs may still take.
        active: Devices that may take part in rounds.
    """

    participations: int
    before: float | None
    after: float | None
    budget: float | None
    delta: float
    able: int
    active: int


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan that is on record.

    Args:
        key: Its name in a form.
        words: What it is, for people.
        toml: The plan.
    """

    key: str
    words: str
    toml: str


def read_toml(text: str) -> dict[str, Any]:
    """Return a plan's fields.

    Raises:
        UsageError: It is too long, not TOML, or holds what no plan has.
    """
    if len(text) > MAX_TOML:
        raise UsageError(f"The plan is longer than {MAX_TOML:,} characters: use  umbel rounds start  for it.")
    try:
        fields = tomllib.loads(text)
        json.dumps(fields, default=str)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"The plan is not TOML: {str(exc)[:200]}.") from exc
    except (ValueError, RecursionError) as exc:
        raise UsageError("The plan holds a number or a nesting that no plan has: see the reference.") from exc
    return fields


def spending(fleet: FleetDir, store: Store, checked: Checked) -> Spending:
    """Return what a run would take of budgets, beside what was spent.

    Args:
        fleet: The fleet, for its policy and its runs' costs.
        store: Its store.
        checked: The run.
    """
    policy, ledger = fleet.policy(), FleetLedger.of(store, fleet.runs)
    wanted = checked.plan.most_participations
    cost = wanted * checked.cost.curve()
    rooms = ledger.rooms(
        checked.cost, most=wanted, budget_epsilon=policy.budget_epsilon, budget_delta=policy.budget_delta
    )
    able = {device for device, left in rooms.items() if left == wanted}
    # Many devices share a past, and cost as much to look at as one.
    past = {
        (frozenset(ledger.charged.get(device, {}).items()), device in able): device
        for device in ledger.active
    }
    before = after = 0.0
    for (_, pays), device in past.items():
        spent = ledger.curve(device)
        before = max(before, rdp_to_epsilon(spent, policy.budget_delta, SKELLAM_ORDERS))
        if pays:
            after = max(after, rdp_to_epsilon(spent + cost, policy.budget_delta, SKELLAM_ORDERS))
    return Spending(
        participations=wanted,
        before=_finite(before),
        after=_finite(after),
        budget=_finite(policy.budget_epsilon),
        delta=policy.budget_delta,
        able=len(able),
        active=len(rooms),
    )


def stored_plans(fleet: FleetDir, store: Store) -> tuple[StoredPlan, ...]:
    """Return the plans on record: of schedules, of runs that alerts propose, and of runs, the newest first."""
    found = [
        StoredPlan(f"schedule:{each.name}", f"schedule {each.name}", to_toml(fleet, each.plan))
        for each in store.schedules.all()[:MOST_STORED]
    ]
    found += [
        StoredPlan(
            f"proposed:{each.id}", f"proposed run {each.id} of {each.model}", to_toml(fleet, each.plan)
        )
        for each in store.proposed_runs.all()[:MOST_STORED]
    ]
    found += [
        StoredPlan(f"run:{each.id}", f"run {each.id}", to_toml(fleet, changed(RunPlan.from_json(each.plan))))
        for each in store.runs.all()[: -MOST_STORED - 1 : -1]
    ]
    return tuple(found)


def starter(fleet: FleetDir, store: Store, model: str) -> str:
    """Return a plan to begin from: of a model, for as many devices as there are, with noise that policy allows."""
    policy = fleet.policy()
    active = sum(device.trusted for device in store.devices.all())
    return to_toml(
        fleet,
        {
            "model": model,
            "rounds": 4,
            "devices": max(3, policy.min_cohort, active),
            "training": {"epochs": 1, "learning_rate": 0.05},
            "privacy": {"clip": 1.0, "noise_multiplier": max(1.0, policy.noise_floor)},
        },
    )


def changed(plan: RunPlan) -> dict[str, Any]:
    """Return a plan's fields that are not as usual, without the release: a new run starts from the newest."""
    return {
        name: value
        for name, value in _changed(plan).items()
        if name not in _PINNED and (value or not isinstance(value, dict))
    }


def to_toml(fleet: FleetDir, plan: Mapping[str, Any]) -> str:
    """Return a plan's fields as TOML; files in the fleet's directory of data are named, as forms take them."""
    lines, tables = [], []
    for name, value in plan.items():
        if isinstance(value, Mapping):
            tables.append(f"\n[{name}]")
            tables += [f"{key} = {_value(fleet, key, each)}" for key, each in value.items()]
        elif value not in ("", None):
            lines.append(f"{name} = {_value(fleet, name, value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _changed(table: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for each in fields(table):
        value = getattr(table, each.name)
        if is_dataclass(value):
            made[each.name] = _changed(value)
        elif value != _usual(each):
            made[each.name] = list(value) if isinstance(value, tuple) else value
    return made


def _usual(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else MISSING


def _value(fleet: FleetDir, name: str, value: Any) -> str:
    if name in ("heldout", "calibration") and isinstance(value, str):
        path = Path(value)
        value = path.name if path.parent == fleet.path / "data" else value
    return json.dumps(value, ensure_ascii=False)


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value
