"""Law: intervals of 95 % hold the truth at least that often, whatever part of them is noise; without noise a share's is
Wilson's, as scipy has it.

Each coverage is of ``REPEATS`` simulated sums with a fixed seed. A test fails where a coverage of 95 % would come out as low
with probability below 1e-6 (``ALLOWED``, scipy's binomial quantile).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from query_world import a_query
from umbel_proto.analytics.query import FAIRNESS, MEAN, QUANTILE
from umbel_server.queries.interval import mean, share
from umbel_server.queries.read import read

REPEATS = 1500
ALLOWED = float(stats.binom.ppf(1e-6, REPEATS, 0.95)) / REPEATS


@pytest.mark.parametrize(("hits", "count"), [(3, 20), (0, 12), (50, 50), (480, 1000)])
def test_without_noise_a_shares_interval_is_wilsons(hits: int, count: int) -> None:
    found = share(hits, count - hits, error=0.0, inside_cells=1, outside_cells=1)
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.noise == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("error", [0.0, 4.5, 30.0])
@pytest.mark.parametrize("rate", [0.03, 0.4])
def test_a_shares_interval_holds_the_truth(error: float, rate: float) -> None:
    chance = np.random.default_rng(41)
    held = 0
    for _ in range(REPEATS):
        hits = chance.binomial(600, rate)
        noise = chance.normal(0, error, 5)
        found = share(
            hits + noise[:2].sum(), 600 - hits + noise[2:].sum(), error=error, inside_cells=2, outside_cells=3
        )
        held += found.low <= rate <= found.high
    assert held / REPEATS >= ALLOWED
    assert found.high - found.low <= 2 * (found.noise + found.sampling) + 1e-9


@pytest.mark.parametrize("error", [0.0, 4.5, 30.0])
def test_a_means_interval_holds_the_truth(error: float) -> None:
    chance = np.random.default_rng(42)
    held = 0
    for _ in range(REPEATS):
        values = chance.beta(2, 5, 500) * 2 - 1
        noise = chance.normal(0, error, 3)
        found = mean(500 + noise[0], values.sum() + noise[1], (values**2).sum() + noise[2], error=error)
        held += found.low <= 2 * 2 / 7 - 1 <= found.high
    assert held / REPEATS >= ALLOWED


@pytest.mark.parametrize("error", [0.0, 4.5, 15.0])
@pytest.mark.parametrize("wanted", [0.1, 0.5])
def test_a_quantiles_interval_holds_the_truth(error: float, wanted: float) -> None:
    chance = np.random.default_rng(43)
    edges = tuple(np.linspace(0.5, 9.5, 19).tolist())
    query = a_query(QUANTILE, edges=edges, quantiles=(wanted,))
    exact = float(stats.gamma(4).ppf(wanted))
    held = 0
    for _ in range(REPEATS // 3):
        counts = np.histogram(chance.gamma(4, size=800), [-np.inf, *edges, np.inf])[0]
        total = np.append(counts, 0) + chance.normal(0, error, query.dim)
        (line,) = read(query, total, error=error, ends=(0.0, 20.0))["quantiles"]
        held += line["figure"]["low"] <= exact <= line["figure"]["high"]
    assert held / (REPEATS // 3) >= float(stats.binom.ppf(1e-6, REPEATS // 3, 0.95)) / (REPEATS // 3)


def test_gaps_between_cohorts_are_found_falsely_as_seldom_as_is_said() -> None:
    chance = np.random.default_rng(44)
    query = a_query(FAIRNESS)
    false, error = 0, 4.5
    for _ in range(REPEATS // 3):
        table = np.stack([chance.multinomial(n, [0.4, 0.1, 0.2, 0.3]) for n in (900, 300, 200)])
        found = read(query, table.ravel() + chance.normal(0, error, 12), error=error)
        gaps: list[dict[str, Any] | None] = [
            line["against_others"] for cohort in found["cohorts"] for line in cohort["rates"].values()
        ]
        false += any(gap is not None and gap["certain"] for gap in gaps)
    assert false <= float(stats.binom.ppf(1 - 1e-6, REPEATS // 3, 0.05))


def test_a_large_gap_is_found_through_the_noise() -> None:
    chance = np.random.default_rng(45)
    table = np.array([[400, 100, 200, 300], [400, 100, 200, 300], [300, 260, 20, 420]], np.float64)
    found = read(a_query(FAIRNESS), table.ravel() + chance.normal(0, 4.5, 12), error=4.5)
    assert found["cohorts"][2]["rates"]["selection_rate"]["against_others"]["certain"]
    assert found["cohorts"][2]["rates"]["true_positive_rate"]["against_others"]["certain"]


def test_what_noise_drowns_is_not_shown() -> None:
    chance = np.random.default_rng(46)
    noise = chance.normal(0, 50, 12)
    told = read(a_query(FAIRNESS), np.full(12, 5.0) + noise, error=50)
    assert all(cohort["suppressed"] for cohort in told["cohorts"])
    assert read(a_query(MEAN), np.array([30.0, 3, 2]), error=50)["mean"] is None
    edges = read(a_query(), np.array([30.0, 20, 10, 5]), error=50)
    assert [cell["share"] for cell in edges["cells"]] == [None] * 3
