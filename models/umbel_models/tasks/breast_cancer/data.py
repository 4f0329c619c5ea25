"""Measurements of cell nuclei in 569 breast masses, and what each turned out to be; from scikit-learn.

Source: W. Wolberg, O. Mangasarian, N. Street, W. Street, "Breast Cancer Wisconsin (Diagnostic)", UCI Machine
Learning Repository, 1995, doi:10.24432/C5DW2B.
"""

from __future__ import annotations

import numpy as np

from umbel_models.task import Examples, Split
from umbel_models.tasks.parts import split_in_proportion
from umbel_proto.errors import MissingExtraError

HELD_OUT = 0.25
CALIBRATION = 50

RANGES = {
    "mean radius": (6.981, 28.11),
    "mean texture": (9.71, 39.28),
    "mean perimeter": (43.79, 188.5),
    "mean area": (143.5, 2501.0),
    "mean smoothness": (0.053, 0.163),
    "mean compactness": (0.019, 0.345),
    "mean concavity": (0.0, 0.427),
    "mean concave points": (0.0, 0.201),
    "mean symmetry": (0.106, 0.304),
    "mean fractal dimension": (0.05, 0.097),
    "radius error": (0.112, 2.873),
    "texture error": (0.36, 4.885),
    "perimeter error": (0.757, 21.98),
    "area error": (6.802, 542.2),
    "smoothness error": (0.002, 0.031),
    "compactness error": (0.002, 0.135),
    "concavity error": (0.0, 0.396),
    "concave points error": (0.0, 0.053),
    "symmetry error": (0.008, 0.079),
    "fractal dimension error": (0.001, 0.03),
    "worst radius": (7.93, 36.04),
    "worst texture": (12.02, 49.54),
    "worst perimeter": (50.41, 251.2),
    "worst area": (185.2, 4254.0),
    "worst smoothness": (0.071, 0.223),
    "worst compactness": (0.027, 1.058),
    "worst concavity": (0.0, 1.252),
    "worst concave points": (0.0, 0.291),
    "worst symmetry": (0.156, 0.664),
    "worst fractal dimension": (0.055, 0.208),
}
"""Least and greatest value of each column, in its order, as the data's documentation states them."""


def load() -> Examples:
    """Return all masses: x float32 (569, 30), y int64 (569,), 0 malignant, 1 benign.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as exc:
        raise MissingExtraError("models", "The breast cancer data set") from exc
    bunch = load_breast_cancer()
    return Examples(bunch.data.astype(np.float32), bunch.target.astype(np.int64))


def split(seed: int = 0) -> Split:
    """Return the masses in three disjoint parts: 377 to train on, 142 held out, 50 for calibration.

    Both classes have their share in each part.

    Args:
        seed: Which examples go where; the same seed, the same parts.
    """
    return split_in_proportion(load(), held_out=HELD_OUT, calibration=CALIBRATION, seed=seed)
