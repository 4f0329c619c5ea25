"""Law: a node asks often enough to be no brake on a round, and seldom enough to be no burden on the SuperLink."""

from __future__ import annotations

import pytest

from umbel._rounds.pace import BUSY_FOR_S, IDLE_POLL_S, LEAST_S, MOST_S, NEW_POLL_S, Pace


def asks_until(pace: Pace, now_s: float, there_s: float) -> tuple[float, int]:
    """When a node that asks from ``now_s`` on finds a message that is there at ``there_s``; how often it asked."""
    asked = 1
    while now_s < there_s:
        now_s += pace.after_nothing(now_s)
        asked += 1
    return now_s, asked


@pytest.mark.parametrize("idle_s", [0.5, 5.0, 3600.0])
@pytest.mark.parametrize("phase_s", [0.2, 1.0, 3.0])
def test_a_phase_is_noticed_an_eighth_of_its_length_late_whatever_came_before_the_round(
    phase_s: float, idle_s: float
) -> None:
    pace = Pace(0.0)
    begin_s, _ = asks_until(pace, 0.0, idle_s)
    answered_s = begin_s + 0.4  # The training.
    now_s = answered_s + pace.after_answer(begin_s, answered_s)
    for _ in range(4):
        there_s = answered_s + phase_s
        now_s, asked = asks_until(pace, now_s, there_s)
        assert now_s - there_s <= max(LEAST_S, min(phase_s / 8, MOST_S)) + 1e-9
        assert asked < 30
        answered_s = now_s
        now_s += pace.after_answer(now_s, answered_s)


def test_a_device_that_just_came_online_hears_of_a_waiting_round_soon_and_asks_little() -> None:
    for _ in range(100):
        now_s, asked = asks_until(Pace(0.0), 0.0, 4.0)
        assert now_s - 4.0 <= 1.5 * NEW_POLL_S
        assert asked <= 2 + 4.0 / (NEW_POLL_S / 2)


def test_between_rounds_a_device_asks_seldom_and_not_in_step_with_others() -> None:
    pace = Pace(0.0)
    pace.after_answer(1.0, 2.0)
    pauses = [pace.after_nothing(2.0 + BUSY_FOR_S) for _ in range(1000)]
    assert min(pauses) >= IDLE_POLL_S / 2
    assert max(pauses) <= IDLE_POLL_S * 3 / 2
    assert len(set(pauses)) > 900  # Of 65,536 there are; 1,000 draws repeat about 8.
