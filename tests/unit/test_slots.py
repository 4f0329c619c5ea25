"""Slots: one version answers, one is kept to go back to, and what failed here is not tried again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel._releases.slots import MAX_FAILURES, Failure, Slots

A, B, C = "a" * 64, "b" * 64, "c" * 64


def failure(sha256: str, version: int, *, told: bool = False) -> Failure:
    return Failure(sha256, version, "failed its trial", 1000.5, "0.1.0", told)


def test_a_new_version_becomes_active_and_the_one_before_stays() -> None:
    slots = Slots().taken(A, 1).taken(B, 2).taken(C, 3)
    assert (slots.active, slots.previous, slots.newest, slots.proven) == (C, B, 3, False)


def test_taking_the_active_version_again_keeps_the_previous_one() -> None:
    assert Slots().taken(A, 1).taken(B, 2).taken(B, 2).previous == A


def test_a_version_that_was_refused_changes_nothing_that_answers() -> None:
    slots = Slots().taken(A, 1)
    after = slots.refused(failure(B, 2))
    assert (after.active, after.previous, after.newest) == (A, None, 1)
    assert after.failure(B, umbel="0.1.0") is not None


def test_falling_back_remembers_what_failed_and_how_high_versions_were() -> None:
    slots = Slots().taken(A, 1).taken(B, 2).fell_back(failure(B, 2))
    assert (slots.active, slots.previous, slots.newest, slots.proven) == (A, None, 2, True)


def test_another_umbel_may_try_what_failed_under_this_one() -> None:
    slots = Slots().refused(failure(B, 2))
    assert slots.failure(B, umbel="0.2.0") is None


def test_a_retry_forgets_failures_and_nothing_else() -> None:
    slots = Slots().taken(A, 1).taken(B, 2).fell_back(failure(B, 2))
    assert slots.retried() == Slots(A, None, 2, proven=True)


def test_a_newer_version_makes_failures_of_older_ones_forgotten() -> None:
    slots = Slots().taken(A, 1).refused(failure(B, 2)).refused(failure(C, 4)).taken("d" * 64, 3)
    assert [each.version for each in slots.failed] == [4]


def test_failures_are_bounded_and_the_oldest_go() -> None:
    slots = Slots()
    for version in range(100):
        slots = slots.refused(failure(f"{version:064x}", version))
    assert [each.version for each in slots.failed] == list(range(100 - MAX_FAILURES, 100))


def test_what_fails_twice_is_remembered_once() -> None:
    assert len(Slots().refused(failure(A, 1)).refused(failure(A, 1)).failed) == 1


hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
failures = st.builds(
    Failure, hashes, st.integers(1, 2**31), st.text(), st.floats(0, 2e9), st.text(), st.booleans()
)
slots_of_any_kind = st.builds(
    Slots,
    st.none() | hashes,
    st.none() | hashes,
    st.integers(0, 2**31),
    st.booleans(),
    st.lists(failures).map(tuple),
)


@given(slots_of_any_kind)
def test_slots_read_back_as_they_were_written(slots: Slots) -> None:
    assert Slots.from_json(slots.to_json()) == slots


def test_the_file_of_an_umbel_that_knew_two_fields_is_read() -> None:
    assert Slots.from_json(json.dumps({"active": A, "previous": None}).encode()) == Slots(A)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"[]",
        b"5",
        b"{}",
        b'{"active": null}',
        b'{"active": "../../etc", "previous": null}',
        b'{"active": 5, "previous": null}',
        b'{"active": null, "previous": null, "newest": null}',
        b'{"active": null, "previous": null, "newest": [1]}',
        b'{"active": null, "previous": null, "failed": 5}',
        b'{"active": null, "previous": null, "failed": [{}]}',
        b'{"active": null, "previous": null, "failed": [[]]}',
        b'{"active": null, "previous": null, "failed": [{"sha256": null}]}',
    ],
)
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json's own sentences differ.
        Slots.from_json(raw)
