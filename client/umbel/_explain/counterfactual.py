"""What would have to be different for a model of a table to say something else: few columns, near values, all legal.

A greedy search that only asks the model. Each step tries, for every column that may change, every candidate value;
where one of them reaches the class that is asked for, the nearest is taken, else the one that raises this class most
over the others. Then every change that is not needed is taken back, and each that stays is drawn towards the old value
as far as the class holds. Distance is the sum of the changes, each over its column's spread, as Wachter et al. measure
it. Columns whose values the package's baseline tells take values that occur in the data: what nobody has is no advice.

Source:
    Wachter, Mittelstadt, Russell, "Counterfactual Explanations without Opening the Black Box", Harvard JOLT 31, 2018
    (arXiv:1711.00399v3), equations 3 and 4: the distance. Martens, Provost, "Explaining Data-Driven Document
    Classifications", MIS Quarterly 38, 2014: the greedy search. Mothilal, Sharma, Tan, "Explaining Machine Learning
    Classifiers through Diverse Counterfactual Explanations", FAT* 2020 (arXiv:1905.07697v2), section 3.3: taking
    changes back until the class is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from umbel._explain.explain import one_for_each
from umbel._telemetry.baseline import baseline_edges
from umbel_proto.contract import Column, Field
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CLASSIFICATION
from umbel_proto.package import Package

if TYPE_CHECKING:
    from umbel._predict.loaded import Loaded

CANDIDATES = 19
"""Values tried for a column of which only the range is known."""
MAX_CHANGES = 5
_HALVINGS = 10
_BATCH = 256
_LOGITS = "logits"
_FEATURE = "feature."  # The baseline's histograms of columns are called so, with the column's number.

Ask = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Scores of a batch of rows, shape (n, classes); the greatest is the class."""


