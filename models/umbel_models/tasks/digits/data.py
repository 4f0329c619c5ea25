"""Handwritten digits from scikit-learn: 1,797 images of 8x8 grey levels 0..16, and how devices share them.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part, as scikit-learn ships it).
"""

from __future__ import annotations

import numpy as np

from umbel_models.task import Examples, Split
from umbel_proto.errors import MissingExtraError, UsageError

CLASSES = 10
HELD_OUT = 0.2
CALIBRATION = 100
MIN_SHARD = 20  # fewer examples than one batch would make a device's update mostly chance


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
    x, y, *_ = load()
    source = np.random.default_rng(seed)
    # Examples in random order, then sorted by how far through its own class each one stands: any stretch
    # of the result holds the classes in proportion.
    order = source.permutation(len(y))
    place = np.empty(len(y))
    for label in range(CLASSES):
        rows = order[y[order] == label]
        place[rows] = (np.arange(len(rows)) + source.random()) / len(rows)
    order = np.argsort(place, kind="stable")
    held, rest = np.split(order, [round(HELD_OUT * len(y))])
    calibration, train = np.split(rest, [CALIBRATION])
    return Split(*(Examples(x[rows], y[rows]) for rows in (train, held, calibration)))


def shards(examples: Examples, devices: int, *, alpha: float, seed: int) -> list[Examples]:
    """Share examples among devices unevenly: each class by its own draw from a Dirichlet distribution.

    Args:
        examples: What to share; every example goes to exactly one device.
        devices: Number of devices, >= 1.
        alpha: Concentration, > 0: 100 is nearly even, 0.1 gives a device one or two classes.
        seed: Which example goes where.

    Raises:
        UsageError: The examples cannot give every device ``MIN_SHARD`` of them.

    Source:
        Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification", arXiv:1909.06335, section 3.
    """
    if devices < 1 or alpha <= 0:
        raise UsageError(
            f"Shards for {devices} devices with alpha {alpha} make no sense: give both a value > 0."
        )
    source = np.random.default_rng(seed)
    for _ in range(200 if devices * MIN_SHARD <= len(examples.y) else 0):
        owner = np.empty(len(examples.y), np.int64)
        for label in np.unique(examples.y):
            rows = source.permutation(np.flatnonzero(examples.y == label))
            bounds = np.cumsum(source.dirichlet(np.full(devices, alpha)))[:-1]
            for device, part in enumerate(np.split(rows, np.round(bounds * len(rows)).astype(int))):
                owner[part] = device
        if np.bincount(owner, minlength=devices).min() >= MIN_SHARD:
            return [Examples(examples.x[owner == d], examples.y[owner == d]) for d in range(devices)]
    raise UsageError(
        f"{len(examples.y)} examples do not give {devices} devices {MIN_SHARD} each at alpha {alpha}: "
        "use fewer devices or a greater alpha."
    )
