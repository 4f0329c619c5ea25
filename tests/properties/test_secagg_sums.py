"""The sum is the plain integer sum over the survivors, whoever vanishes whenever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.fleet import PHASES, Fleet, descriptor, encoding
from umbel_proto.secagg.server import Aborted, Opened
from umbel_proto.secagg.shamir import combine, deal, draw_element, recover

# Where each device vanishes: an index into PHASES, or 5 for never.
STAYS = len(PHASES)
MASK = PHASES.index("mask")


def run(fates: list[int], *, dim: int = 6, seed: int = 0) -> tuple[Fleet, Opened | Aborted]:
    fleet = Fleet(len(fates), seed=seed, session=descriptor(encoding=encoding(dim)))
    for name, fate in zip(fleet.ids, fates, strict=True):
        if fate < STAYS:
            fleet.vanish(name, PHASES[fate])
    return fleet, fleet.run_round()


def check_sum(fleet: Fleet, fates: list[int], end: Opened) -> None:
    """Whoever answered phase 3 is in the sum, and nobody else."""
    expected = {name for name, fate in zip(fleet.ids, fates, strict=True) if fate > MASK}
    assert set(end.survivors) == expected
    assert end.total.dtype == np.uint64
    assert (end.total == fleet.plain_sum(expected)).all()


@given(fates=st.lists(st.integers(0, STAYS), min_size=3, max_size=12), seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_a_small_fleet_opens_its_sum_exactly_if_its_threshold_stays(fates: list[int], seed: int) -> None:
    fleet, end = run(fates, seed=seed)
    joined = [fate for fate in fates if fate > 0]
    threshold = 2 * len(joined) // 3 + 1
    if len(joined) >= 3 and sum(fate == STAYS for fate in fates) >= threshold:
        assert isinstance(end, Opened)
        check_sum(fleet, fates, end)
    else:
        assert isinstance(end, Aborted)


@given(data=st.data(), n=st.integers(16, 64))
@settings(max_examples=10)
def test_a_larger_fleet_opens_its_sum_exactly_if_its_thresholds_stay(data: st.DataObject, n: int) -> None:
    shape = descriptor().graph_parameters(n)
    spare = min(shape.degree + shape.complete - shape.threshold, n - shape.min_survivors)
    lost = data.draw(st.dictionaries(st.integers(0, n - 1), st.integers(1, STAYS - 1), max_size=spare))
    fates = [lost.get(i, STAYS) for i in range(n)]
    fleet, end = run(fates)
    assert isinstance(end, Opened)
    check_sum(fleet, fates, end)


@given(fates=st.lists(st.sampled_from([1, 2, 3, 4, STAYS, STAYS, STAYS, STAYS]), min_size=16, max_size=40))
@settings(max_examples=15)
def test_whatever_happens_a_sum_is_right_or_there_is_none(fates: list[int]) -> None:
    fleet, end = run(fates)
    if isinstance(end, Opened):
        survivors = set(end.survivors)
        assert survivors <= {name for name, fate in zip(fleet.ids, fates, strict=True) if fate > MASK}
        assert (end.total == fleet.plain_sum(survivors)).all()
    else:
        assert end.reason


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("n", [4, 8, 20, 64])
def test_one_device_lost_in_any_phase_costs_at_most_its_own_share(n: int, phase: str) -> None:
    fates = [STAYS] * n
    fates[n // 2] = PHASES.index(phase)
    fleet, end = run(fates)
    assert isinstance(end, Opened)
    check_sum(fleet, fates, end)
    assert [loss.device for loss in end.lost] == [f"d{n // 2}"]


def test_devices_that_never_join_are_no_dropouts() -> None:
    fates = [0] * 5 + [STAYS] * 3
    fleet, end = run(fates)
    assert isinstance(end, Opened)
    check_sum(fleet, fates, end)


@pytest.mark.parametrize("dim", [1, 2, 3, 32768, 200_000])
def test_updates_of_any_length_add_up(dim: int) -> None:
    fleet, end = run([STAYS, STAYS, STAYS, STAYS, MASK], dim=dim)
    assert isinstance(end, Opened)
    assert (end.total == fleet.plain_sum(["d0", "d1", "d2", "d3"])).all()


def test_a_masked_update_looks_like_noise() -> None:
    """Bits of 2**15 masked zeros: each is set half the time, within 6 deviations.

    A right build fails once in 8 million runs.
    """
    fleet = Fleet(3, session=descriptor(encoding=encoding(2**16)))
    fleet.vectors = {name: np.zeros(2**15, np.uint64) for name in fleet.ids}
    fleet.run_to("mask")
    words = fleet.ask("d0").words
    assert words is not None
    for bit in range(64):
        ones = int(((words >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - 2**14) < 6 * np.sqrt(2**15 / 4)


@given(data=st.data(), points=st.sets(st.integers(1, 2000), min_size=1, max_size=20))
def test_shares_at_any_points_give_the_secret(data: st.DataObject, points: set[int]) -> None:
    threshold = data.draw(st.integers(1, len(points)))
    secret = draw_element()
    shares = deal(secret, points=sorted(points), threshold=threshold)
    chosen = data.draw(st.permutations(sorted(points)))[:threshold]
    assert combine({x: shares[x] for x in chosen}) == secret


@given(data=st.data(), n=st.integers(3, 12))
def test_recovery_survives_any_liars_that_leave_a_threshold_of_truth(data: st.DataObject, n: int) -> None:
    threshold = data.draw(st.integers(1, n))
    secret = draw_element()
    shares = deal(secret, points=range(1, n + 1), threshold=threshold)
    liars = data.draw(st.sets(st.integers(1, n), max_size=min(2, n - threshold)))
    for liar in liars:
        shares[liar] = draw_element()
    found, wrong = recover(shares, threshold=threshold, check=lambda candidate: candidate == secret)
    assert found == secret
    assert wrong <= liars