@dataclass(frozen=True, slots=True)
class Variable:
    """What one value of a table's row may be.

    Args:
        name: What it is called.
        candidates: Values to try; all of them, and unless it is enumerated everything between, are legal.
        spread: What a change is measured by, > 0.
        enumerated: Whether nothing between the candidates is legal.
        fixed: Whether it may not change.
    """

    name: str
    candidates: tuple[float, ...]
    spread: float
    enumerated: bool = False
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One value that would have to be different.

    Args:
        column: Its number in the row.
        name: What the column is called.
        before: The value that was given.
        after: The value that would make the difference.
    """

    column: int
    name: str
    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class Counterfactual:
    """A row near to one that was given, of which the model says something else. It stays on the device.

    It says what the model would answer, not what would happen: a model knows no causes.

    Args:
        changes: What is different, in the order of the columns.
        label: The class the model then gives.
        confidence: Its probability, in [0, 1].
        distance: Sum of the changes, each over its column's spread.
        values: The whole row, shape (columns,).
    """

    changes: tuple[Change, ...]
    label: int
    confidence: float
    distance: float
    values: NDArray[Any] = field(repr=False)


def counterfactual(
    loaded: Loaded, x: object, target: int | str | None, fixed: Sequence[int | str], limit: int
) -> Counterfactual | None:
    """See ``Model.counterfactual``."""
    manifest, engine = loaded.package.manifest, loaded.engine
    columns = variables(loaded.package, fixed)
    batch, single = manifest.contract.check(x)
    if not single:
        raise UsageError("A counterfactual is searched for one row: ask for each by itself.")
    if not (isinstance(limit, int | np.integer) and limit >= 1):
        raise UsageError(
            f"limit is {limit!r:.40}: give a whole number of columns that may change, 1 or more."
        )
    scores = engine.outputs(batch)[_LOGITS][0]
    said = int(scores.argmax())
    if target is None:
        wanted = int(np.argsort(scores)[-2])
    else:
        wanted = int(one_for_each(manifest.labels, target, 1, len(manifest.labels))[0])
    if wanted == said:
        raise UsageError(f"The model says {manifest.labels[said]!r} already: ask for another class.")
    found = search(lambda rows: engine.outputs(rows)[_LOGITS], batch[0], wanted, columns, limit=limit)
    if found is None:
        return None
    before, after = batch[0].tolist(), found.tolist()
    changes = tuple(
        Change(number, columns[number].name, float(before[number]), float(after[number]))
        for number in np.flatnonzero(_differs(found, batch[0])).tolist()
    )
    confidence = float(engine.answers(found[np.newaxis])[0][wanted])
    return Counterfactual(changes, wanted, confidence, distance(batch[0], found, columns), found)


def variables(package: Package, fixed: Sequence[int | str] = ()) -> list[Variable]:
    """Return what each value of a model's row may be: as the contract says, and as the data was where it is told.

    Args:
        package: The model's.
        fixed: Columns that may not change, by name or number.

    Raises:
        UsageError: The model does not classify rows of a table, or there is no such column.
    """
    manifest = package.manifest
    only = manifest.contract.fields[0]
    if len(manifest.contract.fields) != 1 or len(only.shape) != 1 or manifest.kind != CLASSIFICATION:
        raise UsageError(f"Model {manifest.model} classifies no rows of a table: explain it instead.")
    count = only.shape[0]
    names = [column.name for column in only.columns] or [f"column {number}" for number in range(count)]
    if isinstance(fixed, str):  # Every letter of it would be a column.
        raise UsageError(f"fixed is one text, {fixed[:40]!r}: give a list of columns.")
    held = {names.index(each) if each in names else each for each in fixed}
    unknown = [each for each in held if not isinstance(each, int) or not 0 <= each < count]
    if unknown:
        raise UsageError(
            f"There is no column {str(unknown[0])[:80]!r} to keep: name one, or give its number."
        )
    told = _twentieths(package)
    return [
        _variable(
            name, (only.columns[number] if only.columns else only), told.get(number, ()), number in held
        )
        for number, name in enumerate(names)
    ]


def _variable(name: str, of: Field | Column, told: Sequence[float], fixed: bool) -> Variable:
    values = of.values if isinstance(of, Column) else ()
    seen = [value for value in told if of.minimum <= value <= of.maximum]
    spread = float(np.median(np.abs(np.array(seen) - np.median(seen)))) if seen else 0.0
    candidates = values or tuple(seen) or tuple(np.linspace(of.minimum, of.maximum, CANDIDATES).tolist())
    # A column that hardly varies is measured by its range.
    return Variable(name, candidates, spread or (of.maximum - of.minimum) / 4 or 1.0, bool(values), fixed)


def _twentieths(package: Package) -> dict[int, tuple[float, ...]]:
    """Return the values that divide each column's data into twentieths, where the package's baseline has them."""
    return {
        int(name.removeprefix(_FEATURE)): edges
        for name, edges in baseline_edges(package).items()
        if name.startswith(_FEATURE)
    }


def search(
    ask: Ask, x: NDArray[Any], target: int, columns: Sequence[Variable], *, limit: int = MAX_CHANGES
) -> NDArray[Any] | None:
    """Return a row near ``x`` of which the model says ``target``, or None where the search finds none.

    Args:
        ask: The model.
        x: The row, shape (columns,), which keeps the contract.
        target: The class to reach.
        columns: What each value may be.
        limit: Most columns that may change, >= 1.
    """
    current = x.copy()
    for _ in range(limit):
        if _says(ask, current[np.newaxis], target)[0]:
            break
        changed = _one_changed(current, columns)
        if not len(changed):
            return None
        said = _asked(ask, changed)
        reached = changed[said.argmax(axis=1) == target]
        if len(reached):
            # Near enough in one column may be nearer in another, once each is drawn towards the old value.
            drawn = [
                _nearer(ask, x, row, target, columns) for row in _nearest_each(x, reached, current, columns)
            ]
            current = min(drawn, key=lambda row: distance(x, row, columns))
            break
        current = changed[int(_margin(said, target).argmax())]
    if not _says(ask, current[np.newaxis], target)[0]:
        return None
    sparse = _sparser(ask, x, current, target, columns)
    return _sparser(ask, x, _nearer(ask, x, sparse, target, columns), target, columns)


def distance(x: NDArray[Any], other: NDArray[Any], columns: Sequence[Variable]) -> float:
    """Return how far two rows are apart: the sum of the differences, each over its column's spread."""
    apart = np.abs(other.astype(np.float64) - x.astype(np.float64))
    gaps = [gap / column.spread for gap, column in zip(apart.tolist(), columns, strict=True)]
    # A value that was missing is as far from any other as one spread.
    return sum(
        gap if gap == gap else 1.0 for gap, moved in zip(gaps, _differs(x, other), strict=True) if moved
    )


