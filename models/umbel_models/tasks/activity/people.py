"""People as their gait shows them, and what changes it after a model has learned it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError

GRAVITY = 9.81
AGE_GROUPS = ("under 40", "40 to 64", "65 and over")
PLACEMENTS = ("pocket", "hip", "hand", "arm")
USUAL = {"pocket": 0.4, "hip": 0.4, "hand": 0.2}  # nobody wears an armband until a drift says so
HARMONICS, STYLE = 5, 0.5  # of the stride that a person's own way of walking has, and its size, m/s^2; chosen
TILT_DEG = 5.0  # how differently two people put away a phone; chosen


@dataclass(frozen=True, slots=True)
class Drift:
    """What has changed since a model learned; all zero is what it learned from.

    Args:
        clock: Relative error of the sampling rate, in -0.2..0.2: 0.02 samples 2 % too fast.
        accelerometer_bias: Growth of the accelerometer's bias, m/s^2, >= 0.
        gyroscope_bias: Growth of the gyroscope's bias, rad/s, >= 0.
        placement: Where everybody carries the phone now, one of ``PLACEMENTS``; None as they used to.
        turned: How far the phone is turned in its place, degrees, about the normal of its screen.
        years: How much older everybody has become, >= 0.
        winter: Of walking as on ice, in 0..1: slower, shorter and softer steps, and a wider sway.
    """

    clock: float = 0.0
    accelerometer_bias: float = 0.0
    gyroscope_bias: float = 0.0
    placement: str | None = None
    turned: float = 0.0
    years: float = 0.0
    winter: float = 0.0

    def __post_init__(self) -> None:
        numbers = [getattr(self, each.name) for each in fields(self) if each.name != "placement"]
        if not (
            all(math.isfinite(each) for each in numbers)
            and abs(self.clock) <= 0.2
            and min(self.accelerometer_bias, self.gyroscope_bias, self.years) >= 0
            and 0 <= self.winter <= 1
        ):
            raise UsageError(
                f"{self} is no drift: give a clock error in -0.2..0.2, a winter in 0..1, and biases and years >= 0."
            )
        if self.placement is not None and self.placement not in PLACEMENTS:
            raise UsageError(f"There is no placement {self.placement!r}: use one of {', '.join(PLACEMENTS)}.")


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """One person with a phone.

    Args:
        age: Years.
        height: m.
        froude: Speed of level walking, squared, over gravity times leg length.
        impact: Strength of heel strikes, 1 on average.
        arm_swing: Amplitude of the arm's swing, radians.
        style: Complex amplitudes of what is this person's own in walking, m/s^2, shape (harmonics of the stride, 3).
        sway: How restless, 1 on average.
        asymmetry: How much one heel strikes harder than the other, relative.
        placement: Where the phone is.
        tilt: How it is turned there, a rotation vector, radians, shape (3,).
        accelerometer_bias: m/s^2, shape (3,).
        gyroscope_bias: rad/s, shape (3,).
    """

    age: float
    height: float
    froude: float
    impact: float
    arm_swing: float
    style: NDArray[np.complex128]
    sway: float
    asymmetry: float
    placement: str
    tilt: NDArray[np.float64]
    accelerometer_bias: NDArray[np.float64]
    gyroscope_bias: NDArray[np.float64]

    @property
    def leg(self) -> float:
        """Leg length, m: the height of the greater trochanter.

        Source: Drillis, Contini, "Body Segment Parameters", New York University 1966 (in Winter,
        "Biomechanics and Motor Control of Human Movement", 4th ed., figure 4.1).
        """
        return 0.53 * self.height

    @property
    def speed(self) -> float:
        """Speed of level walking, m/s: people of all sizes prefer about the same Froude number.

        Source: Alexander, "Optimization and Gaits in the Locomotion of Vertebrates", Physiological Reviews
        69(4), 1989.
        """
        return math.sqrt(self.froude * GRAVITY * self.leg)

    @property
    def step(self) -> float:
        """Length of a step on the level, m: it grows with the power 0.42 of speed.

        The factor 1.13 gives the 0.74 m that were measured at 1.35 m/s, if those legs were 0.92 m long, which
        is assumed.

        Source: Grieve, "Gait Patterns and the Speed of Walking", Biomedical Engineering 3, 1968 (the power);
        Whittington, Thelen, Journal of Biomechanical Engineering 131(1), 2009, table 1 (the factor).
        """
        return 1.13 * self.leg * math.pow(self.froude, 0.21)

    @property
    def step_hz(self) -> float:
        """Steps a second on the level."""
        return self.speed / self.step

    @property
    def age_group(self) -> int:
        """Number of the person's group in ``AGE_GROUPS``."""
        return int(self.age >= 40) + int(self.age >= 65)


def person(seed: int, number: int, drift: Drift) -> Person:
    """Return a person: the same one for the same seed and number, but for what the drift changes.

    Source:
        Speed by age: Bohannon, Andrews, "Normal Walking Speed: a Descriptive Meta-Analysis",
        Physiotherapy 97(3), 2011. Gait on ice: Cham, Redfern, "Changes in Gait when Anticipating Slippery
        Floors", Gait & Posture 15(2), 2002, in kind; its amounts are chosen. Biases: LSM6DSO data sheet,
        DS12140, zero-g and zero-rate level: 20 mg and 1 degree a second.
    """
    draw = np.random.default_rng([seed, number])
    born = draw.uniform(18, 85)
    height = float(np.clip(draw.normal(1.71, 0.09), 1.45, 2.05))
    froude = float(np.clip(draw.normal(0.21, 0.03), 0.12, 0.32))
    impact = float(np.exp(draw.normal(0, 0.2)))
    arm_swing = math.radians(float(np.clip(draw.normal(20, 5), 5, 40)))
    sway = float(np.exp(draw.normal(0, 0.3)))
    asymmetry = float(draw.normal(0, 0.08))
    style = draw.normal(0, STYLE, (2, HARMONICS, 3)) / np.arange(1, HARMONICS + 1)[:, np.newaxis]
    placement = str(draw.choice(list(USUAL), p=list(USUAL.values())))
    tilt = draw.normal(0, math.radians(TILT_DEG), 3)
    accelerometer, gyroscope = draw.normal(0, 0.020 * GRAVITY, 3), draw.normal(0, math.radians(1), 3)
    worse = draw.standard_normal(3)
    worse /= np.linalg.norm(worse)

    age = born + drift.years
    slower = float(np.interp(age, [55, 65, 75, 88], [1, 0.94, 0.885, 0.68]))
    old = max(0.0, age - 60)
    return Person(
        age=age,
        height=height,
        froude=froude * slower**2 * (1 - 0.3 * drift.winter),
        impact=impact * (1 - 0.5 * drift.winter),
        arm_swing=arm_swing * slower,
        style=(style[0] + 1j * style[1]) * slower,
        sway=sway * (1 + 0.02 * old) * (1 + 0.5 * drift.winter),
        asymmetry=asymmetry * (1 + 0.02 * old),
        placement=drift.placement or placement,
        tilt=tilt,
        accelerometer_bias=accelerometer + drift.accelerometer_bias * worse,
        gyroscope_bias=gyroscope + drift.gyroscope_bias * worse,
    )
