"""Where a version stands, and what may become of it. Pure: no store, no clock."""

from __future__ import annotations

import enum

from umbel_proto.errors import RefusedError


class Stage(enum.StrEnum):
    """Where a version stands."""

    DRAFT = "draft"
    CANDIDATE = "candidate"
    APPROVED = "approved"
    RELEASED = "released"
    DEPRECATED = "deprecated"
    RETIRED = "retired"


class Event(enum.StrEnum):
    """What happens to a version."""

    CHANGE = "change"
    """Another package takes its place."""
    REQUEST = "request"
    """Somebody asks for approval."""
    APPROVE = "approve"
    """The last approval that it needs is given."""
    REJECT = "reject"
    """Somebody says no."""
    LAPSE = "lapse"
    """What was approved is not what there is any more, or it is too long ago."""
    RELEASE = "release"
    """Devices may have it."""
    DEPRECATE = "deprecate"
    """Nobody should choose it any more; devices still may have it."""
    REINSTATE = "reinstate"
    """It is as good as before."""
    RETIRE = "retire"
    """No device may fetch it any more."""


_NEXT: dict[tuple[Stage, Event], Stage] = {
    (Stage.DRAFT, Event.CHANGE): Stage.DRAFT,
    (Stage.DRAFT, Event.REQUEST): Stage.CANDIDATE,
    (Stage.DRAFT, Event.RETIRE): Stage.RETIRED,
    (Stage.CANDIDATE, Event.CHANGE): Stage.DRAFT,
    (Stage.CANDIDATE, Event.REQUEST): Stage.CANDIDATE,
    (Stage.CANDIDATE, Event.APPROVE): Stage.APPROVED,
    (Stage.CANDIDATE, Event.REJECT): Stage.DRAFT,
    (Stage.CANDIDATE, Event.LAPSE): Stage.DRAFT,
    (Stage.CANDIDATE, Event.RETIRE): Stage.RETIRED,
    (Stage.APPROVED, Event.CHANGE): Stage.DRAFT,
    (Stage.APPROVED, Event.REQUEST): Stage.CANDIDATE,
    (Stage.APPROVED, Event.REJECT): Stage.DRAFT,
    (Stage.APPROVED, Event.LAPSE): Stage.DRAFT,
    (Stage.APPROVED, Event.RELEASE): Stage.RELEASED,
    (Stage.APPROVED, Event.RETIRE): Stage.RETIRED,
    (Stage.RELEASED, Event.RELEASE): Stage.RELEASED,
    (Stage.RELEASED, Event.DEPRECATE): Stage.DEPRECATED,
    (Stage.RELEASED, Event.RETIRE): Stage.RETIRED,
    (Stage.DEPRECATED, Event.RELEASE): Stage.DEPRECATED,
    (Stage.DEPRECATED, Event.REINSTATE): Stage.RELEASED,
    (Stage.DEPRECATED, Event.RETIRE): Stage.RETIRED,
}


def possible(stage: Stage) -> frozenset[Event]:
    """Return what can become of a version of that stage."""
    return frozenset(event for before, event in _NEXT if before is stage)


def step(stage: Stage, event: Event) -> Stage:
    """Return where a version stands after something happened to it.

    Raises:
        RefusedError: It cannot happen to a version of that stage.
    """
    after = _NEXT.get((stage, event))
    if after is None:
        could = ", ".join(each for each in Event if (stage, each) in _NEXT) or "nothing"
        raise RefusedError(f"A version that is {stage} knows no {event}: what can become of it is {could}.")
    return after
