"""Which devices a rollout's gates compare, and what these reported."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable

from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId
from umbel_server.rollouts.assignment import place, reaches
from umbel_server.rollouts.classes import fits
from umbel_server.rollouts.gates import AGREEMENT, CONFIDENCE, LATENCY, Evidence, Reported
from umbel_server.rollouts.plan import Kind, RolloutPlan, Step
from umbel_server.rollouts.state import Running
from umbel_server.store.placements import Placements
from umbel_server.store.rollouts import Rollout
from umbel_server.store.shadows import FAILED, RUNNING

SAMPLE = 1000
"""Devices of either side that are compared at most: with so many the mean of what differs between devices by half is
known to 2 %, and what more of them would add is not worth reading everything every few seconds."""

_HISTOGRAM = {Kind.LATENCY: LATENCY, Kind.ESTIMATED: CONFIDENCE, Kind.CONFIDENCE: CONFIDENCE}


def gather(placements: Placements, rollout: Rollout, *, sample: int = SAMPLE) -> Evidence:
    """Return what the devices of a running rollout reported since its step began.

    Both sides lie in the same hours. Who is looked at depends on nothing but the draw: the devices that it reached
    first, and those that it would reach last.

    Args:
        placements: Where it is kept.
        rollout: The rollout, running.
        sample: How many devices of either side are compared at most.
    """
    if not isinstance(rollout.state, Running):
        return Evidence((), ())
    if rollout.plan.steps[rollout.state.step].shadow:
        return _beside(placements, rollout, rollout.state, sample)
    members = placements.members(rollout)
    steps = rollout.plan.answering(rollout.state.step)
    candidate = _first(rollout.salt, (each.device for each in members if not each.failed), sample)
    control = others(placements, rollout, steps, sample)
    since_s = rollout.state.since_s
    return Evidence(
        candidate=_reports(placements, rollout, candidate, rollout.to_version, since_s),
        control=_reports(placements, rollout, control, rollout.from_version, since_s),
        admitted=len(members),
        failed=sum(each.failed for each in members),
    )


def _beside(placements: Placements, rollout: Rollout, running: Running, sample: int) -> Evidence:
    """Return what devices reported of a candidate that they only asked beside what answers."""
    asked = placements.shadows.all(rollout.id)
    runs = _first(rollout.salt, (each.device for each in asked if each.state == RUNNING), sample)
    found = placements.reported(
        runs, model=rollout.model, version=rollout.to_version, since_s=running.since_s, wanted={AGREEMENT}
    )
    return Evidence(
        tuple(found.values()),
        (),
        admitted=sum(each.state in (RUNNING, FAILED) for each in asked),
        failed=sum(each.state == FAILED for each in asked),
        shadow=True,
    )


def others(placements: Placements, rollout: Rollout, steps: Collection[Step], sample: int) -> list[DeviceId]:
    """Return devices that have the version before and were not reached: those that would be reached last.

    Those with a tag or of a class that the steps ask for, where there are enough of them: they are most like the ones that were.
    """
    tags = placements.tags() if any(step.tags for step in steps) else {}
    classes = placements.classes() if any(step.classes for step in steps) else {}
    pinned = placements.pinned(rollout.model)
    # Whom steps without tags reach is below one line: of a hundred thousand devices each is looked at briefly.
    line = max((step.percent / 100 for step in steps if not step.chosen), default=0.0)
    free = {
        device: where
        for device, where in (
            (device, place(rollout.salt, device))
            for device in placements.having(rollout.model, rollout.from_version)
        )
        if where >= line
        and device not in pinned
        and not (
            (tags or classes)
            and reaches(steps, where, tags.get(device, frozenset()), classes.get(device, ""))
        )
    }
    asked = frozenset[str]().union(*(step.tags for step in steps))
    patterns = frozenset[str]().union(*(step.classes for step in steps))
    alike = [
        device
        for device in free
        if not asked.isdisjoint(tags.get(device, ())) or fits(classes.get(device, ""), patterns)
    ]
    chosen = alike if len(alike) >= rollout.plan.least_devices else free
    return heapq.nlargest(sample, chosen, key=free.__getitem__)


def _reports(
    placements: Placements, rollout: Rollout, devices: Collection[DeviceId], version: int, since_s: float
) -> tuple[Reported, ...]:
    wanted = {_HISTOGRAM[gate.kind] for gate in rollout.plan.gates if gate.kind in _HISTOGRAM}
    found = placements.reported(devices, model=rollout.model, version=version, since_s=since_s, wanted=wanted)
    told = applications(rollout.plan)
    if not told:
        return tuple(found.values())
    # What an application counts belongs to no version: it is the device's, whichever it has.
    apps = placements.reported(devices, model="", version=0, since_s=since_s, wanted=told)
    return tuple(
        _joined(each for each in (found.get(device), apps.get(device)) if each is not None)
        for device in devices
        if device in found or device in apps
    )


def applications(plan: RolloutPlan) -> frozenset[str]:
    """Return the names that applications count and a plan's metrics are made of."""
    names = (name for gate in plan.gates for name in gate.metric.split("/"))
    return frozenset(name for name in names if name.startswith("app."))


def _joined(reports: Iterable[Reported]) -> Reported:
    counters: dict[str, int] = {}
    histograms: dict[str, Histogram] = {}
    for each in reports:
        counters |= each.counters
        histograms |= each.histograms
    return Reported(counters, histograms)


def _first(salt: str, devices: Iterable[DeviceId], count: int) -> list[DeviceId]:
    return heapq.nsmallest(count, devices, key=lambda device: place(salt, device))


def touched(placements: Placements, plan: RolloutPlan, salt: str, model: str) -> dict[str, list[DeviceId]]:
    """Return which devices each step would reach first, by its name: those that may call and are not pinned.

    Args:
        placements: Where it is kept.
        plan: The plan.
        salt: What the draw is made with.
        model: The model.
    """
    tags = placements.tags()
    classes = placements.classes() if any(step.classes for step in plan.steps) else {}
    pinned = placements.pinned(model)
    found: dict[str, list[DeviceId]] = {step.name: [] for step in plan.steps}
    for device in placements.eligible():
        if device in pinned:
            continue
        where, mine = place(salt, device), tags.get(device, frozenset())
        # A shadow reaches a device once, and so does what answers.
        for shadow in (True, False):
            for step in plan.steps:
                if step.shadow is shadow and reaches((step,), where, mine, classes.get(device, "")):
                    found[step.name].append(device)
                    break
    return found
