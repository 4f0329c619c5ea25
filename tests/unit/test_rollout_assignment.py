"""Whom a rollout draws: always the same devices, more of them as it grows, and others than the next one."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from umbel_proto.ids import DeviceId
from umbel_server.rollouts.assignment import place, reaches
from umbel_server.rollouts.plan import Step

NAMES = [DeviceId(f"device-{number}") for number in range(20_000)]
FALSE_ALARM = 1e-6
"""Of each test by chance here; there is no chance in it once the names are fixed."""

salts = st.text(max_size=20)
devices = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,30}", fullmatch=True).map(DeviceId)
tag_sets = st.frozensets(st.sampled_from(["lab", "north", "old"]))
steps = st.builds(Step, st.just("some"), st.floats(0.01, 100), tag_sets)


@given(salts, devices)
def test_a_device_stands_at_one_place_in_the_draw(salt: str, device: DeviceId) -> None:
    assert 0 <= place(salt, device) < 1
    assert place(salt, device) == place(salt, device)


@given(salts, devices, st.lists(steps, min_size=1, max_size=5), tag_sets)
def test_going_on_never_takes_a_device_out(
    salt: str, device: DeviceId, plan: list[Step], tags: frozenset[str]
) -> None:
    where = place(salt, device)
    reached = [reaches(plan[: number + 1], where, tags) for number in range(len(plan))]
    assert reached == sorted(reached)


@given(salts, devices, st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_larger_share_contains_a_smaller_one(salt: str, device: DeviceId, one: float, other: float) -> None:
    where = place(salt, device)
    small, large = Step("small", min(one, other)), Step("large", max(one, other))
    assert not reaches([small], where, ()) or reaches([large], where, ())


@given(salts, devices)
def test_all_of_the_devices_are_all_of_them(salt: str, device: DeviceId) -> None:
    assert reaches([Step("all", 100)], place(salt, device), ())


def test_only_devices_with_a_tag_that_is_asked_for_are_reached() -> None:
    lab = Step("lab", 100, frozenset({"lab", "bench"}))
    assert reaches([lab], 0.5, {"lab", "north"})
    assert not reaches([lab], 0.5, {"north"})
    assert not reaches([lab], 0.5, ())


def test_places_are_spread_evenly() -> None:
    counts = np.histogram([place("rollout/digits-4", name) for name in NAMES], bins=100, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


def test_two_rollouts_draw_independently_of_each_other() -> None:
    one = [int(10 * place("rollout/digits-4", name)) for name in NAMES]
    other = [int(10 * place("rollout/digits-5", name)) for name in NAMES]
    table = np.histogram2d(one, other, bins=10, range=((0, 10), (0, 10)))[0]
    assert stats.chi2_contingency(table).pvalue > FALSE_ALARM


def test_a_salt_and_a_name_are_not_mixed_up() -> None:
    assert place("a", DeviceId("bc")) != place("ab", DeviceId("c"))


def test_the_draw_is_the_one_that_is_written_down() -> None:
    """Other code that draws otherwise would move every device of a running rollout."""
    digest = hashlib.sha256(b"rollout/digits-4\0rose").digest()
    assert place("rollout/digits-4", DeviceId("rose")) == int.from_bytes(digest[:8], "big") // 2048 / 2**53
