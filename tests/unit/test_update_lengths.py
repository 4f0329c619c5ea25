"""Laws: noised sums of whether updates are within so many clips are the histogram of their lengths, with stated errors."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.federation import lenient_policy
from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName
from umbel_proto.prg import Keystream
from umbel_proto.privacy.auxiliary import WITHIN, Quantity, within
from umbel_proto.privacy.encode import Encoding, encode
from umbel_proto.privacy.plan import plan
from umbel_server.learning.budget import plan_privacy
from umbel_server.learning.exported import exported
from umbel_server.learning.measure import measure, quantities
from umbel_server.learning.norms import BINS, WORDS, histogram
from umbel_server.learning.plan import Clipping, Metrics, Privacy, RunPlan

ASKED = tuple(Quantity(name, 0, 1) for name in WITHIN)
QUIET = Encoding(2, 2, 32, 1.0, 400.0, 400**2 + 800 + 5 * 40**2, Fraction(0), (40,) * 5)
NOISY = replace(QUIET, noise=Fraction(900))
PLAN = RunPlan(
    model=ModelName("digits"),
    version=2,
    package_sha256="ab" * 32,
    rounds=6,
    devices=8,
    privacy=Privacy(clip=1.0, noise_multiplier=4.0, delta=1e-6),
)


def words_of(lengths: list[float], encoding: Encoding, *, clip: float, salt: bytes = b"") -> np.ndarray:
    """The sum of devices whose updates are so long; the updates' own part is left at zero."""
    total = np.zeros(encoding.words, np.uint64)
    for number, length in enumerate(lengths):
        said = within(length, clip)
        total += encode(
            np.zeros(2, np.float32),
            encoding,
            rotation_seed=bytes(32),
            auxiliary=[quantity.to_unit(said[quantity.name]) for quantity in ASKED],
            randomness=Keystream((salt + number.to_bytes(4, "big")).rjust(32, b"k")),
        ).words
    return total


def shares_of(total: np.ndarray, encoding: Encoding, count: int) -> np.ndarray:
    measured = measure(total, encoding, ASKED, count=count)
    found = histogram({name: {"mean": each.mean, "error": each.error} for name, each in measured.items()})
    return np.array([(each.value, each.error) for each in found])


def numpy_s(lengths: list[float], clip: float) -> np.ndarray:
    """Numpy's bins hold their lower edge and ours the upper: the same of the negative."""
    edges = -clip * np.array([math.inf, *reversed(WITHIN.values()), 0.0])
    return np.histogram(-np.array(lengths), edges)[0][::-1] / len(lengths)


@given(
    st.floats(1e-3, 1e3),
    st.lists(
        st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 4.0]), st.floats(0, 10)), min_size=1, max_size=9
    ),
)
def test_without_noise_the_sums_are_numpy_s_histogram_of_the_lengths(clip: float, clips: list[float]) -> None:
    lengths = [each * clip for each in clips]
    shares = shares_of(words_of(lengths, QUIET, clip=clip), QUIET, len(lengths))
    assert shares[:, 0] == pytest.approx(numpy_s(lengths, clip), abs=1e-12)
    assert shares[:, 0].sum() == pytest.approx(1)


def test_the_noise_of_each_bin_has_the_stated_deviation_and_no_bias() -> None:
    """300 sums of 5 devices: each bin's variance and mean within 5 deviations of what is stated (6e-7 each)."""
    lengths, times = [0.1, 0.3, 0.7, 0.9, 9.0], 300
    sums = np.array(
        [
            shares_of(words_of(lengths, NOISY, clip=1.0, salt=time.to_bytes(2, "big")), NOISY, 5)
            for time in range(times)
        ]
    )
    scores = (sums[:, :, 0] - numpy_s(lengths, 1.0)) / sums[:, :, 1]
    assert scores.shape == (times, len(BINS))
    assert (np.abs((scores**2).mean(axis=0) - 1) < 5 * math.sqrt(2 / times)).all()
    assert (np.abs(scores.mean(axis=0)) < 5 / math.sqrt(times)).all()
    # Between its neighbors a bin has the noise of two quantities, at either end that of one.
    assert sums[0, 1:-1, 1] == pytest.approx(math.sqrt(2) * sums[0, 0, 1])


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize("bounds", [(0, 2), (-1, 1), (0, 0.5)])
def test_a_device_refuses_to_say_it_within_other_bounds(name: str, bounds: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match=f"{name} is 0 or 1"):
        Quantity(name, *bounds)


