"""Degree, threshold and the masking graph."""

from __future__ import annotations

import csv
import math
from fractions import Fraction
from pathlib import Path

import pytest

from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.secagg.graph import Graph, Parameters, parameters, search

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
ROWS = list(csv.DictReader((VECTORS / "graph_parameters.csv").read_text().splitlines()))

# docs/spec/secure-aggregation.md, "Graph, k and t": (gamma, delta) -> (k, t) at each n, malicious.
SIZES = (100, 256, 512, 1000, 10_000)
TABLE = {
    (0.05, 0.05): ((16, 11), (34, 24), (44, 31), (52, 37), (62, 44)),
    (0.1, 0.1): ((32, 22), (62, 43), (82, 57), (96, 67), (122, 85)),
    (0.1, 0.2): ((52, 32), (102, 64), (152, 97), (194, 124), (280, 179)),
    (0.1, 0.3): ((72, 42), (158, 92), (276, 164), (414, 247), (778, 465)),
    (0.2, 0.2): ((62, 42), (144, 98), (220, 150), (302, 206), (482, 328)),
}
CURIOUS = ((22, 11), (36, 20), (42, 24), (48, 27), (54, 31))


def shape(n: int, gamma: float, delta: float, *, malicious: bool = True) -> Parameters:
    return parameters(n, corrupt_fraction=gamma, dropout_fraction=delta, server_malicious=malicious)


def of_size(n: int, gamma: float = 0.1, delta: float = 0.1) -> Graph:
    ids = [DeviceId(f"d{i:04}") for i in range(n)]
    return Graph.of(ids, shape(n, gamma, delta), sid=bytes(32), roster_hash=bytes(32))


def test_all_98_published_rows_are_there() -> None:
    assert len(ROWS) == 98


def test_the_search_gives_every_published_degree_and_threshold() -> None:
    for row in ROWS:
        found = search(
            int(row["devices"]),
            float(row["corrupt_fraction"]),
            float(row["dropout_fraction"]),
            row["server"] == "malicious",
        )
        assert found == (int(row["degree"]), int(row["threshold"])), row


@pytest.mark.parametrize(("fractions", "expected"), TABLE.items())
def test_the_table_of_the_specification_holds(
    fractions: tuple[float, float], expected: tuple[tuple[int, int], ...]
) -> None:
    found = [shape(n, *fractions) for n in SIZES]
    assert [(p.degree, p.threshold) for p in found] == list(expected)
    assert not any(p.complete for p in found)


def test_the_table_for_a_curious_server_holds() -> None:
    found = [shape(n, 0.1, 0.1, malicious=False) for n in SIZES]
    assert [(p.degree, p.threshold) for p in found] == list(CURIOUS)


@pytest.mark.parametrize("n", range(3, 16))
def test_a_small_fleet_is_complete_and_needs_more_than_two_thirds(n: int) -> None:
    found = shape(n, 0.1, 0.1)
    assert found.complete
    assert found.threshold == 2 * n // 3 + 1


@pytest.mark.parametrize("malicious", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.3, 0.45, 0.49])
@pytest.mark.parametrize("n", [*range(3, 40), 64, 100, 256, 512])
def test_no_device_gives_up_both_its_secrets(n: int, gamma: float, malicious: bool) -> None:
    """Honest holders give one share of two, corrupt ones both: t must be out of reach for one of them."""
    try:
        found = shape(n, gamma, 0.1, malicious=malicious)
    except UsageError:
        return
    if not found.complete:
        return
    corrupt = math.floor(gamma * n)
    assert found.threshold > corrupt
    if malicious or n < 16:
        assert 2 * found.threshold > n + corrupt
    assert found.threshold <= n


def test_a_degree_near_the_cohort_makes_the_graph_complete() -> None:
    assert search(100, 0.3, 0.3, server_malicious=True) == (92, 62)
    found = shape(100, 0.3, 0.3)
    assert found.complete
    assert found.threshold == (100 + 30) // 2 + 1


def test_fractions_that_no_threshold_withstands_are_refused() -> None:
    with pytest.raises(UsageError, match=r"No threshold withstands 0\.4 corrupt and 0\.4 lost"):
        shape(64, 0.4, 0.4)


@pytest.mark.parametrize("n", [-1, 0, 2, 16385])
def test_a_cohort_of_an_impossible_size_is_refused(n: int) -> None:
    with pytest.raises(UsageError, match="A cohort has 3 to 16384 devices"):
        shape(n, 0.1, 0.1)


@pytest.mark.parametrize(("gamma", "delta"), [(-0.1, 0.1), (0.5, 0.1), (0.1, 0.5), (math.nan, 0.1)])
def test_a_fraction_out_of_range_is_refused(gamma: float, delta: float) -> None:
    with pytest.raises(UsageError, match="fraction"):
        shape(64, gamma, delta)


@pytest.mark.parametrize("n", [3, 15, 64, 100, 257])
def test_being_a_neighbor_goes_both_ways_and_everyone_has_k(n: int) -> None:
    graph = of_size(n)
    for i in range(n):
        around = graph.neighbors(i)
        assert len(around) == len(set(around)) == graph.parameters.degree
        assert list(around) == sorted(around)
        assert i not in around
        assert all(i in graph.neighbors(j) for j in around)


def test_a_device_holds_its_own_share_only_in_a_complete_graph() -> None:
    assert 3 in of_size(8).holders(3)
    assert 3 not in of_size(100).holders(3)
    assert set(of_size(100).holders(3)) == set(of_size(100).neighbors(3))


@pytest.mark.parametrize("what", ["sid", "roster_hash"])
def test_another_session_or_roster_gives_another_graph(what: str) -> None:
    ids = [DeviceId(f"d{i:04}") for i in range(100)]
    bound = {"sid": bytes(32), "roster_hash": bytes(32)}
    one = Graph.of(ids, shape(100, 0.1, 0.1), **bound)
    other = Graph.of(ids, shape(100, 0.1, 0.1), **{**bound, what: b"\x01" * 32})
    assert one.order != other.order


def test_the_tail_probabilities_are_exact() -> None:
    """The threshold against its definition, in exact fractions, at one size."""
    n, k, corrupt, surviving = 100, 32, 10, 90

    def chance(marked: int, wanted: range) -> Fraction:
        ways = sum(math.comb(marked, i) * math.comb(n - marked, k - i) for i in wanted if 0 <= i <= k)
        return Fraction(ways, math.comb(n, k))

    most = min(x for x in range(k) if chance(corrupt, range(x + 1, k + 1)) <= Fraction(1, 2**41 * n))
    fewest = max(x for x in range(k) if chance(surviving, range(x)) <= Fraction(1, 2**20 * n))
    low = math.ceil((most + k - 1.25) / 2)
    assert fewest > low
    assert search(n, 0.1, 0.1, server_malicious=True) == (k, max(low + 1, 2))
