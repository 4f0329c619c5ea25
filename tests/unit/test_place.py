"""A place takes what the contract passes as it is, and nothing else, whatever the values.

The laws are checked against a comparison of each value by itself, in plain Python, and against the contract's own
check: a place may leave to that what is right, but never take what is not.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from umbel._predict.answer import Estimate, Prediction
from umbel._predict.place import FEW, Saying, asker
from umbel.engines import Seat
from umbel_proto.contract import Column, Field
from umbel_proto.errors import UsageError

SHAPE = (2, 3)
RANGES = (
    (0.0, 16.0),
    (-5.0, 5.0),
    (0.1, 0.3),
    (-3.0, -1.0),
    (0.0, 0.0),
    (0.0, -0.0),
    (-0.0, 1e-42),
    (0.0, 1e39),
    (2.0, 2.0),
)


def place(field: Field) -> tuple[Callable[[object], bool], NDArray[Any]]:
    """Return what tells whether a place answers, and what its engine would have seen."""
    example = np.zeros((1, *field.shape), field.dtype)
    answer = asker(field, Seat(example, np.zeros((1, 1), np.float32), lambda: None), Saying(1))
    return lambda x: answer(x) is not None, example


def ends(low: float, high: float, dtype: str) -> list[float]:
    """Return the values at which a comparison may go wrong."""
    kind = np.dtype(dtype).type
    with np.errstate(over="ignore"):
        near = [kind(low), kind(high)]
    around = [np.nextafter(each, kind(towards)) for each in near for towards in (-np.inf, np.inf)]
    return [float(each) for each in (*near, *around)]


def odd_values(low: float, high: float, dtype: str) -> st.SearchStrategy[float]:
    width = 32 if dtype == "float32" else 64
    special = (0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 3.4e38, -3.4e38)
    return st.one_of(
        st.sampled_from([*ends(low, high, dtype), *special]),
        st.floats(width=width),
        st.floats(-20, 20, width=width),
    )


@settings(max_examples=400, deadline=None)
@given(data=st.data(), bounds=st.sampled_from(RANGES), dtype=st.sampled_from(["float32", "float64"]))
def test_it_takes_no_value_outside_the_range(
    data: st.DataObject, bounds: tuple[float, float], dtype: str
) -> None:
    field = Field("x", dtype, SHAPE, *bounds)
    values = data.draw(st.lists(odd_values(*bounds, dtype), min_size=6, max_size=6))
    x = np.array(values, dtype).reshape(SHAPE)
    take, example = place(field)
    # Bounds are compared in the type of the values, as numpy does.
    with np.errstate(over="ignore"):
        low, high = (float(np.dtype(dtype).type(end)) for end in bounds)
    legal = all(low <= value <= high and math.isfinite(value) for value in x.ravel().tolist())
    taken = take(x)
    assert not taken or legal
    if taken:
        checked, single = field.check(x)
        assert single
        assert checked.tobytes() == example.tobytes()


@pytest.mark.parametrize("bounds", [(0.0, 16.0), (-5.0, 5.0), (0.1, 0.3), (-3.0, -1.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_takes_what_is_within_the_range_ends_included(bounds: tuple[float, float], dtype: str) -> None:
    take, example = place(Field("x", dtype, SHAPE, *bounds))
    for x in (np.linspace(*bounds, 6), np.full(6, bounds[0]), np.full(6, bounds[1])):
        given = x.astype(dtype).reshape(SHAPE)
        assert take(given)
        np.testing.assert_array_equal(example[0], given)


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("uint8", 0, 255), ("uint8", 3, 200), ("int64", -5, 5), ("int32", -0.5, 2.5)]
)
def test_whole_numbers_are_judged_each_by_itself(dtype: str, low: float, high: float) -> None:
    limits = np.iinfo(dtype)
    take, _ = place(Field("x", dtype, (1,), low, high))
    for value in {limits.min, limits.max, *range(max(limits.min, -8), 9), 199, 200, 201, 255}:
        assert take(np.array([value], dtype)) == (low <= value <= high)


def test_each_column_is_held_to_its_own_range() -> None:
    columns = (Column("a", 0.0, 1.0), Column("b", -10.0, 10.0), Column("c", 5.0, 6.0))
    take, _ = place(Field.of_columns("x", "float32", columns, rows=(2,)))
    good = np.array([[0, -10, 5], [1, 10, 6]], np.float32)
    assert take(good)
    for place_of, column in np.ndindex(2, 3):
        for value in (columns[column].minimum - 0.5, columns[column].maximum + 0.5, math.nan):
            bad = good.copy()
            bad[place_of, column] = value
            assert not take(bad)


@pytest.mark.parametrize(
    "field",
    [
        Field.of_columns("x", "float32", (Column("a", 0.0, 2.0, (0.0, 2.0)),)),
        Field("x", "float32", (1,), 0.0, 2.0, max_age_s=5.0),
    ],
)
def test_what_more_than_a_range_must_judge_it_leaves_to_the_contract(field: Field) -> None:
    assert not place(field)[0](np.ones(1, np.float32))


@pytest.mark.parametrize(
    "x",
    [
        [1.0, 1.0, 1.0],
        np.ones((1, 3), np.float32),
        np.ones(4, np.float32),
        np.ones(3),
        np.ones(3, np.uint8),
        np.ones(3, ">f4"),
        np.ones(3, np.float32).view(np.recarray),
        None,
        {"x": 1},
    ],
)
def test_another_form_it_leaves_alone(x: object) -> None:
    take, example = place(Field("x", "float32", (3,), 0.0, 2.0))
    assert not take(x)
    assert not example.any()


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_an_array_that_came_from_another_process_is_taken_as_one_that_was_made_here(dtype: str) -> None:
    take, example = place(Field("x", dtype, (3,), 0.0, 16.0))
    x = pickle.loads(pickle.dumps(np.array([1, 2, 16], dtype)))
    assert x.dtype is not np.dtype(dtype)
    assert take(x)
    np.testing.assert_array_equal(example[0], [1, 2, 16])


def test_the_order_of_an_arrays_memory_does_not_matter() -> None:
    take, example = place(Field("x", "float32", (4, 3), 0.0, 16.0))
    x = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert take(x)
    np.testing.assert_array_equal(example[0], x)
    assert take(np.arange(24, dtype=np.float32)[::2].reshape(4, 3)[::-1] / 2)


@pytest.mark.parametrize("classes", [2, FEW, FEW + 1, 100])
def test_it_says_the_first_of_the_likeliest_classes_and_asks_for_a_review_below_that_class_s_threshold(
    classes: int,
) -> None:
    rng = np.random.default_rng(classes)
    answer = np.zeros((1, classes), np.float32)
    labels = [f"class {number}" for number in range(classes)]
    thresholds = (rng.integers(5, 9, classes) / 8).tolist()
    field = Field("x", "float32", (3,), 0.0, 2.0)
    ask = asker(
        field, Seat(np.zeros((1, 3), np.float32), answer, lambda: None), Saying(7, labels, thresholds)
    )
    decisions = set()
    for scores in rng.integers(0, 8, (40, classes)):
        answer[0] = scores / np.float32(8)
        said = ask(np.ones(3, np.float32))
        assert isinstance(said, Prediction)
        best = next(number for number, score in enumerate(answer[0]) if score == max(answer[0]))
        assert (said.label, said.name, said.model_version) == (best, labels[best], 7)
        assert said.confidence == answer[0, best]
        assert type(said.confidence) is float
        assert type(said.label) is int
        assert said.decision == ("automatic" if said.confidence >= thresholds[best] else "review")
        np.testing.assert_array_equal(said.probabilities, answer[0])
        decisions.add(said.decision)
        answer[0] = 0  # The next answer is written over the engine's memory, not over what was said.
        assert said.probabilities.max() == said.confidence
    assert decisions == {"automatic", "review"}


def test_without_labels_it_gives_the_numbers_as_they_are() -> None:
    answer = np.array([[[1.5, -2.0]]], np.float32)
    field = Field("x", "float32", (3,), 0.0, 2.0)
    said = asker(field, Seat(np.zeros((1, 3), np.float32), answer, lambda: None), Saying(7))(
        np.ones(3, np.float32)
    )
    assert isinstance(said, Estimate)
    answer[...] = 0
    np.testing.assert_array_equal(said.values, np.array([[1.5, -2.0]], np.float32))
    assert said.model_version == 7


def test_what_it_leaves_the_contract_still_refuses_in_a_sentence() -> None:
    field = Field("x", "float32", (2,), 0.0, 16.0)
    x = np.array([1.0, math.nan], np.float32)
    assert not place(field)[0](x)
    with pytest.raises(UsageError, match="missing"):
        field.check(x)
