"""Drift on fleets that have not changed, and on some that have: how often is there an alarm?

2,000 fleets of twelve features each: ten columns of eight cells, a confidence and ten labels, of which the package's
baseline counted 10,000 values and the devices 3,000. Then one of them moves by three points, in ever more values; and the
same with devices that differ, and with randomized counts. Draws what it measures.

Usage: python tests/bench/drift.py [docs/images/drift.png]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from harness import OUT, QUICK, Report
from numpy.typing import NDArray

from umbel_proto.histogram import CONFIDENCE, Histogram
from umbel_proto.privacy.response import Response
from umbel_server.monitor.drift import LEVEL, Pair, judge
from umbel_server.monitor.sample import Sample

Shares = NDArray[np.float64]

FLEETS = 2000
REFERENCE, VALUES = 10_000, 3_000
SIZES = (100, 300, 1000, 3000, 10_000)
POINTS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05)
EIGHT = tuple(float(edge) for edge in range(7))
NOISY = 2.0


def confidence(shift: float) -> Shares:
    """Return the cells of a confidence of 0.8 on average, less a shift."""
    values = np.clip(np.random.default_rng(0).beta(8, 2, 100_000) - shift, 0, 1)
    return np.asarray(np.bincount(np.searchsorted(CONFIDENCE, values, side="right"), minlength=24) / 1e5)


def labels(shift: float) -> Shares:
    """Return ten labels, of which the first is given more often."""
    return np.array([0.1 + shift, *[(0.9 - shift) / 9] * 9])


def halves(shift: float) -> Shares:
    """Return two labels as often as each other, less a shift: the hardest case there is."""
    return np.array([0.5 + shift, 0.5 - shift])


def even(_: float) -> Shares:
    return np.full(8, 1 / 8)


KINDS: Mapping[str, tuple[Callable[[float], Shares], tuple[float, ...] | None]] = {
    "a confidence falls by 3 points": (confidence, CONFIDENCE),
    "one of ten labels, from 10 % to 13 %": (labels, None),
    "one of two labels, from 50 % to 53 %": (halves, None),
}


def told(chance: np.random.Generator, shares: Shares, n: int, epsilon: float | None = None) -> Sample:
    """Return what is told of n values."""
    if epsilon is not None:
        noise = Response(len(shares), epsilon).other / 2**64
        shares = noise + (1 - len(shares) * noise) * shares
    counts = tuple(map(int, chance.multinomial(n, shares / shares.sum())))
    return Sample.of(Histogram("x", tuple(map(float, range(len(shares) - 1))), counts, 0.0, epsilon))


def of_devices(chance: np.random.Generator, shares: Shares, n: int) -> Sample:
    """Return what devices of 100 values each tell that differ among each other: each has shares of its own."""
    own = chance.dirichlet(shares * 50, n // 100)
    edges = tuple(map(float, range(len(shares) - 1)))
    return Sample.of_devices(
        [Histogram("x", edges, tuple(map(int, chance.multinomial(100, each))), 0.0) for each in own]
    )


def fleet(
    chance: np.random.Generator, n: int, *, moved: str = "", shift: float = 0.0, epsilon: float | None = None
) -> dict[str, Pair]:
    """Return twelve features, of which one may have moved."""
    columns = {f"column.{number}": (even, EIGHT) for number in range(10)}
    two = dict(list(KINDS.items())[:2])
    kinds = {**columns, **(two if moved in two or not moved else {moved: KINDS[moved]})}
    pairs = {}
    for name, (shares, edges) in kinds.items():
        now = shares(shift) if name == moved else shares(0.0)
        pairs[name] = Pair(told(chance, shares(0.0), REFERENCE), told(chance, now, n, epsilon), edges)
    return pairs


def alone_moved(chance: np.random.Generator, name: str) -> dict[str, Pair]:
    """Return one feature, which has moved by three points."""
    shares, edges = KINDS[name]
    return {name: Pair(told(chance, shares(0.0), REFERENCE), told(chance, shares(0.03), VALUES), edges)}


def differing(chance: np.random.Generator) -> dict[str, Pair]:
    """Return three columns of devices that differ, none of which has moved."""
    return {
        f"column.{number}": Pair(of_devices(chance, even(0), 6000), of_devices(chance, even(0), 4000), EIGHT)
        for number in range(3)
    }


def best(name: str, features: int) -> float:
    """Return how often the most powerful test finds one of two labels moved by three points, of so many features.

    Of two sides and without bias that is the test of the share, by Lehmann, Romano, "Testing Statistical Hypotheses",
    2005, section 4.2. Of many features, Benjamini's and Hochberg's method asks the only one that moved at the
    level's part.
    """
    before, now = KINDS[name][0](0.0)[0], KINDS[name][0](0.03)[0]
    deviation = np.sqrt(now * (1 - now) / VALUES + before * (1 - before) / REFERENCE)
    limit = NormalDist().inv_cdf(1 - LEVEL / features / 2)
    return 1 - NormalDist().cdf(limit - (now - before) / deviation)


def rate(made: Callable[[], Mapping[str, Pair]], runs: int, name: str = "") -> float:
    """Return how often there is an alarm, or one of this feature."""
    found = 0
    for _ in range(runs):
        found += any(each.drifted for each in judge(made()) if not name or each.feature == name)
    return found / runs


def main(out: str | None) -> None:
    report, chance = Report("drift"), np.random.default_rng(1)
    runs, some = (40, 10) if QUICK else (FLEETS, 200)
    most = 1.5 * LEVEL
    alarms: dict[str, float] = {}
    with report.part("false alarms"):
        cases: Mapping[str, tuple[Callable[[], Mapping[str, Pair]], int]] = {
            "as counted": (lambda: fleet(chance, VALUES), runs),
            "300 values": (lambda: fleet(chance, 300), runs // 2),
            f"randomized, epsilon {NOISY:g}": (lambda: fleet(chance, VALUES, epsilon=NOISY), runs // 2),
            "devices that differ": (lambda: differing(chance), runs // 4),
        }
        for name, (made, count) in cases.items():
            alarms[name] = rate(made, count)
            report.value(
                f"false alarms, {name} ({count} fleets)", alarms[name], unit="of fleets", at_most=most
            )
    curves: dict[str, list[float]] = {}
    with report.part("power"):
        for name in KINDS:
            curves[name] = [
                rate(lambda n=n, name=name: fleet(chance, n, moved=name, shift=0.03), some, name)  # type: ignore[misc]
                for n in SIZES
            ]
            target = None if name in list(KINDS)[1:] else 0.9
            report.value(
                f"found at {VALUES:,} values, of twelve features: {name}",
                curves[name][3],
                unit="",
                at_least=target,
            )
            alone = rate(lambda name=name: alone_moved(chance, name), some)  # type: ignore[misc]
            target = None if "two" in name else 0.9
            report.value(f"the same, asked alone: {name}", alone, unit="", at_least=target)
            if "two" in name:
                for features in (12, 1):
                    what = f"the most that any test of this level finds, of {features} features: {name}"
                    report.value(what, best(name, features), unit="")
        name = next(iter(KINDS))
        report.value(
            f"found at {VALUES:,} values, epsilon {NOISY:g}: {name}",
            rate(lambda: fleet(chance, VALUES, moved=name, shift=0.03, epsilon=NOISY), some, name),
            unit="",
        )
    by_points = {
        name: [
            rate(lambda p=points, name=name: fleet(chance, VALUES, moved=name, shift=p), some, name)  # type: ignore[misc]
            for points in POINTS
        ]
        for name in KINDS
    }
    draw(alarms, curves, by_points, Path(out) if out else OUT / "drift.png")
    report.finish()


def draw(
    alarms: Mapping[str, float],
    curves: Mapping[str, list[float]],
    by_points: Mapping[str, list[float]],
    path: Path,
) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    left.barh(list(alarms), [100 * each for each in alarms.values()], color="#5d9ac7", height=0.5)
    left.axvline(100 * LEVEL, color="#0b2e4a", label=f"stated: {LEVEL:.0%}")
    left.axvline(150 * LEVEL, color="crimson", linestyle="--", label="1.5 times that")
    left.set(xlabel="fleets with any false alarm, %", title="Nothing has changed", xlim=(0, 13))
    left.invert_yaxis()
    left.legend(loc="upper right", fontsize=8)
    for color, name in zip(("#0b2e4a", "#5d9ac7", "#b9600b"), curves, strict=True):
        middle.plot(SIZES, curves[name], marker="o", color=color, label=name)
        right.plot([100 * each for each in POINTS], by_points[name], marker="o", color=color, label=name)
    middle.set(
        xscale="log", xlabel="values reported", ylabel="found, of all runs", title="A shift of 3 points"
    )
    right.set(xlabel="shift, points", title=f"{VALUES:,} values reported")
    for axis in (middle, right):
        axis.set_ylim(-0.03, 1.03)
        axis.axhline(0.9, color="crimson", linestyle="--", linewidth=1)
        axis.grid(alpha=0.3)
    right.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
