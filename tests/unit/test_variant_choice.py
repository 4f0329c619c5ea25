"""A device runs the fastest variant that says what the reference says, and never a slower one.

Laws: what is chosen passes the gate and is at least 5 % faster than the reference, or is the reference; no
variant that passes beats the chosen one by more; a measurement takes the median of calls in turns.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_packages import digits, opened, release
from umbel._data.examples import Examples
from umbel._releases.choice import AGREEMENT, MARGIN, Measured, choose, decide
from umbel._releases.package import choose_variant
from umbel.engines import Outputs

FLOAT = Measured(100.0, 1.0, 0.9)
LATENCIES = st.floats(10, 1000) | st.sampled_from([500.0, 949.0, 951.0, 1e9, math.nan, math.inf])
# Most of them near the gate.
SHARES = (st.integers(396, 400) | st.integers(0, 400)).map(lambda n: n / 400)


@dataclass
class Ticking:
    """A clock that only engines move."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Scripted:
    """An engine of which each call takes the next of some times, and that gives fixed labels."""

    variant: str
    clock: Ticking
    each_s: list[float]
    labels: NDArray[np.int64]
    name: str = "scripted"

    def __post_init__(self) -> None:
        self._steps = itertools.cycle(self.each_s)

    def answers(self, x: NDArray[Any]) -> NDArray[np.float32]:
        self.clock.now_s += next(self._steps)
        return np.eye(3, dtype=np.float32)[self.labels[: len(x)]]

    def outputs(self, x: NDArray[Any]) -> Outputs:
        return {"probabilities": self.answers(x), "logits": self.answers(x)}


@st.composite
def fleets(draw: st.DrawFn) -> dict[str, Measured]:
    labelled = draw(st.booleans())
    accuracies = SHARES if labelled else st.none()
    names = draw(st.permutations(["int8", "tflite", "tflite-int8"]))
    reference = Measured(1000.0, 1.0, draw(accuracies))
    return {
        "fp32": reference,
        **{name: Measured(draw(LATENCIES), draw(SHARES), draw(accuracies)) for name in names},
    }


@given(fleets())
def test_a_slower_or_a_worse_variant_is_never_chosen(measured: dict[str, Measured]) -> None:
    chosen, base = measured[decide(measured, reference="fp32")], measured["fp32"]
    if chosen is base:
        return
    assert chosen.latency_us < 0.95 * base.latency_us
    if chosen.accuracy is not None and base.accuracy is not None:
        # In whole samples of 400: two are half a point.
        assert round(400 * chosen.accuracy) >= round(400 * base.accuracy) - 2
    else:
        assert chosen.agreement is not None
        assert round(400 * chosen.agreement) >= 398


@given(fleets())
def test_no_variant_that_passes_is_clearly_faster_than_the_chosen_one(measured: dict[str, Measured]) -> None:
    chosen = decide(measured, reference="fp32")
    for name, shown in measured.items():
        alone = decide({"fp32": measured["fp32"], name: shown}, reference="fp32")
        assert alone == "fp32" or not shown.latency_us < measured[chosen].latency_us


@given(fleets(), st.randoms(use_true_random=False))
def test_the_order_of_variants_changes_nothing(measured: dict[str, Measured], random: Any) -> None:
    names = list(measured)
    random.shuffle(names)
    again = {name: measured[name] for name in names}
    assert decide(again, reference="fp32") == decide(measured, reference="fp32")


@given(fleets(), st.floats(1e-3, 1e3))
def test_a_device_that_is_slower_in_all_chooses_the_same(
    measured: dict[str, Measured], factor: float
) -> None:
    # Powers of two scale floats exactly: no comparison may turn by rounding.
    factor = 2.0 ** round(math.log2(factor))
    slower = {
        name: Measured(shown.latency_us * factor, shown.agreement, shown.accuracy)
        for name, shown in measured.items()
    }
    assert decide(slower, reference="fp32") == decide(measured, reference="fp32")


