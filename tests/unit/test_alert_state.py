"""Alerts as a value: every state with every event, and that one who flaps does not spam."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel_proto.errors import RefusedError
from umbel_server.monitor.alerts.state import (
    Acknowledge,
    Acknowledged,
    Assign,
    Clears,
    Event,
    Firing,
    Holds,
    Notice,
    Pending,
    Resolved,
    Silence,
    Silenced,
    State,
    Step,
    Timing,
    Told,
    Unsilence,
    step,
)

NOW_S = 1_000_000.0
TIMING = Timing(for_s=60.0, clear_s=120.0, quiet_s=3600.0)
AT_ONCE = Timing()
TOLD = Told(NOW_S - 50.0, open=True)
STATES: dict[str, State] = {
    "pending": Pending(NOW_S - 30.0, Told()),
    "ripe": Pending(NOW_S - 60.0, Told()),
    "firing": Firing(NOW_S - 100.0, TOLD),
    "clearing": Firing(NOW_S - 500.0, TOLD, clear_s=NOW_S - 120.0),
    "acknowledged": Acknowledged(NOW_S - 100.0, TOLD, "ann", "mine"),
    "silenced": Silenced(NOW_S - 100.0, TOLD, NOW_S + 10.0, "ann", "known"),
    "silence over": Silenced(NOW_S - 100.0, TOLD, NOW_S, "ann", "known"),
    "resolved": Resolved(NOW_S - 100.0),
}
EVENTS: dict[str, Event] = {
    "holds": Holds(),
    "clears": Clears(),
    "acknowledge": Acknowledge("bob", "mine"),
    "assign": Assign("carol", "she knows it"),
    "silence": Silence("bob", "known", NOW_S + 60.0),
    "unsilence": Unsilence(),
}
# State and event to the state after, what is told, and whether actions are due; None: it is refused.
LAW: dict[tuple[str, str], tuple[type[State], Notice | None, bool] | None] = {
    ("pending", "holds"): (Pending, None, False),
    ("pending", "clears"): (Resolved, None, False),
    ("pending", "acknowledge"): None,
    ("pending", "assign"): None,
    ("pending", "silence"): (Silenced, None, False),
    ("pending", "unsilence"): None,
    ("ripe", "holds"): (Firing, Notice.FIRING, True),
    ("ripe", "clears"): (Resolved, None, False),
    ("ripe", "acknowledge"): None,
    ("ripe", "assign"): None,
    ("ripe", "silence"): (Silenced, None, False),
    ("ripe", "unsilence"): None,
    ("firing", "holds"): (Firing, None, False),
    ("firing", "clears"): (Firing, None, False),
    ("firing", "acknowledge"): (Acknowledged, None, False),
    ("firing", "assign"): (Acknowledged, None, False),
    ("firing", "silence"): (Silenced, None, False),
    ("firing", "unsilence"): None,
    ("clearing", "holds"): (Firing, None, False),
    ("clearing", "clears"): (Resolved, Notice.RESOLVED, False),
    ("clearing", "acknowledge"): (Acknowledged, None, False),
    ("clearing", "assign"): (Acknowledged, None, False),
    ("clearing", "silence"): (Silenced, None, False),
    ("clearing", "unsilence"): None,
    ("acknowledged", "holds"): (Acknowledged, None, False),
    ("acknowledged", "clears"): (Acknowledged, None, False),
    ("acknowledged", "acknowledge"): None,
    ("acknowledged", "assign"): (Acknowledged, None, False),
    ("acknowledged", "silence"): (Silenced, None, False),
    ("acknowledged", "unsilence"): None,
    ("silenced", "holds"): (Silenced, None, False),
    ("silenced", "clears"): (Silenced, None, False),
    ("silenced", "acknowledge"): None,
    ("silenced", "assign"): None,
    ("silenced", "silence"): (Silenced, None, False),
    ("silenced", "unsilence"): (Pending, None, False),
    # It was told 50 s ago, and the time of quiet is an hour: it is told once that is over.
    ("silence over", "holds"): (Firing, None, True),
    ("silence over", "clears"): (Resolved, Notice.RESOLVED, False),
    ("silence over", "acknowledge"): None,
    ("silence over", "assign"): None,
    ("silence over", "silence"): (Silenced, None, False),
    ("silence over", "unsilence"): (Pending, None, False),
    ("resolved", "holds"): (Pending, None, False),
    ("resolved", "clears"): (Resolved, None, False),
    ("resolved", "acknowledge"): None,
    ("resolved", "assign"): None,
    ("resolved", "silence"): None,
    ("resolved", "unsilence"): None,
}


def test_the_law_names_every_state_with_every_event() -> None:
    assert set(LAW) == {(state, event) for state in STATES for event in EVENTS}


@pytest.mark.parametrize(("state", "event"), LAW, ids=" + ".join)
def test_every_state_with_every_event(state: str, event: str) -> None:
    expected = LAW[state, event]
    if expected is None:
        with pytest.raises(RefusedError, match="is not possible now"):
            step(STATES[state], EVENTS[event], TIMING, now_s=NOW_S)
        return
    found = step(STATES[state], EVENTS[event], TIMING, now_s=NOW_S)
    assert (type(found.state), found.notice, found.fires) == expected


def test_it_fires_at_once_where_the_rule_is_not_patient() -> None:
    found = step(Resolved(0.0), Holds(), AT_ONCE, now_s=NOW_S)
    assert found == Step(Firing(NOW_S, Told(NOW_S, open=True)), Notice.FIRING, fires=True)


def test_a_silence_outlives_what_it_is_about() -> None:
    silenced = Silenced(NOW_S - 100.0, TOLD, NOW_S + 1000.0, "ann", "known")
    gone = step(silenced, Clears(), AT_ONCE, now_s=NOW_S).state
    again = step(gone, Holds(), AT_ONCE, now_s=NOW_S + 10.0)
    assert isinstance(again.state, Silenced)
    assert again.state.until_s == NOW_S + 1000.0
    assert again.notice is None


def test_after_a_silence_people_are_told_anew() -> None:
    silenced = Silenced(NOW_S - 100.0, TOLD, NOW_S + 1000.0, "ann", "known")
    assert step(silenced, Holds(), AT_ONCE, now_s=NOW_S + 1000.0).notice is Notice.FIRING


def test_an_end_of_a_silence_by_hand_tells_those_who_were_told_that_it_ended() -> None:
    silenced = Silenced(NOW_S - 100.0, TOLD, NOW_S + 1000.0, "ann", "known", clear_s=NOW_S - 10.0)
    loud = step(silenced, Unsilence(), TIMING, now_s=NOW_S).state
    assert step(loud, Clears(), TIMING, now_s=NOW_S + 200.0).notice is Notice.RESOLVED


looks = st.lists(st.tuples(st.booleans(), st.floats(1.0, 2000.0)), max_size=80)
timings = st.builds(
    Timing,
    for_s=st.sampled_from([0.0, 30.0, 300.0]),
    clear_s=st.sampled_from([0.0, 30.0, 300.0]),
    quiet_s=st.sampled_from([60.0, 600.0, 3600.0]),
)


@given(looks, timings)
def test_one_that_flaps_is_told_once_in_a_time_of_quiet_and_its_end_only_to_who_was_told(
    seen: list[tuple[bool, float]], timing: Timing
) -> None:
    state: State = Resolved(0.0)
    now_s, told, last_s = NOW_S, [], None
    for holds, later_s in seen:
        now_s += later_s
        found = step(state, Holds() if holds else Clears(), timing, now_s=now_s)
        state = found.state
        if found.notice is None:
            continue
        told.append(found.notice)
        if found.notice is Notice.FIRING:
            assert last_s is None or now_s - last_s >= timing.quiet_s
            last_s = now_s
    firing, resolved = told.count(Notice.FIRING), told.count(Notice.RESOLVED)
    assert resolved <= firing
    assert state.told.open == (told[-1] is Notice.FIRING if told else False)


@given(looks, timings)
def test_it_never_fires_before_it_has_held_for_as_long_as_the_rule_says(
    seen: list[tuple[bool, float]], timing: Timing
) -> None:
    state: State = Resolved(0.0)
    now_s, held_since_s = NOW_S, None
    for holds, later_s in seen:
        now_s += later_s
        if holds and held_since_s is None:
            held_since_s = now_s
        found = step(state, Holds() if holds else Clears(), timing, now_s=now_s)
        if found.fires:
            assert held_since_s is not None
            assert now_s - held_since_s >= timing.for_s
        state = found.state
        if not holds:
            held_since_s = None
