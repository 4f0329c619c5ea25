"""Shamir's secret sharing over GF(2**256 - 189), and recovery that notices a wrong share.

Source: A. Shamir, "How to share a secret", CACM 22(11), 1979;
docs/spec/secure-aggregation.md, "Shares".
"""

from __future__ import annotations

import functools
import itertools
import math
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from umbel_proto.errors import UsageError, VerificationError

PRIME = 2**256 - 189  # The largest prime below 2**256.
SHARE_BYTES = 32
_STRIDE = 16  # Steps between two reductions.
MAX_TRIES = 256  # With 13 of 50 shares to spare and 3 of them wrong, 256 tries miss once in 43.


def draw_element() -> bytes:
    """Return a field element drawn uniformly by the operating system, 32 bytes big-endian."""
    return _encode(secrets.randbelow(PRIME))


def is_element(value: bytes) -> bool:
    """Say whether ``value`` encodes a field element, in the one way there is."""
    return len(value) == SHARE_BYTES and int.from_bytes(value, "big") < PRIME


def deal(secret: bytes, *, points: Collection[int], threshold: int) -> dict[int, bytes]:
    """Split a secret so that any ``threshold`` shares give it and fewer say nothing about it.

    Args:
        secret: A field element, 32 bytes.
        points: Where to evaluate the polynomial, one point per holder, all different, >= 1.
        threshold: In [1, len(points)].

    Returns:
        The share of each point, 32 bytes.

    Raises:
        UsageError: The threshold or the points do not make a sharing, or the secret is no element.
    """
    if not 1 <= threshold <= len(points):
        raise UsageError(f"A threshold of {threshold} cannot be met by {len(points)} shares.")
    if min(points) < 1 or len(set(points)) != len(points):
        raise UsageError("The points of a sharing must be different and at least 1: 0 holds the secret.")
    if not is_element(secret):
        raise UsageError("The secret is no element of the field: draw it with draw_element().")
    high_first = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    high_first.append(int.from_bytes(secret, "big"))
    return {point: _encode(_evaluate(high_first, point)) for point in points}


def combine(shares: Mapping[int, bytes], *, at: int = 0) -> bytes:
    """Return the value at ``at`` of the polynomial through all of ``shares``; at 0 is the secret.

    Args:
        shares: Point to share; exactly as many as the threshold.
        at: The point to evaluate.

    Raises:
        UsageError: There is no share, or one is no field element.
    """
    if not shares:
        raise UsageError("No share was given: nothing can be combined.")
    if not all(map(is_element, shares.values())):
        raise UsageError("A share is no element of the field.")
    points = tuple(sorted(shares))
    weights = _lagrange(points, at)
    total = sum(w * int.from_bytes(shares[x], "big") for w, x in zip(weights, points, strict=True))
    return _encode(total % PRIME)


def recover(
    shares: Mapping[int, bytes], *, threshold: int, check: Callable[[bytes], bool]
) -> tuple[bytes, frozenset[int]]:
    """Return the secret that passes ``check``, and the points whose shares do not belong to it.

    The lowest points are tried first. If the outcome fails the check, other choices are tried;
    where there are too many for all, at random, so that liars cannot arrange themselves.

    Args:
        shares: Point to share; may hold more than the threshold.
        threshold: Shares that give the secret.
        check: Whether a candidate is what its owner committed to.

    Raises:
        VerificationError: Fewer shares than the threshold, or no choice tried gives the secret.
    """
    if len(shares) < threshold:
        raise VerificationError(f"{len(shares)} shares are fewer than the threshold {threshold}.")
    points = sorted(shares)
    first = {point: shares[point] for point in points[:threshold]}
    secret = combine(first)
    if check(secret):
        return secret, frozenset()  # Any share left over was not needed and stays untested.
    for chosen in _choices(points, threshold):
        some = {point: shares[point] for point in chosen}
        secret = combine(some)
        if check(secret):
            wrong = {x for x in points if x not in some and combine(some, at=x) != shares[x]}
            return secret, frozenset(wrong)
    raise VerificationError(f"No {threshold} of {len(shares)} shares give what their owner committed to.")


def _choices(points: list[int], threshold: int) -> Iterator[Collection[int]]:
    """Subsets of threshold size: all of them if they are few, else as many at random."""
    if math.comb(len(points), threshold) <= MAX_TRIES:
        yield from itertools.combinations(points, threshold)
        return
    chance = secrets.SystemRandom()
    for _ in range(MAX_TRIES):
        yield chance.sample(points, threshold)


def _evaluate(high_first: Sequence[int], x: int) -> int:
    """Horner's rule; reduced only now and then, as points are small and a reduction costs the most."""
    value = 0
    for low in range(0, len(high_first), _STRIDE):
        for coefficient in high_first[low : low + _STRIDE]:
            value = value * x + coefficient
        value %= PRIME
    return value


@functools.lru_cache(maxsize=256)
def _lagrange(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Weights w with f(at) = sum of w[i] f(points[i]), for any f of degree < len(points).

    Products of the small integers ``x - at`` and ``x - y`` are exact; one inversion serves all.
    """
    if at in points:
        return tuple(int(x == at) for x in points)
    above = math.prod(x - at for x in points)
    below = [(x - at) * math.prod([y - x for y in points if y != x]) % PRIME for x in points]
    # Montgomery's trick: prefix products, one inversion, then unwind.
    prefix = [1]
    for value in below:
        prefix.append(prefix[-1] * value % PRIME)
    inverse = pow(prefix[-1], -1, PRIME)
    weights = [0] * len(points)
    for i in reversed(range(len(points))):
        weights[i] = above * inverse * prefix[i] % PRIME
        inverse = inverse * below[i] % PRIME
    return tuple(weights)


def _encode(value: int) -> bytes:
    return value.to_bytes(SHARE_BYTES, "big")