@pytest.mark.parametrize(
    ("int8", "chosen"),
    [
        (Measured(50.0, 0.5, 0.9), "int8"),  # where labels are known, they decide
        (Measured(50.0, 1.0, 0.895), "int8"),
        (Measured(50.0, 1.0, 0.894), "fp32"),
        (Measured(50.0, 0.0, 1.0), "int8"),
        (Measured(94.9, 1.0, 0.9), "int8"),
        (Measured(95.1, 1.0, 0.9), "fp32"),
        (Measured(50.0, 0.995), "int8"),
        (Measured(50.0, 0.994), "fp32"),
        (Measured(math.nan, 1.0, 0.9), "fp32"),
    ],
)
def test_the_gate_is_half_a_point_and_the_gain_five_percent(int8: Measured, chosen: str) -> None:
    assert decide({"fp32": FLOAT, "int8": int8}, reference="fp32") == chosen


@given(st.integers(1, 10_000), st.data())
def test_agreement_alone_bounds_the_accuracy_that_nobody_could_measure(n: int, data: st.DataObject) -> None:
    # The worst case: every sample on which the two differ, the reference had right.
    differing = data.draw(st.integers(0, n))
    if (n - differing) / n >= AGREEMENT:
        assert differing / n <= 0.005 + 1e-9


def test_the_latency_is_the_median_so_that_a_pause_of_the_device_does_not_count() -> None:
    clock, same = Ticking(), np.arange(30) % 3
    engines = {
        "fp32": Scripted("fp32", clock, [4.0], same),
        "int8": Scripted("int8", clock, [2.0, 2.0, 90.0], same),
    }
    choice = choose(engines, np.zeros((30, 2), np.float32), reference="fp32", clock=clock)
    assert choice.variant == "int8"
    assert choice.latency_us == {"fp32": 4e6, "int8": 2e6}
    assert choice.measured["int8"].agreement == 1.0
    assert choice.measured["int8"].accuracy is None


def test_a_device_that_slows_down_while_it_measures_hits_all_variants_alike() -> None:
    clock, same = Ticking(), np.arange(30) % 3
    # Both take 1 ms at first and 3 ms later on; in turns, neither looks faster.
    warm_then_hot = [0.001] * 20 + [0.003] * 1000
    engines = {name: Scripted(name, clock, warm_then_hot, same) for name in ("fp32", "int8")}
    choice = choose(engines, np.zeros((30, 2), np.float32), reference="fp32", clock=clock)
    low, high = sorted(choice.latency_us.values())
    assert low > (1 - MARGIN) * high
    assert choice.variant == "fp32"


def test_labels_say_which_variant_is_right() -> None:
    clock, right = Ticking(), np.arange(200) % 3
    wrong = right.copy()
    wrong[:2] = (wrong[:2] + 1) % 3  # one point of accuracy
    engines = {"fp32": Scripted("fp32", clock, [4.0], right), "int8": Scripted("int8", clock, [2.0], wrong)}
    x = np.zeros((200, 2), np.float32)
    unlabelled = choose(engines, x, reference="fp32", clock=clock)
    assert (unlabelled.variant, unlabelled.measured["int8"].agreement) == ("fp32", 0.99)
    choice = choose(engines, x, right, reference="fp32", clock=clock)
    assert choice.variant == "fp32"
    assert choice.measured["int8"].accuracy == pytest.approx(0.99)
    assert choose(engines, x, wrong, reference="fp32", clock=clock).variant == "int8"


def test_a_package_is_tried_with_the_devices_own_samples() -> None:
    package = opened(release(2))
    x, y = digits().held_out[:2]
    now = itertools.count()
    choice = choose_variant(package, held_back=Examples(x, y), clock=lambda: float(next(now)))
    # By this clock every call takes a second: nothing is faster, so the reference stays.
    assert choice.variant == "fp32"
    assert set(choice.measured) >= {"fp32", "int8"}
    float_accuracy = choice.measured["fp32"].accuracy
    assert float_accuracy is not None
    assert float_accuracy > 0.94
    assert choice.measured["int8"].accuracy == pytest.approx(float_accuracy, abs=0.005)
