"""Where a rollout stands, and what follows from what happens to it. A refused event changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from umbel_proto.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Draft:
    """It was made, and reaches nobody yet."""


@dataclass(frozen=True, slots=True)
class Running:
    """It offers the candidate to the devices of its steps up to one.

    Args:
        step: The step, from 0.
        since_s: When the step began, Unix seconds.
    """

    step: int
    since_s: float


@dataclass(frozen=True, slots=True)
class Paused:
    """It reaches no further devices until somebody resumes or stops it.

    Args:
        step: The step, from 0.
        since_s: When the pause began, Unix seconds.
        reason: Why.
    """

    step: int
    since_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Kept:
    """It was stopped: devices that have the candidate keep it, no other one gets it.

    Args:
        step: The step it was in.
        since_s: When it was stopped, Unix seconds.
        reason: Why.
    """

    step: int
    since_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """It was stopped: devices that have the candidate go back to the version before.

    Args:
        step: The step it was in.
        since_s: When it was stopped, Unix seconds.
        reason: Why.
    """

    step: int
    since_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Every device is offered the candidate, and new ones are as well.

    Args:
        step: The last step.
        since_s: When it was finished, Unix seconds.
    """

    step: int
    since_s: float


State: TypeAlias = Draft | Running | Paused | Kept | RolledBack | Finished


@dataclass(frozen=True, slots=True)
class Start:
    """Let the first step begin."""


@dataclass(frozen=True, slots=True)
class Advance:
    """The step passed: let the next one begin, or the rollout be finished.

    Args:
        reason: What it passed.
    """

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Reach no further devices for now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with the step, which begins anew."""


@dataclass(frozen=True, slots=True)
class StopKeeping:
    """End it, and leave devices as they are."""

    reason: str


@dataclass(frozen=True, slots=True)
class RollBack:
    """End it, and take the candidate back; also after it ended otherwise."""

    reason: str


Event: TypeAlias = Start | Advance | Pause | Resume | StopKeeping | RollBack


def step(state: State, event: Event, *, steps: int, now_s: float) -> State:
    """Return the state after an event.

    Args:
        state: The state before.
        event: What happens.
        steps: How many steps the plan has.
        now_s: When, Unix seconds.

    Raises:
        RefusedError: It cannot happen in this state.
    """
    match state, event:
        case Draft(), Start():
            return Running(0, now_s)
        case Running(at), Advance() if at + 1 < steps:
            return Running(at + 1, now_s)
        case Running(at), Advance():
            return Finished(at, now_s)
        case Running(at), Pause(reason):
            return Paused(at, now_s, reason)
        case Paused(at), Resume():
            return Running(at, now_s)
        case ((Running(at) | Paused(at)), StopKeeping(reason)):
            return Kept(at, now_s, reason)
        # What was finished or kept may turn out to be bad later.
        case ((Running(at) | Paused(at) | Kept(at) | Finished(at)), RollBack(reason)):
            return RolledBack(at, now_s, reason)
    raise RefusedError(f"The rollout {told(state)}: {_ASKS[type(event)]} is not possible now.")


def told(state: State) -> str:
    """Return a state as the end of a sentence."""
    match state:
        case Draft():
            return "is a draft"
        case Running(at):
            return f"runs in step {at + 1}"
        case Paused(at):
            return f"is paused in step {at + 1}"
        case Kept():
            return "was stopped, and devices kept what they had"
        case RolledBack():
            return "was rolled back"
        case Finished():
            return "is finished"


_ASKS = {
    Start: "to start it",
    Advance: "to go on to the next step",
    Pause: "to pause it",
    Resume: "to resume it",
    StopKeeping: "to stop it",
    RollBack: "to roll it back",
}