def test_a_plan_without_norms_is_what_it_was() -> None:
    asked = quantities(PLAN, 10)
    assert [(each.name, each.low, each.high) for each in asked] == [
        ("loss", 0, 2 * math.log(10)),
        ("accuracy", 0, 1),
    ]
    moving = quantities(replace(PLAN, clipping=Clipping(rate=0.2)), 10)
    assert [each.name for each in moving] == ["within_clip", "loss", "accuracy"]
    policy = lenient_policy(6)
    made = plan_privacy(PLAN, policy, 1000, len(asked))
    assert made == plan(
        dim=1000,
        clip=1.0,
        devices=8,
        honest=policy.honest(6),
        participations=6,
        delta=1e-6,
        noise_multiplier=4.0,
        rounds=6,
        auxiliary=2,
    )
    # One that was put on record before there were norms reads the same.
    assert RunPlan.from_json(PLAN.to_json().replace(', "norms": false', "")) == PLAN


def test_norms_are_five_quantities_and_cost_as_five_metrics_do() -> None:
    told = replace(PLAN, metrics=Metrics(norms=True))
    for each in (told, replace(told, clipping=Clipping(rate=0.2))):  # The clip follows one of the five.
        assert [quantity.name for quantity in quantities(each, 10)] == [*WITHIN, "loss", "accuracy"]
    bare, more = (plan_privacy(told, lenient_policy(6), 1000, count) for count in (0, 7))
    assert more.noise_multiplier == pytest.approx(bare.noise_multiplier, rel=1e-3)
    assert more.error / bare.error == pytest.approx(math.sqrt(1 + 7 * 0.01), rel=0.01)


def test_bins_are_named_by_their_edges() -> None:
    written = {0.25: "1/4", 0.5: "1/2", 1.0: "1", 2.0: "2", 4.0: "4"}
    assert list(WORDS[1:-1]) == [f"{written[low]} to {written[high]}" for low, high in BINS[1:-1]]
    assert (WORDS[0], WORDS[-1]) == (f"up to {written[BINS[0][1]]}", f"above {written[BINS[-1][0]]}")


def test_other_tools_are_told_each_length_s_mean_and_its_error() -> None:
    told = {name: {"mean": place / 4, "error": 0.03} for place, name in enumerate(WITHIN)}
    attempt = {"round": 2, "state": "opened", "started_s": 1.0, "finished_s": 2.0, "participations": []}
    run = {"run": "r1", "model": "digits", "version": 2, "state": "running", "reason": "", "rounds_done": 1}
    run |= {"delta": 1e-6, "created_s": 1.0, "finished_s": None, "plan": {"metrics": {"norms": True}}}
    found = exported(run, [{**attempt, "figures": {"metrics": told}}])
    values = {point.name: point.value for point in found.points}
    for name, each in told.items():
        assert (values[f"devices/{name}"], values[f"devices/{name}_error"]) == (each["mean"], each["error"])
    assert found.plan == {"metrics.norms": True}


def test_a_round_that_lacks_a_quantity_has_no_histogram() -> None:
    whole = {name: {"mean": 0.5, "error": 0.1} for name in WITHIN}
    assert len(histogram(whole)) == len(BINS)
    for name in WITHIN:
        assert histogram({other: told for other, told in whole.items() if other != name}) == ()
