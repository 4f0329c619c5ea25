"""What would have to be different for a model of a table to say something else.

Laws: what is found is legal, keeps what is fixed, changes no more columns than allowed and none without need; of a
linear model with one change allowed it is the nearest there is; what cannot be answered is refused or None.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_packages import RELEASE, opened, release
from regression_tasks import diabetes
from umbel._explain.counterfactual import Counterfactual, Variable, distance, search, variables
from umbel._predict.model import Model
from umbel.engines import load_engine
from umbel.train import TrainPlan
from umbel.train.onnx import OnnxTrainer
from umbel_models.pack import build, repack
from umbel_models.task import find
from umbel_proto.errors import UsageError
from umbel_proto.package import Package

COLUMNS = 5


def network(seed: int, classes: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(COLUMNS, 8)), rng.normal(size=(8, classes))
    return lambda rows: (np.tanh(rows.astype(np.float64) @ first) @ second).astype(np.float32)


@st.composite
def tables(draw: st.DrawFn) -> list[Variable]:
    made = []
    for number in range(COLUMNS):
        values = sorted(draw(st.sets(st.integers(-8, 8).map(lambda n: n / 4), min_size=2, max_size=9)))
        spread = draw(st.sampled_from([0.25, 1.0, 3.0]))
        made.append(
            Variable(f"c{number}", tuple(values), spread, draw(st.booleans()), draw(st.integers(0, 3)) == 0)
        )
    return made


@settings(max_examples=60)
@given(tables(), st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 2), st.data())
def test_what_is_found_keeps_every_rule_and_changes_nothing_without_need(
    columns: list[Variable], seed: int, limit: int, target: int, data: st.DataObject
) -> None:
    ask = network(seed)
    x = np.array([data.draw(st.sampled_from(column.candidates)) for column in columns], np.float32)
    found = search(ask, x, target, columns, limit=limit)
    if found is None:
        return
    assert ask(found[None])[0].argmax() == target
    changed = np.flatnonzero(found != x)
    assert len(changed) <= limit
    for number in changed:
        column = columns[number]
        assert not column.fixed
        assert column.candidates[0] <= found[number] <= column.candidates[-1]
        assert not column.enumerated or float(found[number]) in column.candidates
        without = found.copy()
        without[number] = x[number]
        assert ask(without[None])[0].argmax() != target


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_one_change_of_a_linear_model_is_the_nearest_there_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, bias = rng.normal(size=COLUMNS), rng.normal()
    spreads = rng.uniform(0.2, 3, COLUMNS)
    columns = [
        Variable(f"c{number}", tuple(np.linspace(-4, 4, 19).tolist()), float(spreads[number]))
        for number in range(COLUMNS)
    ]

    def ask(rows: NDArray[Any]) -> NDArray[np.float32]:
        score = rows.astype(np.float64) @ weights + bias
        return np.stack([-score, score], axis=1).astype(np.float32)

    x = rng.uniform(-1, 1, COLUMNS).astype(np.float32)
    said = int(ask(x[None])[0].argmax())
    needed = -(x.astype(np.float64) @ weights + bias) / weights
    possible = [
        abs(step) / spread for step, at, spread in zip(needed, x, spreads, strict=True) if abs(at + step) < 4
    ]
    found = search(ask, x, 1 - said, columns, limit=1)
    if not possible:
        assert found is None
        return
    assert found is not None
    assert np.count_nonzero(found != x) == 1
    assert distance(x, found, columns) == pytest.approx(min(possible), rel=0.02, abs=0.02)


def test_where_no_single_change_is_enough_several_are_made() -> None:
    columns = [Variable(f"c{number}", (0.0, 1.0), 1.0, enumerated=True) for number in range(4)]

    def ask(rows: NDArray[Any]) -> NDArray[np.float32]:
        count = rows.sum(1)
        return np.stack([np.full(len(rows), 2.5), count], axis=1).astype(np.float32)

    found = search(ask, np.zeros(4, np.float32), 1, columns, limit=4)
    assert found is not None
    assert found.sum() == 3
    assert search(ask, np.zeros(4, np.float32), 1, columns, limit=2) is None


def test_a_change_that_the_search_began_with_is_taken_back_once_others_suffice() -> None:
    columns = [Variable(name, (0.0, 1.0), 1.0, enumerated=True) for name in "abc"]
    scores = {"": 0, "a": 1.0, "b": 0.5, "c": 0.5, "ab": 2, "ac": 1.9, "bc": 3, "abc": 3}

    def ask(rows: NDArray[Any]) -> NDArray[np.float32]:
        held = ["".join(name for name, value in zip("abc", row, strict=True) if value) for row in rows]
        return np.array([[2.5, scores[each]] for each in held], np.float32)

    found = search(ask, np.zeros(3, np.float32), 1, columns, limit=3)
    assert found is not None
    assert found.tolist() == [0, 1, 1]


def test_a_value_that_was_missing_may_be_given() -> None:
    columns = [Variable("c", (0.0, 1.0), 1.0), Variable("d", (0.0, 1.0), 1.0, fixed=True)]

    def ask(rows: NDArray[Any]) -> NDArray[np.float32]:
        known = ~np.isnan(rows[:, 0])
        return np.stack([~known, known], axis=1).astype(np.float32)

    x = np.array([np.nan, np.nan], np.float32)
    found = search(ask, x, 1, columns)
    assert found is not None
    assert found[0] in (0.0, 1.0)
    assert np.isnan(found[1])
    assert distance(x, found, columns) == 1.0


# --- the breast cancer model


@functools.cache
def trained() -> Package:
    task = find("breast-cancer")
    base = opened(build(task, key=RELEASE, version=1, lineage={}))
    data = task.data()
    plan = TrainPlan(epochs=20, batch_size=32, learning_rate=0.05, momentum=0.9, seed=1)
    learned = OnnxTrainer(base).train(base.parameters(), data.train.x, data.train.y, plan).parameters
    return opened(
        repack(base, learned, calibration=data.calibration.x, version=2, key=RELEASE, lineage={"run": "test"})
    )


def model() -> Model:
    return Model(trained(), load_engine(trained()))


def rows() -> NDArray[np.float32]:
    return find("breast-cancer").data().held_out.x[:20]


def test_a_mass_is_told_apart_by_few_legal_changes_near_to_it() -> None:
    of, columns = model(), variables(trained())
    found = [(x, of.counterfactual(x)) for x in rows()]
    answered = [(x, each) for x, each in found if each is not None]
    assert len(answered) > 0.8 * len(found)
    for x, each in answered:
        said = of.predict_proba(x).argmax()
        assert each.label != said
        probabilities = of.predict_proba(each.values)  # it keeps the contract
        assert probabilities.argmax() == each.label
        assert each.confidence == pytest.approx(probabilities[each.label], abs=1e-6)
        assert 1 <= len(each.changes) <= 5
        assert each.distance == pytest.approx(distance(x, each.values, columns))
        for change in each.changes:
            assert change.before == x[change.column]
            assert change.after == each.values[change.column]
            assert change.name == columns[change.column].name
        rest = [number for number in range(30) if number not in {change.column for change in each.changes}]
        np.testing.assert_array_equal(each.values[rest], x[rest])


def test_what_is_fixed_by_name_or_number_stays() -> None:
    of, x = model(), next(x for x in rows() if model().counterfactual(x) is not None)
    free = of.counterfactual(x)
    assert isinstance(free, Counterfactual)
    held = [change.column for change in free.changes]
    again = of.counterfactual(x, fixed=[variables(trained())[number].name for number in held])
    same = of.counterfactual(x, fixed=held)
    assert again is not None
    assert same is not None
    assert not {change.column for change in again.changes} & set(held)
    assert again.changes == same.changes
    assert of.counterfactual(x, fixed=range(30)) is None


def test_candidates_are_values_of_the_data_within_the_contract() -> None:
    train = find("breast-cancer").data().train.x
    field = trained().manifest.contract.fields[0]
    for number, column in enumerate(variables(trained())):
        of = field.columns[number] if field.columns else field
        assert all(of.minimum <= value <= of.maximum for value in column.candidates)
        assert train[:, number].min() <= column.candidates[0]
        assert column.candidates[-1] <= train[:, number].max()
        assert column.spread > 0


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"target": "unknown"}, "no class 'unknown'"),
        ({"target": 2}, r"0\.\.1"),
        ({"fixed": ["age"]}, "no column 'age'"),
        ({"fixed": "age"}, "fixed is one text, 'age': give a list"),
        ({"fixed": [30]}, "no column '30'"),
        ({"limit": 0}, "limit is 0: give a whole number of columns that may change, 1 or more"),
        ({"limit": 1.5}, r"limit is 1\.5: give a whole number"),
        ({"limit": None}, "limit is None: give a whole number"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        model().counterfactual(rows()[0], **asked)


def test_a_row_alone_and_another_class_are_asked_for() -> None:
    said = int(model().predict_proba(rows()[0]).argmax())
    with pytest.raises(UsageError, match="already"):
        model().counterfactual(rows()[0], target=said)
    with pytest.raises(UsageError, match="one row"):
        model().counterfactual(rows())
    with pytest.raises(UsageError):
        model().counterfactual(np.full(30, -1.0))


def test_images_and_models_of_numbers_have_none() -> None:
    images, numbers = opened(release(2)), diabetes()
    for package, x in ((images, np.zeros((1, 8, 8))), (numbers, np.zeros(10))):
        with pytest.raises(UsageError, match="no rows of a table"):
            Model(package, load_engine(package)).counterfactual(x)