def _differs(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    differs: NDArray[np.bool_] = (one != other) & ~((one != one) & (other != other))
    return differs


def _one_changed(row: NDArray[Any], columns: Sequence[Variable]) -> NDArray[Any]:
    """Return copies of a row, shape (n, columns), each with one column at another candidate."""
    places = [
        (number, value)
        for number, column in enumerate(columns)
        if not column.fixed
        for value in column.candidates
        if row.dtype.type(value) != row[number]
    ]
    copies = np.repeat(row[np.newaxis], len(places), axis=0)
    for copy, (number, value) in zip(copies, places, strict=True):
        copy[number] = value
    return copies


def _nearest_each(
    x: NDArray[Any], reached: NDArray[Any], current: NDArray[Any], columns: Sequence[Variable]
) -> list[NDArray[Any]]:
    """Return, of rows that each differ from ``current`` in one column, the nearest to ``x`` of every column."""
    nearest: dict[int, NDArray[Any]] = {}
    for row in reached:
        number = int(np.flatnonzero(_differs(row, current))[0])
        if number not in nearest or distance(x, row, columns) < distance(x, nearest[number], columns):
            nearest[number] = row
    return list(nearest.values())


def _sparser(
    ask: Ask, x: NDArray[Any], found: NDArray[Any], target: int, columns: Sequence[Variable]
) -> NDArray[Any]:
    """Take back every change without which the class is still reached, those that cost most first."""
    row = found.copy()
    while True:
        changed = np.flatnonzero(_differs(row, x))
        if len(changed) < 2:
            return row
        without = np.repeat(row[np.newaxis], len(changed), axis=0)
        for copy, number in zip(without, changed, strict=True):
            copy[number] = x[number]
        left = [each for each, reached in zip(without, _says(ask, without, target), strict=True) if reached]
        if not left:
            return row
        row = min(left, key=lambda each: distance(x, each, columns))


def _nearer(
    ask: Ask, x: NDArray[Any], found: NDArray[Any], target: int, columns: Sequence[Variable]
) -> NDArray[Any]:
    """Draw each change towards the old value as far as the class holds, by halving; through what is legal only."""
    row = found.copy()
    for number in np.flatnonzero(_differs(row, x)).tolist():
        column = columns[number]
        if column.enumerated:
            low, high = sorted((float(x[number]), float(row[number])))
            between = [value for value in column.candidates if low < value < high]
            tries = sorted(between, key=lambda value: abs(value - float(x[number])))
            for value in tries:
                if _with(ask, row, number, value, target):
                    row[number] = value
                    break
            continue
        near, far = float(x[number]), float(row[number])
        if near != near:  # it was missing: nothing lies between
            continue
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            if _with(ask, row, number, middle, target):
                far = middle
            else:
                near = middle
        row[number] = far
    return row


def _with(ask: Ask, row: NDArray[Any], number: int, value: float, target: int) -> bool:
    tried = row.copy()
    tried[number] = value
    return bool(_says(ask, tried[np.newaxis], target)[0])


def _says(ask: Ask, rows: NDArray[Any], target: int) -> NDArray[np.bool_]:
    said: NDArray[np.bool_] = _asked(ask, rows).argmax(axis=1) == target
    return said


def _asked(ask: Ask, rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.concatenate([ask(rows[begin : begin + _BATCH]) for begin in range(0, len(rows), _BATCH)])


def _margin(said: NDArray[np.float32], target: int) -> NDArray[np.float32]:
    others = np.delete(said, target, axis=1).max(axis=1)
    margin: NDArray[np.float32] = said[:, target] - others
    return margin
