"""Make a schedule: its plan is checked now, and again whenever a run of it is due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name
from umbel_server.learning.begin import check, pin
from umbel_server.learning.schedule import DAY_S, LEAST_S, MOST_S, following
from umbel_server.store.schedules import Schedule

if TYPE_CHECKING:
    from umbel_server.access.actor import Actor
    from umbel_server.fleet.layout import FleetDir
    from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class When:
    """When runs begin by themselves.

    Args:
        every_s: Least time between two runs, seconds, a minute to 366 days.
        at_s: Second of the day, UTC, at which they begin; None: any. ``every_s`` is then in whole days.
        labels: New labels, by the devices' reports, that a run waits for.
        now: Whether the first begins at once.

    Raises:
        UsageError: A value is out of range, or the two do not go together.
    """

    every_s: float
    at_s: int | None = None
    labels: int = 0
    now: bool = False

    def __post_init__(self) -> None:
        if not LEAST_S <= self.every_s <= MOST_S:
            raise UsageError(
                f"{self.every_s:g} seconds between two runs are outside a minute to {MOST_S / DAY_S:g} days."
            )
        if self.at_s is not None and self.every_s % DAY_S:
            raise UsageError("A time of day is said, and the time between two runs is not in whole days.")
        if self.at_s is not None and not 0 <= self.at_s < DAY_S:
            raise UsageError(f"{self.at_s} is no second of a day.")
        if self.labels < 0:
            raise UsageError(f"{self.labels} labels cannot be waited for.")


def schedule(
    fleet: FleetDir, store: Store, name: str, plan: Mapping[str, Any], when: When, actor: Actor
) -> Schedule:
    """Check a plan against policy and budget, and let runs of it begin by themselves.

    Raises:
        UsageError: The name is taken or is none, or the fields are no plan.
        UmbelError: As ``check`` does.
    """
    checked = check(fleet, store, pin(dict(plan), store))
    now_s = store.clock()
    made = Schedule(
        name=check_name(name, "schedule"),
        model=checked.plan.model,
        plan=plan,
        every_s=when.every_s,
        at_s=when.at_s,
        labels=when.labels,
        state="active",
        next_s=now_s if when.now else following(now_s, when.every_s, when.at_s),
        since_s=now_s,
    )
    store.schedules.add(made, actor)
    return made
