"""Calibration by labels that arrived: scikit-learn's curve and error, and intervals that hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve

from umbel_proto.histogram import CONFIDENCE, MAX_COUNT, Histogram
from umbel_proto.ids import DeviceId
from umbel_proto.prg import Keystream
from umbel_proto.privacy.response import Response
from umbel_server.monitor.calibration import CELLS, calibration
from umbel_server.monitor.confidences import confidences
from umbel_server.monitor.performance import Lineage, lineage
from umbel_server.store.reports import Report

Floats = NDArray[np.float64]


def reported(sure: Floats, right: NDArray[np.bool_], *, devices: int = 1) -> list[Report]:
    """What devices report of labels that arrived, each of every so many of them."""
    found = []
    for number in range(devices):
        mine = np.arange(len(sure)) % devices == number
        told = {
            name: Histogram.empty(name, CONFIDENCE).observe(sure[mine & of])
            for name, of in (("feedback.right", right), ("feedback.wrong", ~right))
        }
        found.append(Report(DeviceId(f"d{number}"), {}, {n: h for n, h in told.items() if h.count}))
    return found


def labeled(seed: int, n: int, shift: float = 0.0) -> tuple[Floats, NDArray[np.bool_]]:
    """Confidences at the middles of cells, and whether they were right; a shift of log-odds makes them too sure."""
    rng = np.random.default_rng(seed)
    middles = confidences()
    sure = rng.choice(middles[12:], n)
    odds = np.log(sure / (1 - sure)) - shift
    return sure, rng.random(n) < 1 / (1 + np.exp(-odds))


def test_the_curve_is_scikit_learns() -> None:
    sure, right = labeled(1, 4000, shift=0.7)
    found = calibration(reported(sure, right))
    assert found is not None
    # In log-odds the cells are evenly wide, so scikit-learn's uniform bins are the same ones.
    place = (np.log(sure / (1 - sure)) + 6) / 12
    share, _ = calibration_curve(right, np.clip(place, 0, 1), n_bins=CELLS, strategy="uniform")
    assert [each.right for each in found.cells] == pytest.approx(share.tolist(), abs=1e-12)
    assert [each.confidence for each in found.cells] == pytest.approx(sorted(set(sure.tolist())), abs=1e-12)
    of_cell = [(sure == each.confidence) for each in found.cells]
    error = sum(abs(right[cell].mean() - sure[cell].mean()) * cell.mean() for cell in of_cell)
    assert found.error == pytest.approx(error, abs=1e-9)
    assert [each.labels for each in found.cells] == pytest.approx([int(cell.sum()) for cell in of_cell])
    assert (found.labels, found.devices, found.epsilon) == (4000, 1, None)


def test_of_any_confidences_the_error_is_within_the_width_of_the_cells() -> None:
    rng = np.random.default_rng(2)
    sure = rng.beta(5, 1.5, 50_000)
    right = rng.random(50_000) < sure**1.5
    found = calibration(reported(sure, right))
    assert found is not None
    cells = np.searchsorted(CONFIDENCE, sure, side="right")
    error = sum(
        abs(right[cells == cell].mean() - sure[cells == cell].mean()) * (cells == cell).mean()
        for cell in np.unique(cells)
    )
    assert found.error == pytest.approx(error, abs=0.01)


@pytest.mark.parametrize(("shift", "n"), [(0.0, 300), (0.0, 3000), (0.4, 1000), (1.5, 300)])
def test_the_interval_holds_the_true_error_at_least_as_often_as_it_says(shift: float, n: int) -> None:
    middles = confidences()[12:]
    true = float(np.abs(1 / (1 + np.exp(-(np.log(middles / (1 - middles)) - shift))) - middles).mean())
    held = 0
    for seed in range(200):
        found = calibration(reported(*labeled(seed, n, shift), devices=1))
        assert found is not None
        held += found.low <= true <= found.high
    assert held >= 185  # Of 95 %, fewer than 186 have a chance of 4 in 10,000.


def test_chance_alone_is_no_miscalibration_and_a_wrong_model_is_seen() -> None:
    alarms = sum(
        found.certain
        for seed in range(200)
        if (found := calibration(reported(*labeled(seed, 500), devices=1))) is not None
    )
    assert alarms <= 12
    sure = calibration(reported(*labeled(7, 3000, shift=0.8), devices=30))
    assert sure is not None
    assert sure.certain
    assert sure.chance < sure.error / 3


def test_devices_that_differ_widen_the_intervals() -> None:
    rng = np.random.default_rng(3)
    alike, apart = [], []
    for number in range(40):
        sure = rng.choice(confidences()[16:20], 100)
        mine = rng.random() < 0.5
        alike += reported(sure, rng.random(100) < 0.8)
        apart += reported(sure, rng.random(100) < (0.99 if mine else 0.6))
        alike[-1] = Report(DeviceId(f"d{number}"), {}, alike[-1].histograms)
        apart[-1] = Report(DeviceId(f"d{number}"), {}, apart[-1].histograms)
    narrow, wide = calibration(alike), calibration(apart)
    assert narrow is not None
    assert wide is not None
    assert wide.worth < narrow.worth / 2
    assert wide.high - wide.low > narrow.high - narrow.low


def test_randomized_confidences_give_the_same_error_within_their_interval() -> None:
    sure, right = labeled(5, 40_000, shift=0.8)
    plain = calibration(reported(sure, right, devices=40))
    response, stream = Response(CELLS, 4.0), Keystream()
    noisy = [
        Report(
            each.device,
            {},
            {
                name: Histogram(name, CONFIDENCE, response.randomize(told.counts, stream), epsilon=4.0)
                for name, told in each.histograms.items()
            },
        )
        for each in reported(sure, right, devices=40)
    ]
    found = calibration(noisy)
    assert plain is not None
    assert found is not None
    assert found.epsilon == 4.0
    assert found.low <= plain.error <= found.high
    assert math.isclose(sum(each.labels for each in found.cells), 40_000, rel_tol=0.02)


def test_few_labels_and_hostile_ones_say_nothing() -> None:
    assert calibration([]) is None
    assert calibration(reported(*labeled(1, 20))) is None
    other = Histogram("feedback.right", (0.5,), (3, 40))
    assert calibration([Report(DeviceId("d"), {}, {"feedback.right": other})]) is None
    # A device at the edge of what counts hold is one device among others.
    liar = Histogram("feedback.wrong", CONFIDENCE, (*(0,) * 23, MAX_COUNT))
    honest = reported(*labeled(4, 4000), devices=20)
    found = calibration([*honest, Report(DeviceId("liar"), {}, {"feedback.wrong": liar})])
    without = calibration(honest)
    assert found is not None
    assert without is not None
    assert found.error < 0.3
    assert found.low <= without.error


def test_labels_are_told_by_source_and_by_how_often_two_people_agree() -> None:
    counters = {
        "feedback": 10, "feedback.from.user": 6, "feedback.from.expert": 3, "review.resolved": 4,
        "review.overridden": 1, "feedback.compared": 8, "feedback.alike": 6,
    }  # fmt: skip
    told = lineage([Report(DeviceId("a"), counters, {}), Report(DeviceId("b"), {"feedback": 5}, {})])
    assert (told.feedback, told.sources, told.reviews, told.overrides) == (15, {"user": 6, "expert": 3}, 4, 1)
    assert told.agreement is not None
    assert (told.agreement.value, told.agreement.counted) == (0.75, 8)
    assert lineage([]) == Lineage(0, {}, 0, 0, None)
