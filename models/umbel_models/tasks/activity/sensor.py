"""What an accelerometer and a gyroscope in a phone read of a motion.

Source of the sensor's figures: STMicroelectronics, LSM6DSO data sheet, DS12140, table 2: full scales of 4 g and 2,000
degrees a second at 16 bits, noise of 2.0 mg rms in low-power mode, and of 3.8 mdps per root Hz over the 25 Hz that
50 samples a second hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from umbel_models.tasks.activity.motion import Motion
from umbel_models.tasks.activity.people import GRAVITY, Person

Array = NDArray[np.float64]

SAMPLE_HZ = 50.0
ACCELEROMETER_LSB = 0.122e-3 * GRAVITY
GYROSCOPE_LSB = np.radians(70e-3)
ACCELEROMETER_NOISE = 2.0e-3 * GRAVITY
GYROSCOPE_NOISE = np.radians(3.8e-3) * np.sqrt(SAMPLE_HZ / 2)
LARGEST = 2**15 - 1
SPARE = 2  # samples at either end that differences use up
HABIT_DEG = 3.0  # how differently a person puts the phone away from time to time; chosen

MOUNTS = {
    "pocket": np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], float),
    "hip": np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], float),
    "hand": np.array([[-1, 0, 0], [0, 0, -1], [0, -1, 0]], float),
    "arm": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float),
}
"""The phone's axes (right, up, out of the screen) in those of the body part, by placement, one a row."""


def instants(samples: int, clock: float) -> Array:
    """Return when samples are taken, s, shape (samples + 2 * SPARE,), by a clock that runs ``clock`` too fast."""
    return np.arange(samples + 2 * SPARE) / (SAMPLE_HZ * (1 + clock))


def kinematics(motion: Motion, interval: float) -> tuple[Array, Array]:
    """Return specific force, m/s^2, and angular rate, rad/s, where the phone is, in the body part's axes.

    A body part is rigid: a = R^T (a_joint + g) + alpha x d + omega x (omega x d).

    Args:
        motion: The motion, shape (n, time, 3) each.
        interval: Between two samples, s.

    Returns:
        Both of shape (n, time - 2 * SPARE, 3): derivatives are central differences.
    """
    angles = motion.angles
    rates = (angles[:, 2:] - angles[:, :-2]) / (2 * interval)
    inner = angles[:, 1:-1]
    (yaw_rate, pitch_rate, roll_rate) = np.moveaxis(rates, -1, 0)
    sin, cos = np.sin(inner), np.cos(inner)
    omega = np.stack(
        [
            roll_rate - yaw_rate * sin[..., 1],
            pitch_rate * cos[..., 2] + yaw_rate * cos[..., 1] * sin[..., 2],
            -pitch_rate * sin[..., 2] + yaw_rate * cos[..., 1] * cos[..., 2],
        ],
        axis=-1,
    )
    alpha = (omega[:, 2:] - omega[:, :-2]) / (2 * interval)
    omega = omega[:, 1:-1]
    force = motion.acceleration[:, SPARE:-SPARE] + np.array([0.0, 0.0, GRAVITY])
    turned = _into_part(force, sin[:, 1:-1], cos[:, 1:-1])
    swing = _cross(alpha, motion.lever) + _cross(omega, _cross(omega, motion.lever))
    return turned + swing, omega


def read(
    person: Person, force: Array, rate: Array, turned_deg: float, draw: np.random.Generator
) -> tuple[Array, Array]:
    """Return what the sensors say of specific force and angular rate, in the phone's axes and in whole steps.

    Args:
        person: Whose phone it is.
        force: m/s^2, in the body part's axes, shape (n, time, 3).
        rate: rad/s, the same.
        turned_deg: How far the phone is turned about the normal of its screen.
        draw: Source of noise, and of how the phone was put away.
    """
    habit = person.tilt + draw.normal(0, np.radians(HABIT_DEG), (len(force), 3))
    mount = _rotation(habit) @ _rotation(np.radians([[0.0, 0.0, turned_deg]])) @ MOUNTS[person.placement]
    axes = np.swapaxes(mount, -1, -2)
    noise = draw.standard_normal((2, *force.shape))
    force = force @ axes + person.accelerometer_bias + ACCELEROMETER_NOISE * noise[0]
    rate = rate @ axes + person.gyroscope_bias + GYROSCOPE_NOISE * noise[1]
    return _steps(force, ACCELEROMETER_LSB), _steps(rate, GYROSCOPE_LSB)


def _steps(values: Array, step: float) -> Array:
    return step * np.clip(np.rint(values / step), -LARGEST - 1, LARGEST)


def _into_part(vectors: Array, sin: Array, cos: Array) -> Array:
    """Return vectors of the world in the axes of a part turned by yaw, pitch and roll."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    (s1, s2, s3), (c1, c2, c3) = np.moveaxis(sin, -1, 0), np.moveaxis(cos, -1, 0)
    x, y = c1 * x + s1 * y, c1 * y - s1 * x
    x, z = c2 * x - s2 * z, s2 * x + c2 * z
    y, z = c3 * y + s3 * z, c3 * z - s3 * y
    return np.stack([x, y, z], axis=-1)


def _cross(a: Array, b: Array) -> Array:
    # numpy's own cross takes three times as long.
    (a0, a1, a2), (b0, b1, b2) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    return np.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], axis=-1)


def _rotation(vectors: Array) -> Array:
    """Return the matrices, shape (n, 3, 3), of rotation vectors, radians, shape (n, 3): Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=-1)[:, np.newaxis, np.newaxis]
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    # sinc is sin(pi t) / (pi t), and 1 at 0.
    versine = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.asarray(np.eye(3) + np.sinc(angle / np.pi) * cross + versine * cross @ cross)
