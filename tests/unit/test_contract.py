"""The data contract lets through what it describes, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from umbel_proto.contract import DataContract, Field, Violations
from umbel_proto.errors import ContractError, UsageError

FIELD = Field("x", "float32", (2, 3), -1.0, 5.0, unit="volts")


def test_one_example_becomes_a_batch_of_one() -> None:
    batch, single = FIELD.check(np.ones((2, 3)))
    assert single
    assert batch.shape == (1, 2, 3)
    assert batch.dtype == np.float32


def test_a_batch_stays_a_batch() -> None:
    batch, single = FIELD.check(np.ones((1, 2, 3), np.float32))
    assert not single
    assert batch.shape == (1, 2, 3)


def test_a_right_batch_is_not_copied() -> None:
    values = np.ones((4, 2, 3), np.float32)
    assert FIELD.check(values)[0] is values


def test_lists_and_whole_numbers_are_converted() -> None:
    batch, _ = FIELD.check([[1, 2, 3], [4, 5, 0]])
    np.testing.assert_array_equal(batch[0], np.array([[1, 2, 3], [4, 5, 0]], np.float32))


def test_what_a_mask_hides_is_missing() -> None:
    """Numpy would give what lies behind the mask, as if it had been measured."""
    hidden = np.ma.masked_array(np.ones((2, 3)), mask=[[0, 1, 0], [0, 0, 0]])
    assert FIELD.violations(hidden).missing == 1
    with pytest.raises(ContractError, match="1 missing values"):
        FIELD.check({"x": hidden})
    allowing = Field("x", "float32", (2, 3), -1.0, 5.0, allow_missing=True)
    for kind in (np.float32, np.int64):
        batch, _ = allowing.check(hidden.astype(kind))
        np.testing.assert_array_equal(batch[0], [[1, np.nan, 1], [1, 1, 1]])
    whole = Field("x", "int64", (2, 3), -1, 5)
    with pytest.raises(ContractError, match="give whole numbers"):
        whole.check(hidden.astype(np.int64))
    np.testing.assert_array_equal(FIELD.check(np.ma.masked_array(np.ones((2, 3))))[0], np.ones((1, 2, 3)))


def test_an_input_may_be_given_by_its_name() -> None:
    for values in (np.ones((2, 3)), np.ones((4, 2, 3))):
        batch, single = FIELD.check({"x": values})
        assert (batch.shape[1:], single) == ((2, 3), values.ndim == 2)
    assert FIELD.violations({"x": np.full((2, 3), 9.0)}).above == 6


class NoArray:
    """As a tensor is that wants a gradient."""

    def __array__(self, *_: object, **__: object) -> NDArray[Any]:
        raise RuntimeError("asked for a gradient")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "Input 'x' is all that is taken: give it by that name"),
        ({"y": np.ones((2, 3))}, "Input 'x' is all that is taken"),
        ({"x": np.ones((2, 3)), "y": 1}, "Input 'x' is all that is taken"),
        ({"x": None}, "give numbers"),
        (np.ones((3, 2)), "has shape"),
        (np.ones((0, 2, 3)), "a batch of no example"),
        (NoArray(), r"no array for numpy: .*asked for a gradient"),
        (np.ones((1, 1, 2, 3)), "has shape"),
        ([[1], [1, 2]], "different lengths"),
        (np.array("abc"), "give numbers"),
        (np.ones((2, 3), complex), "give numbers"),
        (np.array([[None] * 3] * 2), "give numbers"),
        (np.full((2, 3), np.nan), "6 missing"),
        (np.full((2, 3), 5.1), "6 over 5"),
        (np.full((2, 3), -np.inf), "6 under -1"),
        (np.full((2, 3), 1e300), "6 over 5"),
    ],
)
def test_what_breaks_the_contract_is_refused_with_the_reason(values: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        FIELD.check(values)


def test_the_range_is_checked_before_the_conversion_could_round_into_it() -> None:
    with pytest.raises(UsageError, match="over 5"):
        FIELD.check(np.full((2, 3), 5.0 + 1e-9))


def test_fractions_are_refused_where_whole_numbers_are_wanted() -> None:
    with pytest.raises(UsageError, match="whole numbers"):
        Field("y", "int64", (1,), 0, 9).check(np.array([1.5]))


def test_a_missing_value_passes_where_it_is_allowed_and_hides_no_other_fault() -> None:
    field = Field("x", "float32", (3,), 0.0, 1.0, allow_missing=True)
    batch, _ = field.check([np.nan, 0.5, 1.0])
    assert np.isnan(batch[0, 0])
    with pytest.raises(UsageError, match="1 over"):
        field.check([np.nan, 0.5, 7.0])


@given(hnp.arrays(np.float64, (3, 2, 3), elements=st.floats(width=64)))
def test_checking_agrees_with_counting(values: np.ndarray) -> None:
    broken = FIELD.violations(values)
    legal = ((values >= -1.0) & (values <= 5.0)).sum()
    assert broken.total == values.size - legal
    if broken.total:
        with pytest.raises(UsageError):
            FIELD.check(values)
    else:
        FIELD.check(values)


def test_violations_are_counted_by_kind() -> None:
    assert FIELD.violations([[np.nan, -2, 9], [9, 0, 1]]) == Violations(missing=1, below=1, above=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("x", "float16", (1,), 0.0, 1.0),
        ("x", "float32", (0,), 0.0, 1.0),
        ("x", "float32", (1,), 1.0, 0.0),
        ("x", "float32", (1,), 0.0, float("nan")),
        ("x", "int64", (1,), 0, 1, True),
    ],
)
def test_a_field_that_makes_no_sense_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(UsageError, match="Field 'x'"):
        Field(*arguments)  # type: ignore[arg-type]


def test_a_contract_with_two_fields_is_checked_field_by_field() -> None:
    two = DataContract((FIELD, Field("z", "float32", (1,), 0.0, 1.0)))
    with pytest.raises(UsageError, match="x, z"):
        two.check(np.ones((2, 3)))
    with pytest.raises(UsageError, match="each of them once"):
        DataContract((FIELD, FIELD))
