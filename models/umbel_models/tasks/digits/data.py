"""Handwritten digits from scikit-learn: 1,797 images of 8x8 grey levels 0..16.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part, as scikit-learn ships it).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from umbel_models.task import Examples, Split
from umbel_models.tasks.parts import split_in_proportion
from umbel_proto.errors import MissingExtraError

HELD_OUT = 0.2
CALIBRATION = 100


def load() -> Examples:
    """Return all digits: x float32 (1797, 1, 8, 8) in 0..16, y int64 (1797,).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise MissingExtraError("models", "The digits data set")
    # The file alone: importing scikit-learn for it takes each command 1.5 s, most of what the demo's take.
    path = Path(found.origin).with_name("datasets") / "data" / "digits.csv.gz"
    table = np.loadtxt(path, np.float32, delimiter=",")
    return Examples(table[:, :-1].reshape(-1, 1, 8, 8).copy(), table[:, -1].astype(np.int64))


def split(seed: int = 0) -> Split:
    """Return the digits in three disjoint parts: 1,338 to train on, 359 held out, 100 for calibration.

    Every class has its share in each part.

    Args:
        seed: Which examples go where; the same seed, the same parts.
    """
    return split_in_proportion(load(), held_out=HELD_OUT, calibration=CALIBRATION, seed=seed)
