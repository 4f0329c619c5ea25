"""The activity generator: it keeps the laws of mechanics, and its knobs do what they say. Seeds are fixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from umbel_models.task import Examples
from umbel_models.tasks.activity.data import SAMPLES, split, windows
from umbel_models.tasks.activity.motion import ACTIVITIES, GAITS, Motion, lever, walk
from umbel_models.tasks.activity.people import GRAVITY, PLACEMENTS, Drift, person
from umbel_models.tasks.activity.sensor import (
    ACCELEROMETER_LSB,
    ACCELEROMETER_NOISE,
    GYROSCOPE_LSB,
    SAMPLE_HZ,
    SPARE,
    instants,
    kinematics,
)
from umbel_models.tasks.activity.task import ACTIVITY
from umbel_proto.errors import UsageError

BODY, RATE, TOTAL = slice(0, 3), slice(3, 6), slice(6, 9)
CROWD = range(12)


def of(examples: Examples, activity: str) -> NDArray[np.float32]:
    return examples.x[examples.y == ACTIVITIES.index(activity)]


def peak_hz(signal: NDArray[np.float64]) -> float:
    """Frequency of the highest peak of the mean spectrum of windows (n, time), in Hz by a right clock."""
    tapered = (signal - signal.mean(axis=1, keepdims=True)) * np.hanning(signal.shape[1])
    power = (np.abs(np.fft.rfft(tapered, 4096, axis=1)) ** 2).mean(axis=0)
    return float(power.argmax() / 4096 * SAMPLE_HZ)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_at_rest_the_accelerometer_reads_gravity(placement: str) -> None:
    drift = Drift(placement=placement)
    for number in CROWD:
        still = windows(1, [number], per_activity=4, drift=drift)
        for activity in ("sitting", "standing", "lying"):
            reading = (
                of(still, activity)[..., TOTAL].mean(axis=1) - person(1, number, drift).accelerometer_bias
            )
            np.testing.assert_allclose(np.linalg.norm(reading, axis=1), GRAVITY, atol=0.1)


@pytest.mark.parametrize("activity", GAITS)
def test_the_trunk_bounces_at_the_frequency_of_steps(activity: str) -> None:
    drift = Drift(placement="hip")
    for number in CROWD:
        x = of(windows(1, [number], per_activity=40, drift=drift), activity)
        gravity = x[..., TOTAL].mean(axis=1, keepdims=True)
        vertical = (x[..., BODY] * gravity).sum(axis=-1) / GRAVITY
        expected = person(1, number, drift).step_hz * GAITS[activity].cadence
        assert peak_hz(vertical) == pytest.approx(expected, rel=0.06)


def test_limbs_swing_at_half_the_frequency_of_steps() -> None:
    for placement, axis in (("pocket", 0), ("arm", 2)):
        drift = Drift(placement=placement)
        x = of(windows(1, [3], per_activity=40, drift=drift), "walking")
        strongest = x[..., RATE].var(axis=(0, 1)).argmax()
        assert strongest == axis  # of the phone, that points to the side of the body
        found = peak_hz(x[..., RATE][..., strongest].astype(float))
        assert found == pytest.approx(person(1, 3, drift).step_hz / 2, rel=0.06)


@pytest.mark.parametrize(
    ("speed", "step", "cadence"), [(1.06, (0.66, 0.07), (1.62, 0.16)), (1.35, (0.74, 0.07), (1.83, 0.14)),
                                   (1.59, (0.81, 0.06), (1.96, 0.16))],
)  # fmt: skip
def test_steps_are_those_that_were_measured(
    speed: float, step: tuple[float, float], cadence: tuple[float, float]
) -> None:
    # Mean and deviation of people: Whittington and Thelen 2009, table 1; legs of 0.92 m are assumed.
    someone = replace(person(1, 0, Drift()), height=0.92 / 0.53, froude=speed**2 / (GRAVITY * 0.92))
    assert someone.speed == pytest.approx(speed)
    assert someone.step == pytest.approx(step[0], abs=step[1] / 2)
    assert someone.step_hz == pytest.approx(cadence[0], abs=cadence[1] / 2)


def moved(activity: str, *, strikes: bool = False) -> Motion:
    """Windows of an ordinary person at the pelvis, without a style of its own, and without strikes of heels or with."""
    drift = Drift(placement="hip")
    plain = replace(
        person(1, 0, drift),
        height=0.92 / 0.53,
        froude=1.35**2 / (GRAVITY * 0.92),
        impact=float(strikes),
        style=np.zeros((1, 3), complex),
    )
    return walk(plain, activity, instants(SAMPLES, 0.0), 200, np.random.default_rng(1))


def test_the_pelvis_rises_and_falls_by_four_to_five_centimeters() -> None:
    # 4 to 5 cm at 1.35 m/s is what the constant FOOT is set for. Of a sine, the excursion is 2 a / omega^2, a the amplitude.
    vertical = moved("walking").acceleration[..., 2]
    omega = 2 * np.pi * peak_hz(vertical)
    assert 0.04 < 2 * np.sqrt(2) * vertical.std() / omega**2 < 0.05


def test_stairs_are_climbed_in_short_steps_and_left_in_hard_ones() -> None:
    def forward(activity: str) -> float:
        return float(moved(activity).acceleration[..., 0].std())

    def struck(activity: str) -> float:
        hz = peak_hz(moved(activity).acceleration[..., 2])
        change = moved(activity, strikes=True).acceleration - moved(activity).acceleration
        return float(change[..., 2].max() / hz**2)

    assert forward("upstairs") == pytest.approx(forward("downstairs"), rel=0.02)
    assert forward("upstairs") < 0.5 * forward("walking")
    assert struck("upstairs") < 0.7 * struck("walking") < struck("walking") < 0.8 * struck("downstairs")


def test_sitting_lifts_the_front_of_the_thigh_and_leans_the_hip_back() -> None:
    # The phone's z axis points forward where the body part stands upright.
    for placement, least in (("pocket", 8.0), ("hip", 3.0)):
        x = of(windows(1, CROWD, drift=Drift(placement=placement)), "sitting")[..., TOTAL].mean(axis=(0, 1))
        assert x[2] > least


def test_no_two_people_share_noise() -> None:
    def noise(number: int) -> NDArray[np.float32]:
        return np.diff(of(windows(1, [number], per_activity=5), "lying")[..., TOTAL], n=2, axis=1).ravel()

    assert abs(np.corrcoef(noise(0), noise(1))[0, 1]) < 0.1


def test_readings_are_those_of_a_rigid_body() -> None:
    # The oracle moves a point about and differentiates its path twice, with scipy's rotations.
    interval = 1e-3
    time = np.arange(3000) * interval
    angles = np.stack(
        [0.3 * np.sin(5 * time), -0.4 + 0.6 * np.cos(6 * time + 1), 0.5 * np.sin(4 * time + 2)], axis=-1
    )
    joint = np.stack([0.05 * np.sin(11 * time), 0.03 * np.cos(6 * time), 0.02 * np.cos(12 * time)], axis=-1)
    acceleration = joint * -(np.array([11.0, 6.0, 12.0]) ** 2)
    arm = np.array([0.1, -0.05, -0.5])
    force, rate = kinematics(Motion(acceleration[np.newaxis], angles[np.newaxis], arm), interval)

    turn = Rotation.from_euler("ZYX", angles)
    path = joint + turn.apply(arm)
    second = (path[2:] - 2 * path[1:-1] + path[:-2]) / interval**2
    expected = turn[1:-1].inv().apply(second + np.array([0, 0, GRAVITY]))[1:-1]
    np.testing.assert_allclose(force[0], expected, atol=2e-3)
    between = (turn[:-2].inv() * turn[2:]).as_rotvec() / (2 * interval)
    np.testing.assert_allclose(rate[0], between[1:-1], atol=1e-4)
    assert force.shape[1] == len(time) - 2 * SPARE


def test_readings_are_whole_steps_of_the_sensor_with_its_noise() -> None:
    x = of(windows(2, CROWD, per_activity=5), "lying").astype(float)
    for part, step in ((TOTAL, ACCELEROMETER_LSB), (RATE, GYROSCOPE_LSB)):
        levels = x[..., part] / step
        np.testing.assert_allclose(levels, np.rint(levels), atol=0.01)
    held = np.array([person(2, n, Drift()).placement != "hand" for n in CROWD]).repeat(5)
    # Second differences remove slow movement and leave six times the noise's variance.
    rough = np.diff(x[held][..., TOTAL], n=2, axis=1).std() / np.sqrt(6)
    assert rough == pytest.approx(ACCELEROMETER_NOISE, rel=0.1)


def test_body_acceleration_is_what_is_not_the_windows_mean() -> None:
    x = windows(2, CROWD, per_activity=2).x.astype(float)
    expected = x[..., TOTAL] - x[..., TOTAL].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(x[..., BODY], expected, atol=1e-5)


def test_no_drift_changes_nothing() -> None:
    for drift in (Drift(), Drift(clock=0.0, years=0.0)):
        np.testing.assert_array_equal(windows(3, [0, 1], drift=drift).x, windows(3, [0, 1]).x)


@pytest.mark.parametrize("clock", [-0.1, 0.05, 0.15])
def test_a_fast_clock_makes_steps_look_slow(clock: float) -> None:
    def seen(drift: Drift) -> float:
        x = of(windows(1, [4], per_activity=40, drift=drift), "walking")
        return peak_hz(x[..., RATE][..., x[..., RATE].var(axis=(0, 1)).argmax()].astype(float))

    assert seen(Drift(placement="pocket", clock=clock)) * (1 + clock) == pytest.approx(
        seen(Drift(placement="pocket")), rel=0.02
    )


def test_biases_grow_by_what_the_knobs_say() -> None:
    plain = windows(3, CROWD, per_activity=2).x
    for size in (0.5, 2.0):
        worse = windows(
            3, CROWD, per_activity=2, drift=Drift(accelerometer_bias=size, gyroscope_bias=size / 10)
        ).x
        change = worse - plain
        np.testing.assert_allclose(
            np.linalg.norm(change[..., TOTAL], axis=-1), size, atol=4 * ACCELEROMETER_LSB
        )
        np.testing.assert_allclose(
            np.linalg.norm(change[..., RATE], axis=-1), size / 10, atol=4 * GYROSCOPE_LSB
        )
        np.testing.assert_allclose(change[..., BODY], 0, atol=4 * ACCELEROMETER_LSB)


@pytest.mark.parametrize("degrees", [45, 90, 180])
def test_a_turned_phone_sees_gravity_turned(degrees: float) -> None:
    def direction(turned: float) -> NDArray[np.float64]:
        x = of(windows(3, CROWD, per_activity=4, drift=Drift(placement="pocket", turned=turned)), "standing")
        up = x[..., TOTAL].mean(axis=1).astype(float)
        return np.asarray(np.arctan2(up[:, 1], up[:, 0]))

    moved = np.degrees(direction(degrees) - direction(0)) % 360
    # By how the person tilts the phone besides, the angle on the screen differs a little.
    np.testing.assert_allclose(moved, degrees, atol=12)


def test_another_place_moves_otherwise() -> None:
    swinging = [
        of(windows(3, CROWD, drift=Drift(placement=place)), "walking")[..., RATE].std()
        for place in PLACEMENTS
    ]
    pocket, hip, hand, arm = swinging
    assert hip < arm < hand < pocket


def test_years_and_winter_slow_people_down() -> None:
    for number in CROWD:
        by_age = [person(4, number, Drift(years=years)) for years in (0, 10, 20, 40)]
        by_ice = [person(4, number, Drift(winter=winter)) for winter in (0.0, 0.5, 1.0)]
        for people in (by_age, by_ice):
            assert [p.speed for p in people] == sorted((p.speed for p in people), reverse=True)
            assert [p.step for p in people] == sorted((p.step for p in people), reverse=True)
            assert [p.sway for p in people] == sorted(p.sway for p in people)
            assert people[-1].speed < people[0].speed
        assert [p.impact for p in by_ice] == pytest.approx(
            [by_ice[0].impact * part for part in (1, 0.75, 0.5)]
        )
        assert [p.age_group for p in by_age] == sorted(p.age_group for p in by_age)


def test_heels_strike_softer_on_ice() -> None:
    def jerk(winter: float) -> float:
        x = of(windows(4, CROWD, drift=Drift(placement="hip", winter=winter)), "walking")
        return float(np.diff(x[..., TOTAL], axis=1).std())

    assert jerk(1.0) < jerk(0.5) < jerk(0.0)


def test_a_longer_leg_steps_slower() -> None:
    someone = person(1, 0, Drift())
    tall, small = replace(someone, height=2.0), replace(someone, height=1.5)
    # Dynamic similarity: at one Froude number, times go with the root of lengths.
    assert small.step_hz / tall.step_hz == pytest.approx(np.sqrt(2.0 / 1.5))
    assert lever(tall)[2] == pytest.approx(lever(small)[2] * 2.0 / 1.5) or someone.placement == "hip"


def test_a_person_is_the_same_whoever_else_is_asked_for() -> None:
    alone, among = windows(5, [7], per_activity=2), windows(5, [2, 7, 9], per_activity=2)
    assert among.source is not None
    np.testing.assert_array_equal(alone.x, among.x[among.source == 7])
    assert not np.array_equal(alone.x, windows(6, [7], per_activity=2).x)


def test_the_cohort_is_the_age_group() -> None:
    examples = windows(5, range(40), per_activity=1)
    assert examples.cohort is not None
    assert examples.source is not None
    for number, group in zip(examples.source, examples.cohort, strict=True):
        age = person(5, int(number), Drift()).age
        assert group == (0 if age < 40 else 1 if age < 65 else 2)
    assert set(examples.cohort) == {0, 1, 2}


def test_nobody_is_in_two_parts_and_every_window_keeps_the_contract() -> None:
    parts = split()
    people = [set(part.source.tolist()) for part in parts if part.source is not None]
    assert [len(each) for each in people] == [80, 24, 6]
    assert len(set.union(*people)) == 110
    for part in parts:
        ACTIVITY.contract.check(part.x)
        assert part.x.shape[1:] == (SAMPLES, 9)
        assert (np.bincount(part.y) == len(part.y) / 6).all()
    whole = np.concatenate([part.x[:, :, 6] for part in parts])
    assert len(np.unique(whole, axis=0)) == len(whole)


def test_windows_keep_the_contract_under_any_drift() -> None:
    drift = Drift(clock=0.2, accelerometer_bias=3, gyroscope_bias=1, turned=180, years=40, winter=1)
    ACTIVITY.contract.check(windows(6, CROWD, drift=drift).x)


@pytest.mark.parametrize(
    "knobs",
    [{"clock": 0.5}, {"accelerometer_bias": -1.0}, {"gyroscope_bias": float("nan")}, {"placement": "ear"},
     {"years": -1.0}, {"winter": 2.0}, {"turned": float("inf")}],
)  # fmt: skip
def test_a_drift_that_makes_no_sense_is_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"no drift|no placement"):
        Drift(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("persons", "per_activity"), [([], 1), ([0], 0)])
def test_no_windows_at_all_are_refused(persons: list[int], per_activity: int) -> None:
    with pytest.raises(UsageError, match="at least one"):
        windows(0, persons, per_activity=per_activity)
