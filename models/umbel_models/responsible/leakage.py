"""What held-out data already knew: duplicates, shared sources, and inputs that are the label in disguise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestNeighbors
from sklearn.tree import DecisionTreeClassifier

from umbel_models.responsible.figures import Figures
from umbel_models.task import Examples, Split

# A held-out example is a near duplicate if it lies this many times closer to a training example than
# training examples usually lie to each other.
NEAR = 0.1
# How much of the way from guessing to certainty one input alone may lead before it is suspect.
TELLING = 0.9
_ROWS = 1000  # Enough to tell a feature that knows the label, and quick for a thousand features.


@dataclass(frozen=True, slots=True)
class Leaks:
    """What was found. None of it proves a leak, and each deserves a look.

    Args:
        exact: Examples of held-out and calibration data whose input is also in another part.
        near: Held-out and calibration examples nearly equal to a training example.
        contradictions: Training examples whose input appears with another label as well.
        sources: Sources with examples in training and in another part; None where sources are not told.
        telling: Inputs that tell the label alone, by number, with how well: 0 guesses, 1 knows.
    """

    exact: int
    near: int
    contradictions: int
    sources: int | None
    telling: Mapping[int, float]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.exact or self.near or self.contradictions or self.sources or self.telling)

    def figures(self, names: Sequence[str] = ()) -> Figures:
        """Return the section of the card; ``names`` are the inputs'."""
        told = ", ".join(
            f"{names[each] if each < len(names) else f'input {each}'} ({score:.2f})"
            for each, score in self.telling.items()
        )
        return {
            "exact duplicates across parts": self.exact,
            "near duplicates of training examples": self.near,
            "training inputs with two labels": self.contradictions,
            "sources in several parts": "not told" if self.sources is None else self.sources,
            "inputs that tell the label alone": told or "none",
        }


def leakage(parts: Split) -> Leaks:
    """Look for what training and held-out data share, and for inputs that give the label away."""
    others = (parts.held_out, parts.calibration)
    seen = [{row.tobytes() for row in _rows(part)} for part in parts]
    exact = sum(
        any(row.tobytes() in known for known in seen[:number])
        for number, part in enumerate(parts)
        if number
        for row in _rows(part)
    )
    return Leaks(
        exact=exact,
        near=sum(int(near_duplicates(parts.train, part).sum()) for part in others),
        contradictions=_contradictions(parts.train),
        sources=_shared_sources(parts),
        telling=telling(parts.train, parts.held_out),
    )


def near_duplicates(train: Examples, other: Examples) -> NDArray[np.bool_]:
    """Return which of the other examples are nearly, not exactly, equal to a training example, shape (n,).

    Features are scaled to the training data's spread; distances are Euclidean.
    """
    rows = _rows(train).astype(np.float64)
    spread = rows.std(0)
    kept = spread > 0
    known, asked = (part[:, kept] / spread[kept] for part in (rows, _rows(other).astype(np.float64)))
    # float64 throughout: a distance of almost equal rows is a difference of rounding errors otherwise.
    index = NearestNeighbors(n_neighbors=2, algorithm="brute" if known.shape[1] > 10 else "kd_tree").fit(
        known
    )
    between = index.kneighbors(known)[0][:, 1]
    distance, nearest = index.kneighbors(asked, n_neighbors=1)
    exactly = (rows[nearest[:, 0]] == _rows(other)).all(1)
    usual = np.median(between[between > 0]) if (between > 0).any() else 0.0
    found: NDArray[np.bool_] = (distance[:, 0] < NEAR * usual) & ~exactly
    return found


def telling(train: Examples, held_out: Examples) -> dict[int, float]:
    """Return the inputs that alone tell held-out labels almost surely, with how well.

    Each is given to a small decision tree of its own, and judged by balanced accuracy, from 0 for guessing
    to 1 for certainty: such an input is often recorded after the label, or made from it.
    """
    labels = len(np.unique(train.y))
    if labels < 2:
        return {}
    rng = np.random.default_rng(0)
    (x, y), (asked, truth) = (
        (_rows(part)[rows], part.y[rows])
        for part in (train, held_out)
        for rows in [rng.permutation(len(part.y))[:_ROWS]]
    )
    found: dict[int, float] = {}
    for each in np.flatnonzero(x.std(0) > 0):
        tree = DecisionTreeClassifier(max_leaf_nodes=2 * labels, class_weight="balanced", random_state=0)
        decided = tree.fit(x[:, [each]], y).predict(asked[:, [each]])
        known = np.isin(truth, tree.classes_)
        score = (balanced_accuracy_score(truth[known], decided[known]) - 1 / labels) / (1 - 1 / labels)
        if score >= TELLING:
            found[int(each)] = float(score)
    return found


def before_the_last(train_time: NDArray[np.floating], other_time: NDArray[np.floating]) -> float:
    """Return the share of other examples measured before the last training example, in [0, 1].

    Where a model will meet only the future, anything but 0 means that it was tested on the past it learned.
    """
    return float((other_time < train_time.max()).mean())


def ahead(
    series: NDArray[np.floating], target: NDArray[np.floating], *, horizon: int, margin: float = 0.1
) -> dict[int, int]:
    """Return the columns that follow the target's future more than its past and present, with how many steps.

    Such a column is a gifted forecast, or was written after the fact.

    Args:
        series: Measurements in the order of time, shape (n, columns).
        target: What is to be predicted, at the same times, shape (n,).
        horizon: How many steps to look forward and back, < n.
        margin: How much greater the correlation with the future must be.
    """
    found: dict[int, int] = {}
    for column in range(series.shape[1]):
        strength = {lag: _correlation(series[:, column], target, lag) for lag in range(-horizon, horizon + 1)}
        best = max(range(1, horizon + 1), key=strength.__getitem__)
        if strength[best] > max(strength[lag] for lag in range(-horizon, 1)) + margin:
            found[column] = best
    return found


def _correlation(values: NDArray[np.floating], target: NDArray[np.floating], lag: int) -> float:
    # Of values now with the target lag steps later.
    count = len(values) - abs(lag)
    now = values[:count] if lag >= 0 else values[-lag:]
    then = target[lag:] if lag >= 0 else target[:count]
    if now.std() == 0 or then.std() == 0:
        return 0.0
    return abs(float(np.corrcoef(now, then)[0, 1]))


def _contradictions(examples: Examples) -> int:
    labels: dict[bytes, set[int]] = {}
    keys = [row.tobytes() for row in _rows(examples)]
    for key, label in zip(keys, examples.y, strict=True):
        labels.setdefault(key, set()).add(int(label))
    return sum(len(labels[key]) > 1 for key in keys)


def _shared_sources(parts: Split) -> int | None:
    if any(part.source is None for part in parts):
        return None
    train, held_out, calibration = (set(part.source.tolist()) for part in parts if part.source is not None)
    return len(train & (held_out | calibration))


def _rows(examples: Examples) -> NDArray[np.float32]:
    return np.ascontiguousarray(examples.x.reshape(len(examples.x), -1))
