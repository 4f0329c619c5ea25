"""Law: a draw too small for a round costs a draw, and what that tells of a device stays below a thousandth of delta."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from scipy import stats

from simulation.tiny import SimulatedClock, TinyFederation
from umbel_proto.errors import UnavailableError
from umbel_server.learning.cohort import Gathering
from umbel_server.learning.draw import GAP, fewest_online, gap
from umbel_server.learning.plan import Privacy
from umbel_server.store.store import Store

DEVICES, LEAST, RATE = 6, 3, 0.5


@pytest.fixture
def federation(tmp_path: Path) -> TinyFederation:
    return TinyFederation(tmp_path, DEVICES)


def gathering(federation: TinyFederation, store: Store, coins: Iterator[bool], *, enough: int) -> Gathering:
    clock = SimulatedClock()
    privacy = Privacy(clip=1.0, noise_multiplier=0.0, sampling_rate=RATE)
    plan = replace(federation.plan(rounds=1), devices=LEAST, privacy=privacy)
    link = federation.link()
    return Gathering(store, link, plan, LEAST, enough, clock, clock.pause, draw=lambda _: next(coins))


def test_an_unlucky_draw_is_forgotten_and_the_next_decides_alone(federation: TinyFederation) -> None:
    """Two devices first, which are too few; then four, with none of the two among them."""
    unlucky = [True, True, False, False, False, False]
    then = [False, False, True, True, True, True]
    with federation.fleet.open_store() as store:
        coins = iter([*unlucky, *unlucky, *then])
        members = gathering(federation, store, coins, enough=DEVICES).gather({})
    assert next(coins, None) is None
    assert members.keys() == set(federation.link().nodes()[2:])


def test_nobody_is_drawn_from_so_few_that_being_drawn_would_show(federation: TinyFederation) -> None:
    with federation.fleet.open_store() as store:
        made = gathering(federation, store, iter(()), enough=DEVICES + 1)
        with pytest.raises(UnavailableError, match=r"6 devices are online and a round is drawn from 7 at"):
            made.gather({})


@pytest.mark.parametrize(("online", "rate", "least"), [(6, 0.5, 3), (7, 0.2, 2), (5, 0.9, 4), (4, 0.3, 4)])
def test_the_gap_is_the_share_of_draws_that_hang_on_one_device(online: int, rate: float, least: int) -> None:
    """Counted over all draws of all devices; the first is the one in question."""
    held = hanging = 0.0
    for chosen in product([False, True], repeat=online):
        chance = rate ** sum(chosen) * (1 - rate) ** (online - sum(chosen))
        held += chance * (sum(chosen) >= least)
        hanging += chance * (chosen[0] and sum(chosen) == least)
    assert gap(online, rate, least) == pytest.approx(hanging / held, rel=1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("least", [3, 20, 300])
def test_the_fewest_devices_keep_the_gap_and_one_less_does_not(rate: float, least: int) -> None:
    fewest = fewest_online(rate, least, rounds=30, delta=1e-6)

    def gap_of(online: int) -> float:
        just = rate * stats.binom.pmf(least - 1, online - 1, rate)
        return float(just / (just + stats.binom.sf(least - 1, online - 1, rate)))

    assert 30 * gap_of(fewest) <= GAP * 1e-6 * (1 + 1e-6)
    assert 30 * gap_of(fewest - 1) > GAP * 1e-6


def test_without_sampling_the_smallest_cohort_is_enough() -> None:
    assert fewest_online(1.0, 5, rounds=100, delta=1e-9) == 5
