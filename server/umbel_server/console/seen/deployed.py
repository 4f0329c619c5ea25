"""What happened to the models of a device: offered by a rollout, answering since, taken back, failed, given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from umbel_proto.ids import DeviceId
from umbel_server.monitor.report import FELL_BACK
from umbel_server.rollouts.state import RolledBack
from umbel_server.store.device_days import DeviceSum
from umbel_server.store.progress import Deployment
from umbel_server.store.store import Store

MOST = 20
"""So many rollouts are looked at, the newest."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a model on a device.

    Args:
        at_s: When, Unix seconds.
        word: What: ``offered``, ``answers``, ``back``, ``taken back``, ``failed`` or ``fell back``.
        model: The model.
        version: The version that it is about.
        rollout: The rollout that it is because of; empty: none that is known.
        n: How often, on that day, by the device's clock; 0: once, at that moment.
    """

    at_s: float
    word: str
    model: str
    version: int
    rollout: str = ""
    n: int = 0


def deployed(store: Store, device: DeviceId, days: Sequence[DeviceSum]) -> list[Event]:
    """Return what the store knows of a device's deployments, the newest first.

    Of each model it knows what answers there and since when; what answered before that only as far as rollouts tell.

    Args:
        store: The store.
        device: The device.
        days: What the device reported, by day: it tells when it gave a version up.
    """
    found = [
        Event(each.since_s, "fell back", each.model, each.version, n=each.counters[FELL_BACK])
        for each in days
        if each.model and each.counters.get(FELL_BACK)
    ]
    for each in store.progress.deployments(device, limit=MOST):
        found += _events(each)
    return sorted(set(found), key=lambda each: (-each.at_s, each.model, each.version, each.word))


def _events(told: Deployment) -> list[Event]:
    rollout = told.rollout
    of = rollout.model, rollout.to_version, rollout.id
    found = [Event(told.admitted_s, "offered", *of)]
    if told.became == "failed":
        found.append(Event(told.admitted_s, "failed", *of))
    elif told.became == "running" and told.since_s is not None:
        found.append(Event(told.since_s, "answers", *of))
    elif told.became == "back" and told.since_s is not None:
        found.append(Event(told.since_s, "back", rollout.model, rollout.from_version, rollout.id))
    if isinstance(rollout.state, RolledBack):
        found.append(Event(rollout.state.since_s, "taken back", *of))
    return found
