"""What charts by day mark: when a rollout of the version began or was taken back, and when its model was trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from umbel_proto.ids import ModelName
from umbel_server.console.seen.watched import DAY_S
from umbel_server.store.store import Store

WORDS = {"start": "began", "rollback": "was taken back"}
"""Events of a rollout that are marked."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What happened on a day.

    Args:
        day_s: The day's begin, Unix seconds.
        name: What, in words.
    """

    day_s: int
    name: str


def marks_of(store: Store, model: str, version: int, days: Collection[int]) -> tuple[Mark, ...]:
    """Return what happened to rollouts from or to a version, and rounds of its model, one mark a day, the oldest first.

    Args:
        store: The store.
        model: The model.
        version: The version.
        days: Begins of the days that are shown, Unix seconds.
    """
    found: dict[int, list[str]] = {}
    for rollout in reversed(store.rollouts.all()):
        if rollout.model != model or version not in (rollout.from_version, rollout.to_version):
            continue
        for event in store.rollouts.events(rollout.id):
            day_s = int(event.at_s) // DAY_S * DAY_S
            if event.event in WORDS and day_s in days:
                found.setdefault(day_s, []).append(f"{rollout.id} {WORDS[event.event]}")
    opened = store.attempts.opened(ModelName(model), since_s=min(days, default=math.inf))
    trained = Counter((int(at_s) // DAY_S * DAY_S, run) for run, at_s in opened)
    for (day_s, run), rounds in trained.items():
        if day_s in days:
            found.setdefault(day_s, []).append(f"{rounds} round{'s' if rounds > 1 else ''} of {run}")
    return tuple(Mark(day_s, ", ".join(names)) for day_s, names in sorted(found.items()))
