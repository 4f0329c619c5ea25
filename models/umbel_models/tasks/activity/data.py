"""Windows of motion sensors, 2.56 s at 50 Hz, of six activities: generated, in the form of UCI's HAR data set.

The form: Anguita, Ghio, Oneto, Parra, Reyes-Ortiz, "A Public Domain Dataset for Human Activity Recognition
Using Smartphones", ESANN 2013. What moves is in ``motion``, what is read of it in ``sensor``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from umbel_models.task import Examples, Split
from umbel_models.tasks.activity.motion import ACTIVITIES, GAITS, rest, walk
from umbel_models.tasks.activity.people import Drift, person
from umbel_models.tasks.activity.sensor import instants, kinematics, read
from umbel_proto.errors import UsageError

SAMPLES = 128
CHANNELS = tuple(
    f"{kind} {axis}" for kind in ("body acceleration", "angular rate", "total acceleration") for axis in "xyz"
)
PEOPLE = (80, 24, 6)
PER_ACTIVITY = 15
DRIFTS = {
    "a clock 5 % fast": Drift(clock=0.05),
    "grown biases": Drift(accelerometer_bias=0.5, gyroscope_bias=0.05),
    "armbands": Drift(placement="arm"),
    "phones turned by 45 degrees": Drift(turned=45.0),
    "20 years later": Drift(years=20.0),
    "winter": Drift(winter=1.0),
}


def windows(
    seed: int, persons: Iterable[int], *, per_activity: int = PER_ACTIVITY, drift: Drift | None = None
) -> Examples:
    """Generate windows: x (n, 128, 9), y the activity, the age group as cohort, the person as source.

    Channels are ``CHANNELS``, m/s^2 and rad/s. Body acceleration is total acceleration less its mean over the
    window, which any device can compute. A person is the same whoever else is asked for, and makes the same
    movements under any drift but for what it changes, so that drifts compare window by window.

    Args:
        seed: Which world.
        persons: Numbers of the people, >= 0.
        per_activity: Windows of each activity of each person, >= 1.
        drift: What has changed since; by default nothing.

    Raises:
        UsageError: Nobody or nothing is asked for.
    """
    drift = drift or Drift()
    numbers = list(persons)
    if not numbers or per_activity < 1:
        raise UsageError("Windows of nobody, or none of each activity, make no data: ask for at least one.")
    parts = [_of(seed, number, per_activity, drift) for number in numbers]
    rows = len(ACTIVITIES) * per_activity
    y = np.tile(np.repeat(np.arange(len(ACTIVITIES)), per_activity), len(parts))
    cohort = np.repeat([group for _, group in parts], rows)
    source = np.repeat(np.array(numbers, np.int64), rows)
    return Examples(np.concatenate([x for x, _ in parts]), y, cohort, source)


def split(seed: int = 0) -> Split:
    """Return windows of 80 people to train on, 24 held out and 6 for calibration, 90 of each.

    Args:
        seed: Which world.
    """
    bounds = np.cumsum((0, *PEOPLE)).tolist()
    return Split(*(windows(seed, range(start, end)) for start, end in pairwise(bounds)))


def shifted(seed: int = 0) -> dict[str, Examples]:
    """Return windows of the held-out people after some drift, by its name.

    Args:
        seed: Which world, as in ``split``.
    """
    train, held_out, _ = PEOPLE
    return {
        name: windows(seed, range(train, train + held_out), drift=drift) for name, drift in DRIFTS.items()
    }


def _of(seed: int, number: int, per_activity: int, drift: Drift) -> tuple[NDArray[np.float32], int]:
    """Return one person's windows, float32 (6 * per_activity, 128, 9), and age group."""
    who = person(seed, number, drift)
    time = instants(SAMPLES, drift.clock)
    parts = []
    for index, activity in enumerate(ACTIVITIES):
        draw = np.random.default_rng([seed, number, index])
        move = walk if activity in GAITS else rest
        motion = move(who, activity, time, per_activity, draw)
        force, rate = kinematics(motion, float(time[1]))
        total, rate = read(who, force, rate, drift.turned, draw)
        body = total - total.mean(axis=1, keepdims=True)
        parts.append(np.concatenate([body, rate, total], axis=-1).astype(np.float32))
    return np.concatenate(parts), who.age_group
