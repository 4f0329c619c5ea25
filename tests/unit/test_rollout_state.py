"""Where a rollout stands: every state, and everything that can happen in it."""

from __future__ import annotations

import pytest

from umbel_proto.errors import RefusedError
from umbel_server.rollouts.state import (
    Advance,
    Draft,
    Event,
    Finished,
    Kept,
    Pause,
    Paused,
    Resume,
    RollBack,
    RolledBack,
    Running,
    Start,
    State,
    StopKeeping,
    step,
)

STATES: tuple[State, ...] = (
    Draft(),
    Running(0, 1.0),
    Running(1, 1.0),
    Paused(1, 1.0, "lunch"),
    Kept(1, 1.0, "enough"),
    RolledBack(1, 1.0, "bad"),
    Finished(1, 1.0),
)
EVENTS: tuple[Event, ...] = (
    Start(),
    Advance("passed"),
    Pause("why"),
    Resume(),
    StopKeeping("why"),
    RollBack("why"),
)
# What follows, of a rollout of two steps, at 9; what is not here is refused.
FOLLOWS: dict[tuple[State, Event], State] = {
    (Draft(), Start()): Running(0, 9.0),
    (Running(0, 1.0), Advance("passed")): Running(1, 9.0),
    (Running(1, 1.0), Advance("passed")): Finished(1, 9.0),
    (Running(0, 1.0), Pause("why")): Paused(0, 9.0, "why"),
    (Running(1, 1.0), Pause("why")): Paused(1, 9.0, "why"),
    (Paused(1, 1.0, "lunch"), Resume()): Running(1, 9.0),
    (Running(0, 1.0), StopKeeping("why")): Kept(0, 9.0, "why"),
    (Running(1, 1.0), StopKeeping("why")): Kept(1, 9.0, "why"),
    (Paused(1, 1.0, "lunch"), StopKeeping("why")): Kept(1, 9.0, "why"),
    (Running(0, 1.0), RollBack("why")): RolledBack(0, 9.0, "why"),
    (Running(1, 1.0), RollBack("why")): RolledBack(1, 9.0, "why"),
    (Paused(1, 1.0, "lunch"), RollBack("why")): RolledBack(1, 9.0, "why"),
    (Kept(1, 1.0, "enough"), RollBack("why")): RolledBack(1, 9.0, "why"),
    (Finished(1, 1.0), RollBack("why")): RolledBack(1, 9.0, "why"),
}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("state", STATES, ids=str)
def test_every_event_in_every_state_has_one_outcome(state: State, event: Event) -> None:
    after = FOLLOWS.get((state, event))
    if after is not None:
        assert step(state, event, steps=2, now_s=9.0) == after
        return
    with pytest.raises(RefusedError, match="is not possible now"):
        step(state, event, steps=2, now_s=9.0)


def test_a_rollout_of_one_step_is_finished_by_it() -> None:
    assert step(Running(0, 1.0), Advance(), steps=1, now_s=9.0) == Finished(0, 9.0)
