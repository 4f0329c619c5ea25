"""Who masks with whom: how many neighbors and what threshold a cohort needs, and the graph itself.

Source: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
CCS 2020 (IACR ePrint 2020/704), section 3; the numbers agree with Google's Federated Compute
Platform. docs/spec/secure-aggregation.md, "Graph, k and t".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId

GRAPH_LABEL = "umbel/1/graph"
MIN_COHORT = 3
MAX_COHORT = 1 << 14
SMALL_COHORT = 16  # Below it the asymptotic bounds say nothing: everyone is everyone's neighbor.
COMPLETE_UP_TO = 512
SECURITY_BITS = 40
CORRECTNESS_BITS = 20
_ROUNDING = 1e-14  # A fraction times n that should be whole may come out just below it.


@dataclass(frozen=True, slots=True)
class Parameters:
    """The masking graph's shape for one cohort.

    Args:
        devices: n, the size of the roster.
        degree: k, the neighbors of each device.
        threshold: t, the shares that give a secret, and the signatures that open one.
        min_survivors: Fewest survivors for which the graph's bounds hold, and those of the session.
    """

    devices: int
    degree: int
    threshold: int
    min_survivors: int

    @property
    def complete(self) -> bool:
        """Whether all are neighbors. Then each device also holds a share of its own seed."""
        return self.degree == self.devices - 1


@functools.lru_cache(maxsize=1024)
def parameters(
    devices: int, *, corrupt_fraction: float, dropout_fraction: float, server_malicious: bool
) -> Parameters:
    """Return the graph's shape for ``devices``; both parties compute it, so nobody chooses it.

    Args:
        devices: n, in [3, 16384].
        corrupt_fraction: gamma, the share of devices that may collude with the server, in [0, 0.5).
        dropout_fraction: delta, the share that may vanish, in [0, 0.5).
        server_malicious: Whether the server may lie.

    Raises:
        UsageError: The arguments are out of range, or no threshold withstands both fractions.
    """
    n = devices
    if not MIN_COHORT <= n <= MAX_COHORT:
        raise UsageError(f"A cohort has {MIN_COHORT} to {MAX_COHORT} devices, not {n}.")
    for name, fraction in (("corrupt_fraction", corrupt_fraction), ("dropout_fraction", dropout_fraction)):
        if not 0 <= fraction < 0.5:
            raise UsageError(f"{name} is {fraction}: choose one in [0, 0.5).")
    corrupt = math.floor((corrupt_fraction + _ROUNDING) * n)
    if n < SMALL_COHORT:
        threshold = max(2 * n // 3, (n + corrupt) // 2) + 1
        return Parameters(n, n - 1, threshold, threshold)
    needed = n - math.floor((dropout_fraction + _ROUNDING) * n)
    found = search(n, corrupt_fraction, dropout_fraction, server_malicious)
    if found is not None and not (n <= COMPLETE_UP_TO and 4 * found[0] >= 3 * (n - 1)):
        return Parameters(n, *found, min_survivors=needed)
    threshold = (n + corrupt) // 2 + 1 if server_malicious else max(corrupt + 1, 2)
    if threshold > needed:
        raise UsageError(
            f"No threshold withstands {corrupt_fraction:g} corrupt and {dropout_fraction:g} lost of {n} "
            "devices: lower one of them."
        )
    return Parameters(n, n - 1, threshold, threshold)


def search(
    devices: int, corrupt_fraction: float, dropout_fraction: float, server_malicious: bool
) -> tuple[int, int] | None:
    """Return the least even degree k, and its threshold t, that keep a random graph safe.

    Safe: but for probability 2**-40 the survivors stay connected without the corrupt and no
    device's neighbors hold enough corrupt ones to learn its secrets; but for 2**-20 every device
    keeps t neighbors.

    Returns:
        (k, t), or None if no k below n - 1 will do.

    Source:
        Bell et al. 2020, sections 3.3 and 3.5.
    """
    n = devices
    corrupt = math.floor((corrupt_fraction + _ROUNDING) * n)
    dropped = math.floor((dropout_fraction + _ROUNDING) * n)
    surviving = math.ceil((1 - dropout_fraction - _ROUNDING) * n)
    too_many = 2.0 ** -(SECURITY_BITS + 1) / n
    too_few = 2.0**-CORRECTNESS_BITS / n
    t1 = t2 = 0
    for k in range(2, n - 1, 2):
        # Both quantiles grow slowly with k: each search begins where the last one ended.
        if _ln_disconnected(n, corrupt + dropped, k) >= -(SECURITY_BITS + 1) * math.log(2):
            continue
        t1 = _most_marked(n, corrupt, k, too_many, t1)
        # Fewer than x survivors among k neighbors: more than k - x lost ones.
        t2 = k - _most_marked(n, n - surviving, k, too_few, k - t2)
        low = math.ceil((t1 + k - 1.25) / 2) if server_malicious else t1
        if t2 > low:
            return k, max(low + 1, 2)
    return None


def _ln_disconnected(n: int, gone: int, k: int) -> float:
    """Log of a bound on the chance that losing ``gone`` of n cuts a k-regular circulant."""
    if k > gone:
        return -math.inf
    ln_gamma = math.lgamma
    return (
        math.log(n)
        + math.log(n - k - 1)
        - math.log(2)
        + ln_gamma(gone + 1)
        + ln_gamma(n - k + 1)
        - ln_gamma(n + 1)
        - ln_gamma(gone - k + 1)
    )


def _most_marked(n: int, marked: int, drawn: int, chance: float, guess: int) -> int:
    """Return the least x with P[X > x] <= chance, X hypergeometric: marked ones among those drawn."""
    low, high = max(0, drawn + marked - n), min(marked, drawn)
    x = min(max(guess, low), high)
    while x < high and _upper_tail(n, marked, drawn, x) > chance:
        x += 1
    while x > low and _upper_tail(n, marked, drawn, x - 1) <= chance:
        x -= 1
    return x


def _upper_tail(n: int, marked: int, drawn: int, x: int) -> float:
    """P[X > x], summed by the ratio of neighboring terms."""
    i, high = x + 1, min(marked, drawn)
    if i > high:
        return 0.0
    term = math.exp(_ln_choose(marked, i) + _ln_choose(n - marked, drawn - i) - _ln_choose(n, drawn))
    total = 0.0
    while True:
        total += term
        if i == high:
            return total
        ratio = (marked - i) * (drawn - i) / ((i + 1) * (n - marked - drawn + i + 1))
        term *= ratio
        i += 1
        if ratio < 1 and term < total * 1e-18:
            return total


def _ln_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True, slots=True)
class Graph:
    """The masking graph over the positions 0..n-1 of a roster.

    Args:
        parameters: Its shape.
        order: Positions in circulant order.
        places: The inverse of ``order``.
    """

    parameters: Parameters
    order: tuple[int, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, ids: Sequence[DeviceId], shape: Parameters, *, sid: bytes, roster_hash: bytes) -> Graph:
        """Build the graph of a roster: devices stand in the order of a hash nobody chooses alone."""
        keys = [digest(GRAPH_LABEL, sid, roster_hash, device) for device in ids]
        order = tuple(sorted(range(len(ids)), key=keys.__getitem__))
        places = [0] * len(order)
        for place, position in enumerate(order):
            places[position] = place
        return cls(shape, order, tuple(places))

    def neighbors(self, position: int) -> tuple[int, ...]:
        """The positions that mask with ``position``, ascending."""
        n, half = self.parameters.devices, self.parameters.degree // 2
        if self.parameters.complete:
            return tuple(other for other in range(n) if other != position)
        place = self.places[position]
        return tuple(sorted(self.order[(place + step) % n] for step in range(-half, half + 1) if step))

    def holders(self, position: int) -> tuple[int, ...]:
        """The positions that hold shares of ``position``'s secrets, ascending.

        They are its neighbors, and in a complete graph itself too.
        """
        around = self.neighbors(position)
        return tuple(sorted((*around, position))) if self.parameters.complete else around
