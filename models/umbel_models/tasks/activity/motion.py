"""How the part of the body that carries the phone moves, in walking, on stairs and at rest.

Axes of the world and of a body part that stands upright: x forward, y left, z up. A part turns by yaw, pitch and
roll, in this order; a positive angle of flexion lifts its front, as a thigh's in sitting.

Walking is an inverted pendulum over the stance leg, whose rise and fall the rolling foot reduces. Stairs lift
or lower the body by a step's height, fastest in its middle. Heel strikes are pulses. What swings does so at the
frequency of strides, half that of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel_models.tasks.activity.people import GRAVITY, Person

Array = NDArray[np.float64]

ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing", "lying")
# Vertical excursion over the pendulum's: set so that 1.35 m/s gives 4 to 5 cm. Why feet lower it: Gard, Childress,
# Journal of Prosthetics and Orthotics 13(3), 2001.
FOOT = 0.58
TREAD, RISE = 0.28, 0.17  # m, of an ordinary staircase
LATERAL = (
    0.025  # m, amplitude of the pelvis to the sides: Saunders, Inman, Eberhart, J. Bone & Joint Surgery 1953
)
PELVIS_YAW, PELVIS_LIST = 4.0, 5.0  # degrees to either side: the same
STRIKE = 4.0  # m/s^2, height of a heel strike's pulse at the trunk and 1.8 steps a second; chosen
SHARPNESS = 12.0  # of the pulse: about 25 ms to either side; chosen


@dataclass(frozen=True, slots=True)
class Gait:
    """How one activity of the legs differs from another.

    Args:
        cadence: Steps a second, relative to level walking; chosen.
        rise: What a step lifts the body by, m.
        unevenness: How much faster the middle of a step lifts than its mean, relative; chosen.
        strike: Strength of heel strikes, relative to level walking; chosen.
        thigh: Mean and amplitude of the thigh's flexion, degrees.
        lean: How far the trunk leans forward, degrees; chosen.
    """

    cadence: float
    rise: float
    unevenness: float
    strike: float
    thigh: tuple[float, float]
    lean: float


GAITS = {
    "walking": Gait(1.0, 0.0, 0.0, 1.0, (10, 20), 2),
    "upstairs": Gait(0.85, RISE, 0.6, 0.5, (20, 30), 8),
    "downstairs": Gait(0.97, -RISE, 0.8, 1.5, (17, 15), -2),
}
"""Source of the thigh's angles on stairs: one climber each, University of Michigan, Movement Science 330, class projects
of 1997 (up: -9 to 50 degrees) and 1998 (down: a range of 31). In kind: Riener, Rabuffetti, Frigo, "Stair Ascent and
Descent at Different Inclinations", Gait & Posture 15(1), 2002. Those of level walking are textbook figures."""

POSTURES = {
    "sitting": {"pocket": (75, 7), "hip": (30, 8), "hand": (65, 20), "arm": (25, 12)},
    "standing": {"pocket": (3, 4), "hip": (3, 4), "hand": (10, 12), "arm": (5, 6)},
}
"""Mean and deviation of a part's flexion at rest, degrees; chosen."""

RESTLESS = {"sitting": 0.6, "standing": 0.4, "lying": 0.2}  # degrees, of slow turning at rest; chosen
ASLEEP = ((0.4, 90, 0), (0.2, 0, 90), (0.2, 0, -90), (0.2, -90, 0))
"""How people lie: share, flexion, roll: on the back, on either side, on the belly; chosen."""


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """Motion of a body part, one row per window.

    Args:
        acceleration: Of the joint it hangs from, in the world, m/s^2, shape (n, time, 3).
        angles: Its yaw, pitch and roll, radians, shape (n, time, 3).
        lever: From the joint to the phone, in the part's axes, m, shape (3,).
    """

    acceleration: Array
    angles: Array
    lever: Array


def lever(person: Person) -> Array:
    """Return where the phone is, seen from the joint its body part turns about, m, shape (3,).

    Source: segment lengths as shares of height, Drillis and Contini 1966: thigh 0.245, upper arm 0.186,
    forearm 0.146.
    """
    height = person.height
    return {
        "pocket": np.array([0.06, -0.02, -0.5 * 0.245 * height]),
        "hip": np.array([0.08, 0.12, 0.05]),
        "hand": np.array([0.02, 0.0, -(0.186 + 0.146 + 0.04) * height]),
        "arm": np.array([0.0, -0.05, -0.5 * 0.186 * height]),
    }[person.placement]


