"""Shamir's sharing: any threshold of shares gives the secret, and a wrong share is found out."""

from __future__ import annotations

import itertools

import pytest

from umbel_proto.errors import UsageError, VerificationError
from umbel_proto.secagg.shamir import PRIME, combine, deal, draw_element, is_element, recover


def element(value: int) -> bytes:
    return value.to_bytes(32, "big")


def is_probably_prime(n: int) -> bool:
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        x = pow(base, odd, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_the_one_of_the_largest_prime_below_two_to_the_256() -> None:
    assert is_probably_prime(PRIME)
    assert not any(is_probably_prime(2**256 - gap) for gap in range(1, 189))


def test_any_threshold_of_shares_gives_the_secret() -> None:
    secret = draw_element()
    shares = deal(secret, points=range(1, 7), threshold=4)
    for chosen in itertools.combinations(shares, 4):
        assert combine({x: shares[x] for x in chosen}) == secret


def test_one_share_less_gives_something_else() -> None:
    secret = draw_element()
    shares = deal(secret, points=range(1, 7), threshold=4)
    assert combine({x: shares[x] for x in (1, 2, 3)}) != secret


def test_shares_of_a_known_line_are_its_values() -> None:
    # f(x) = 5 + 7 x, so f(2) = 19 and f(9) = 68.
    assert combine({2: element(19), 9: element(68)}) == element(5)
    assert combine({2: element(19), 9: element(68)}, at=3) == element(26)
    assert combine({2: element(19), 9: element(68)}, at=9) == element(68)


def test_two_dealings_of_one_secret_share_nothing() -> None:
    secret = draw_element()
    first = deal(secret, points=[1, 2, 3], threshold=2)
    second = deal(secret, points=[1, 2, 3], threshold=2)
    assert not set(first.values()) & set(second.values())


@pytest.mark.parametrize("value", [b"", bytes(31), bytes(33), element(PRIME), b"\xff" * 32])
def test_bytes_that_are_no_field_element_are_none(value: bytes) -> None:
    assert not is_element(value)
    with pytest.raises(UsageError):
        deal(value, points=[1, 2], threshold=2)
    with pytest.raises(UsageError):
        combine({1: value})


@pytest.mark.parametrize("value", [0, 1, PRIME - 1])
def test_the_ends_of_the_field_can_be_shared(value: int) -> None:
    assert is_element(element(value))
    assert combine(deal(element(value), points=[1, 2], threshold=2)) == element(value)


@pytest.mark.parametrize(
    ("points", "threshold"), [([1, 2], 3), ([1, 2], 0), ([0, 1], 1), ([1, 1], 1), ([-1, 2], 2)]
)
def test_a_sharing_that_cannot_work_is_refused(points: list[int], threshold: int) -> None:
    with pytest.raises(UsageError):
        deal(draw_element(), points=points, threshold=threshold)


def test_nothing_cannot_be_combined() -> None:
    with pytest.raises(UsageError):
        combine({})


@pytest.mark.parametrize("liars", [{1}, {6}, {2, 5}])
def test_recovery_finds_the_secret_in_spite_of_liars_and_names_them(liars: set[int]) -> None:
    secret = draw_element()
    shares = deal(secret, points=range(1, 9), threshold=6)
    for liar in liars:
        shares[liar] = draw_element()
    found, wrong = recover(shares, threshold=6, check=lambda candidate: candidate == secret)
    assert found == secret
    assert wrong == (liars if min(liars) <= 6 else set())


def test_recovery_gives_up_when_too_few_shares_are_right() -> None:
    secret = draw_element()
    shares = deal(secret, points=range(1, 9), threshold=6)
    for liar in (1, 2, 3):
        shares[liar] = draw_element()
    with pytest.raises(VerificationError, match="No 6 of 8 shares"):
        recover(shares, threshold=6, check=lambda candidate: candidate == secret)


def test_recovery_needs_the_threshold() -> None:
    secret = draw_element()
    shares = deal(secret, points=range(1, 9), threshold=6)
    with pytest.raises(VerificationError, match="5 shares are fewer than the threshold 6"):
        recover({x: shares[x] for x in range(1, 6)}, threshold=6, check=lambda _: True)
