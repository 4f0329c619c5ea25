"""Where an alert stands, and what follows from what is seen and from what people do. A refused event changes nothing.

What an alert is about holds, or it does not. It fires once it has held for as long as its rule says, and ends once it
has not held for as long; so one that comes and goes quickly stays as it is. People are told that it fires once, and
again at the earliest after a time of quiet; that it has ended, if they were told that it fires.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TypeAlias

from umbel_proto.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Told:
    """What people were told of an alert.

    Args:
        at_s: When they were last told that it fires, Unix seconds; 0: never.
        open: Whether they were not told yet that it ended.
    """

    at_s: float = 0.0
    open: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """It holds, not for long enough yet.

    Args:
        since_s: Since when, Unix seconds.
        told: What people were told of it before.
    """

    since_s: float
    told: Told


@dataclass(frozen=True, slots=True)
class Firing:
    """It fires.

    Args:
        since_s: Since when it holds or, after a silence, since that ended, Unix seconds.
        told: What people were told.
        clear_s: Since when it holds no longer, not for long enough yet; None: it holds.
    """

    since_s: float
    told: Told
    clear_s: float | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """It fires, and somebody takes care of it: nobody is reminded.

    Args:
        since_s: Since when it holds, Unix seconds.
        told: What people were told.
        who: Who takes care.
        reason: In their words.
        clear_s: Since when it holds no longer, not for long enough yet; None: it holds.
    """

    since_s: float
    told: Told
    who: str
    reason: str
    clear_s: float | None = None


@dataclass(frozen=True, slots=True)
class Silenced:
    """Nobody is told of it, and nothing is done because of it, for some time.

    Args:
        since_s: Since when it holds, or held, Unix seconds.
        told: What people were told before.
        until_s: When the silence ends.
        who: Who wants it so.
        reason: Why, in their words.
        clear_s: Since when it holds no longer; None: it holds.
    """

    since_s: float
    told: Told
    until_s: float
    who: str
    reason: str
    clear_s: float | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """It does not hold.

    Args:
        since_s: Since when, Unix seconds.
        told: What people were told.
    """

    since_s: float
    told: Told = Told()


State: TypeAlias = Pending | Firing | Acknowledged | Silenced | Resolved


@dataclass(frozen=True, slots=True)
class Holds:
    """Its rule was looked at, and it holds."""


@dataclass(frozen=True, slots=True)
class Clears:
    """Its rule was looked at, and it does not hold."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Somebody takes care of it.

    Args:
        who: Who.
        reason: In their words.
    """

    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class Silence:
    """Somebody wants to hear nothing of it.

    Args:
        who: Who.
        reason: Why.
        until_s: Until when, Unix seconds.
    """

    who: str
    reason: str
    until_s: float


@dataclass(frozen=True, slots=True)
class Assign:
    """Somebody is to take care of it, because they or somebody else say so: as if they had acknowledged it.

    Args:
        who: Who takes care.
        reason: Why, in the words of who says so.
    """

    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unsilence:
    """Somebody ends its silence: what follows, the next look at its rule says."""


Event: TypeAlias = Holds | Clears | Acknowledge | Assign | Silence | Unsilence


class Notice(enum.StrEnum):
    """What people are told."""

    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a rule is.

    Args:
        for_s: How long it must hold until it fires, seconds.
        clear_s: How long it must not hold until it ends.
        quiet_s: Least time between two notices that it fires.
    """

    for_s: float = 0.0
    clear_s: float = 0.0
    quiet_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from an event.

    Args:
        state: The state after it.
        notice: What people are to be told; None: nothing.
        fires: Whether it began to fire: then its rule's actions are due.
    """

    state: State
    notice: Notice | None = None
    fires: bool = False


def step(state: State, event: Event, timing: Timing, *, now_s: float) -> Step:
    """Return what follows from an event.

    Args:
        state: The state before; of an alert that is new, ``Resolved``.
        event: What happens.
        timing: How patient its rule is.
        now_s: When, Unix seconds.

    Raises:
        RefusedError: It cannot happen in this state.
    """
    match state, event:
        case Resolved(_, told), Holds():
            return _ripe(Pending(now_s, told), timing, now_s)
        case Pending() as pending, Holds():
            return _ripe(pending, timing, now_s)
        case Firing() as firing, Holds():
            return _tell(replace(firing, clear_s=None), timing, now_s)
        case Acknowledged() as acknowledged, Holds():
            return Step(replace(acknowledged, clear_s=None))
        case Silenced() as silenced, Holds():
            begun = silenced if silenced.clear_s is None else replace(silenced, since_s=now_s, clear_s=None)
            return Step(begun) if now_s < silenced.until_s else _loud(begun, timing, now_s)
        case Resolved() as resolved, Clears():
            return Step(resolved)
        case Pending(_, told), Clears():
            return Step(Resolved(now_s, told))
        case ((Firing() | Acknowledged()) as active, Clears()):
            since_s = now_s if active.clear_s is None else active.clear_s
            if now_s - since_s < timing.clear_s:
                return Step(replace(active, clear_s=since_s))
            return _over(active.told, now_s)
        case Silenced() as silenced, Clears():
            since_s = now_s if silenced.clear_s is None else silenced.clear_s
            if now_s < silenced.until_s:
                return Step(replace(silenced, clear_s=since_s))
            return _over(silenced.told, now_s)
        case Firing() as firing, Acknowledge(who, reason):
            return Step(Acknowledged(firing.since_s, firing.told, who, reason, firing.clear_s))
        case ((Firing() | Acknowledged()) as active, Assign(who, reason)):
            return Step(Acknowledged(active.since_s, active.told, who, reason, active.clear_s))
        case ((Pending() | Firing() | Acknowledged() | Silenced()) as loud, Silence(who, reason, until_s)):
            clear_s = None if isinstance(loud, Pending) else loud.clear_s
            return Step(Silenced(loud.since_s, loud.told, until_s, who, reason, clear_s))
        case Silenced(clear_s=None) as silenced, Unsilence():
            return Step(Pending(silenced.since_s, silenced.told))
        case Silenced() as silenced, Unsilence():
            return Step(Firing(silenced.since_s, silenced.told, silenced.clear_s))
    raise RefusedError(f"The alert {_TOLD[type(state)]}: {_ASKS[type(event)]} is not possible now.")


def _ripe(pending: Pending, timing: Timing, now_s: float) -> Step:
    """Let it fire if it has held for long enough."""
    if now_s - pending.since_s < timing.for_s:
        return Step(pending)
    return replace(_tell(Firing(pending.since_s, pending.told), timing, now_s), fires=True)


def _loud(silenced: Silenced, timing: Timing, now_s: float) -> Step:
    """End a silence of what holds: it fires from now on, which is told anew, or goes on to wait."""
    if now_s - silenced.since_s < timing.for_s:
        return Step(Pending(silenced.since_s, silenced.told))
    return replace(_tell(Firing(now_s, silenced.told), timing, now_s), fires=True)


def _tell(firing: Firing, timing: Timing, now_s: float) -> Step:
    """Tell people that it fires, unless they were told of this time already, or of another one just before."""
    told_s = firing.told.at_s
    if (told_s and told_s >= firing.since_s) or (told_s and now_s - told_s < timing.quiet_s):
        return Step(firing)
    return Step(replace(firing, told=Told(now_s, open=True)), Notice.FIRING)


def _over(told: Told, now_s: float) -> Step:
    if not told.open:
        return Step(Resolved(now_s, told))
    return Step(Resolved(now_s, replace(told, open=False)), Notice.RESOLVED)


_TOLD = {
    Pending: "has not held for long enough to fire",
    Firing: "fires",
    Acknowledged: "is acknowledged",
    Silenced: "is silenced",
    Resolved: "is resolved",
}
_ASKS = {
    Holds: "to hold",
    Clears: "to end",
    Acknowledge: "to acknowledge it",
    Assign: "to assign it",
    Silence: "to silence it",
    Unsilence: "to end its silence",
}