def walk(person: Person, activity: str, time: Array, count: int, draw: np.random.Generator) -> Motion:
    """Return ``count`` windows of walking, on the level or on stairs.

    Args:
        person: Who walks.
        activity: A key of ``GAITS``.
        time: Instants, s, shape (time,).
        count: Number of windows.
        draw: Source of the differences between windows and between steps.
    """
    gait = GAITS[activity]
    # A window's pace, and how its steps hurry and linger: stride times vary by about 2 %, more when swaying.
    hz = person.step_hz * gait.cadence * _varied(draw, count, 0.06)
    wander = draw.normal(0, 0.08 * person.sway, (count, 1))
    slow = 2 * np.pi * draw.uniform(0.2, 0.6, (count, 1)) * time + _phase(draw, count)
    stride = np.pi * hz * time + _phase(draw, count) + wander * np.sin(slow)
    step = 2 * stride
    vigor = _varied(draw, count, 0.1)

    length = person.step if gait.rise == 0 else TREAD
    fall = person.leg - np.sqrt(person.leg**2 - (length / 2) ** 2)
    up = FOOT * fall / 2 * (2 * np.pi * hz) ** 2 * np.cos(step)
    up += gait.unevenness * _varied(draw, count, 0.2) * gait.rise * 2 * np.pi * hz**2 * np.sin(step)
    mean = np.i0(SHARPNESS) * np.exp(-SHARPNESS)
    pulse = np.exp(SHARPNESS * (np.cos(step - 0.2) - 1)) - mean
    strike = STRIKE * person.impact * gait.strike * _varied(draw, count, 0.2) * (hz / 1.8) ** 2 * pulse
    strike *= 1 + person.asymmetry * np.cos(stride)
    # The pendulum is slowest at its top; both feet on the ground take off more than half of the change.
    forward = -0.4 * GRAVITY * length / (2 * person.leg) * np.sin(step) - 0.3 * strike
    side = -LATERAL * np.sqrt(person.sway) * (np.pi * hz) ** 2 * np.cos(stride)
    acceleration = np.stack([forward, side, up + strike], axis=-1)
    turning = np.exp(1j * stride)
    harmonics = np.stack([turning**k for k in range(1, len(person.style) + 1)], axis=-1)
    acceleration += (harmonics @ person.style).real
    acceleration *= vigor[..., np.newaxis]

    yaw = np.radians(PELVIS_YAW) * np.sin(stride)
    roll = np.radians(PELVIS_LIST) * np.cos(stride)
    centre, swing = np.radians(gait.thigh)
    centre = centre + np.radians(draw.normal(0, 4, (count, 1)))
    arms = person.arm_swing * vigor * (1.0 if gait.rise == 0 else 0.7)
    flexion = {
        "pocket": centre + swing * vigor * (np.cos(stride + 0.3) + 0.15 * np.cos(step + 1.0)),
        "hip": np.radians(draw.normal(-gait.lean, 4, (count, 1))) + np.radians(2) * np.cos(step + 0.5),
        "hand": np.radians(10) - arms * np.cos(stride),
        "arm": np.radians(5) - 0.7 * arms * np.cos(stride),
    }[person.placement]
    angles = np.stack([yaw, -flexion, roll], axis=-1) + _restless(person, 1.0, time, count, draw)
    return Motion(acceleration, angles, lever(person))


def rest(person: Person, activity: str, time: Array, count: int, draw: np.random.Generator) -> Motion:
    """Return ``count`` windows of sitting, standing or lying.

    Args:
        person: Who rests.
        activity: ``sitting``, ``standing`` or ``lying``.
        time: Instants, s, shape (time,).
        count: Number of windows.
        draw: Source of postures and small movements.
    """
    if activity == "lying":
        share, flexion, roll = (np.array(column, float) for column in zip(*ASLEEP, strict=True))
        way = draw.choice(len(ASLEEP), size=count, p=share)
        posture = np.stack([flexion[way], roll[way]], axis=-1) + draw.normal(0, 4, (count, 2))
    else:
        centre, spread = POSTURES[activity][person.placement]
        posture = np.stack([draw.normal(centre, spread, count), draw.normal(0, 5, count)], axis=-1)
    turned = np.radians(posture)[:, np.newaxis, :]
    angles = _restless(person, RESTLESS[activity], time, count, draw)
    angles[..., 1] -= turned[..., 0]
    angles[..., 2] += turned[..., 1]
    acceleration = np.zeros((count, len(time), 3))
    if person.placement == "hand":
        # Physiological tremor, 8 to 12 Hz: McAuley, Marsden, Brain 123(8), 2000.
        hz = draw.uniform(8, 12, (count, 1, 1))
        shape = draw.normal(0, 0.05, (count, 1, 3))
        acceleration += shape * np.sin(
            2 * np.pi * hz * time[:, np.newaxis] + _phase(draw, count)[..., np.newaxis]
        )
    return Motion(acceleration, angles, lever(person))


def _phase(draw: np.random.Generator, count: int) -> Array:
    return draw.uniform(0, 2 * np.pi, (count, 1))


def _varied(draw: np.random.Generator, count: int, spread: float) -> Array:
    return np.asarray(np.exp(draw.normal(0, spread, (count, 1))))


def _restless(person: Person, degrees: float, time: Array, count: int, draw: np.random.Generator) -> Array:
    """Return slow small turns about every axis, radians, shape (n, time, 3), as nobody keeps still."""
    amplitude = np.radians(degrees) * person.sway * np.exp(draw.normal(0, 0.5, (count, 1, 3, 2)))
    hz = draw.uniform(0.15, 1.2, (count, 1, 3, 2))
    phase = draw.uniform(0, 2 * np.pi, (count, 1, 3, 2))
    turns = amplitude * np.sin(2 * np.pi * hz * time[:, np.newaxis, np.newaxis] + phase)
    return np.asarray(turns.sum(axis=-1))
