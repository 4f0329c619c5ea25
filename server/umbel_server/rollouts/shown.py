"""Rollouts as programs read them, at the command line and over the API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel_proto.ids import DeviceId
    from umbel_server.store.placements import Member
    from umbel_server.store.rollouts import Happened, Rollout
    from umbel_server.store.shadows import Shadowing
    from umbel_server.store.store import Store


def rollout_json(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout as programs read it."""
    return {
        "rollout": rollout.id,
        "model": rollout.model,
        "from_version": rollout.from_version,
        "to_version": rollout.to_version,
        "state": rollout.status,
        "step": getattr(rollout.state, "step", None),
        "since_s": getattr(rollout.state, "since_s", None),
        "reason": getattr(rollout.state, "reason", ""),
        "revision": rollout.revision,
        "created_s": rollout.created_s,
        "plan": rollout.plan.to_dict(),
    }


def status_json(store: Store, rollout: Rollout, *, now_s: float) -> dict[str, Any]:
    """Return where a rollout stands, what its gates say, and what happened to it, as programs read it."""
    from umbel_server.rollouts.decider import look, verdict_json

    verdicts = look(store, rollout, now_s=now_s).verdicts
    members, shadows = store.placements.members(rollout), store.placements.shadows.all(rollout.id)
    return rollout_json(rollout) | {
        "devices": counts_of(members),
        "shadows": shadows_of(shadows),
        "classes": classes_of(rollout, members, shadows, store.placements.classes()),
        "gates": [verdict_json(verdict) for verdict in verdicts],
        "events": [event_json(event) for event in store.rollouts.events(rollout.id)],
    }


def shadows_of(shadows: Iterable[Shadowing]) -> dict[str, int]:
    """Return how many devices were asked to run a candidate beside what answers, and what became of it there."""
    states = Counter(each.state for each in shadows)
    return {
        "asked": states.total(),
        **{state: states[state] for state in ("running", "unavailable", "failed")},
    }


def classes_of(
    rollout: Rollout,
    members: Iterable[Member],
    shadows: Iterable[Shadowing],
    classes: Mapping[DeviceId, str],
) -> list[dict[str, Any]]:
    """Return both by class of device, by name."""
    of: dict[str, tuple[list[Member], list[Shadowing]]] = {}
    for member in members:
        of.setdefault(classes.get(member.device, "gone"), ([], []))[0].append(member)
    for shadow in shadows:
        of.setdefault(classes.get(shadow.device, "gone"), ([], []))[1].append(shadow)
    return [
        {"class": name, "devices": counts_of(mine), "shadows": shadows_of(beside)}
        for name, (mine, beside) in sorted(of.items())
    ]


def told(shown: Mapping[str, Any]) -> str:
    """Return the state of a rollout as programs read it as the end of a sentence."""
    step = "" if shown["step"] is None else f" in step {shown['step'] + 1}"
    return {
        "draft": "is a draft",
        "running": f"runs{step}",
        "paused": f"is paused{step}",
        "kept": "was stopped, and devices kept what they had",
        "rolled-back": "was rolled back",
        "finished": "is finished",
    }[shown["state"]]


def event_json(event: Happened) -> dict[str, Any]:
    """Return an event as programs read it."""
    return {
        "at_s": event.at_s,
        "actor": event.actor,
        "event": event.event,
        "reason": event.reason,
        "gates": list(event.figures),
    }


def counts_of(members: Iterable[Member]) -> dict[str, int]:
    """Return how many devices a rollout offered its candidate, and what became of it there."""
    from umbel_server.store.became import BECAME

    found = Counter(each.became for each in members)
    return {"offered": found.total(), **{fate: found[fate] for fate in BECAME}}
