"""Handwritten digits from scikit-learn: 1,797 images of 8x8 grey levels 0..16.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part, as scikit-learn ships it).
"""

from __future__ import annotations

import numpy as np

from umbel_models.task import Examples, Split
from umbel_models.tasks.parts import in_proportion
from umbel_proto.errors import MissingExtraError

HELD_OUT = 0.2
CALIBRATION = 100


def load() -> Examples:
    """Return all digits: x float32 (1797, 1, 8, 8) in 0..16, y int64 (1797,).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise MissingExtraError("models", "The digits data set") from exc
    bunch = load_digits()
    return Examples(bunch.images.astype(np.float32)[:, np.newaxis], bunch.target.astype(np.int64))


def split(seed: int = 0) -> Split:
    """Return the digits in three disjoint parts: 1,338 to train on, 359 held out, 100 for calibration.

    Every class has its share in each part.

    Args:
        seed: Which examples go where; the same seed, the same parts.
    """
    digits = load()
    order = in_proportion(digits.y, np.random.default_rng(seed))
    held, rest = np.split(order, [round(HELD_OUT * len(order))])
    calibration, train = np.split(rest, [CALIBRATION])
    return Split(*(digits.take(rows) for rows in (train, held, calibration)))
