"""Columns of a contract: each value is judged by its own column's rule, and what is wrong is refused, clipped or flagged.

Law: the compiled checks say of every batch what a loop over its values says, one value at a time.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from umbel_proto.contract import Column, Field
from umbel_proto.errors import ContractError, UsageError

AGE = Column("age", 0.0, 120.0, unit="years", action="reject")
CHANCE = Column("chance", 0.7, 1.1, action="clip")  # Both ends lie outside of themselves in float32.
GRADE = Column("grade", 1.0, 6.0, values=(1.0, 2.0, 3.0, 6.0), action="clip")
PULSE = Column("pulse", -3.0, 3.0, allow_missing=True, action="flag")
CODE = Column("code", 0.0, 9.0, values=(0.0, 5.0, 9.0), action="reject")
FIELD = Field.of_columns("x", "float32", (AGE, CHANCE, GRADE, PULSE, CODE))
GOOD = (30.0, 0.9, 2.0, 0.0, 5.0)

KINDS = ("missing", "below", "above", "unknown")


def judged(field: Field, value: Any, column: Column) -> tuple[str, Any, str]:
    """The oracle: what is wrong with one value, what the graph sees, and what becomes of the example."""
    own, graph = value.dtype.type, np.dtype(field.dtype).type
    low, high = (end if own is np.int64 else own(end) for end in (column.minimum, column.maximum))
    if own is not np.int64 and math.isnan(value):
        return ("", graph(value), "") if column.allow_missing else ("missing", None, "reject")
    kind = "below" if value < low else "above" if value > high else ""
    with np.errstate(over="ignore"):
        seen = graph(value)
    known = [graph(each) for each in column.values]
    if not kind and known and seen not in known:
        kind = "unknown"
    if kind and column.action == "clip":
        if kind == "unknown":
            return kind, min(known, key=lambda each: (abs(float(each) - float(seen)), each)), "clip"
        return kind, graph(column.minimum if kind == "below" else column.maximum), "clip"
    if kind and column.action == "flag" and (not np.isfinite(seen) or abs(value) > np.finfo("f4").max):
        return kind, None, "reject"
    return kind, seen, column.action if kind else ""


def expected(field: Field, batch: NDArray[Any]) -> tuple[Counter[str], list[Any], list[bool], bool]:
    counts: Counter[str] = Counter()
    values, flags, refused = [], [], False
    for row in batch.reshape(len(batch), -1):
        done = [judged(field, value, field.columns[i % len(field.columns)]) for i, value in enumerate(row)]
        for i, (kind, _, _) in enumerate(done):
            counts[f"{field.columns[i % len(field.columns)].name}.{kind}"] += bool(kind)
        values.append([seen for _, seen, _ in done])
        flags.append(any(action == "flag" for _, _, action in done))
        refused = refused or any(action == "reject" for _, _, action in done)
    return +counts, values, flags, refused


def around(column: Column) -> st.SearchStrategy[float]:
    ends = [column.minimum, column.maximum, *column.values]
    near = [float(np.nextafter(np.float32(end), np.float32(to))) for end in ends for to in (-np.inf, np.inf)]
    near += [float(np.nextafter(end, to)) for end in ends for to in (-np.inf, np.inf)]
    odd = [math.nan, math.inf, -math.inf, -0.0, 1e300, -1e300, 4.5, 1.5]
    return st.sampled_from([*ends, *ends, *near, *odd]) | st.floats(column.minimum, column.maximum)


ROWS = st.lists(
    st.tuples(*(st.just(good) | around(c) for good, c in zip(GOOD, FIELD.columns, strict=True))),
    min_size=1,
    max_size=4,
)


@given(ROWS, st.sampled_from(["f4", "f8"]))
def test_a_batch_is_judged_as_each_of_its_values_would_be(rows: list[Any], dtype: str) -> None:
    with np.errstate(over="ignore"):
        batch = np.array(rows, np.float64).astype(dtype)
    _agrees(FIELD, batch)


@given(
    st.lists(st.lists(st.integers(-(2**40), 2**40) | st.integers(-2, 10), min_size=5, max_size=5), min_size=1)
)
def test_whole_numbers_are_judged_as_they_are(rows: list[list[int]]) -> None:
    _agrees(FIELD, np.array(rows, np.int64))


@given(ROWS)
def test_in_a_series_the_last_axis_holds_the_columns(rows: list[Any]) -> None:
    series = Field.of_columns("x", "float32", FIELD.columns, rows=(2,))
    with np.errstate(over="ignore"):
        batch = np.array([[row, GOOD] for row in rows], np.float64).astype("f4")
    _agrees(series, batch)


def _agrees(field: Field, batch: NDArray[Any]) -> None:
    before = batch.copy()
    counts, values, flags, refused = expected(field, batch)
    broken = field.violations(batch)
    assert [getattr(broken, kind) for kind in KINDS] == [
        sum(count for name, count in counts.items() if name.endswith(kind)) for kind in KINDS
    ]
    if refused:
        with pytest.raises(ContractError) as caught:
            field.examine(batch)
        assert caught.value.counts == counts
        with pytest.raises(ContractError):
            field.check(batch)
        return
    ready, single, breach = field.examine(batch)
    assert (ready.dtype, ready.shape, single) == (np.dtype(field.dtype), batch.shape, False)
    assert ready.flags.c_contiguous
    np.testing.assert_array_equal(ready.reshape(len(batch), -1), np.array(values, field.dtype))
    np.testing.assert_array_equal(field.check(batch)[0], ready)
    if breach is None:
        assert not counts
        assert not any(flags)
    else:
        assert breach.counts == counts
        assert breach.flagged.tolist() == flags
    np.testing.assert_array_equal(batch, before)  # What the app gave stays as it was.


@given(st.lists(st.integers(-300, 600), min_size=1, max_size=6), st.sampled_from(["clip", "flag"]))
def test_bytes_never_wrap_around(values: list[int], action: str) -> None:
    field = Field("x", "uint8", (), 10.0, 200.0, action=action)
    if action == "flag" and any(not 0 <= value <= 255 for value in values):
        with pytest.raises(ContractError):
            field.check(np.array(values))
        return
    ready, _ = field.check(np.array(values))
    wanted = [min(max(value, 10), 200) if action == "clip" else value for value in values]
    assert (ready.dtype, ready.tolist()) == (np.uint8, wanted)


@pytest.mark.parametrize("action", ["reject", "clip", "flag"])
def test_a_missing_value_is_refused_whatever_the_action(action: str) -> None:
    columns = [Column("a", 0.0, 1.0, action=action), Column("b", 0.0, 1.0, allow_missing=True, action=action)]
    field = Field.of_columns("x", "float32", columns)
    assert np.isnan(field.check([0.5, math.nan])[0][0, 1])
    with pytest.raises(ContractError) as caught:
        field.check([math.nan, math.nan])
    assert caught.value.counts == {"a.missing": 1}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_ends_of_a_range_are_in_it_in_every_type_of_floats(dtype: str) -> None:
    ends = np.array([[*GOOD[:1], end, *GOOD[2:]] for end in (CHANCE.minimum, CHANCE.maximum)], dtype)
    assert FIELD.violations(ends).total == 0
    ends[0, 0] = -1.0  # What is wrong elsewhere makes no difference.
    assert FIELD.violations(ends).total == 1


def test_one_range_may_clip_or_flag_as_well() -> None:
    clipped = Field("x", "float32", (2,), 0.0, 1.0, action="clip")
    assert clipped.check([-4.0, math.inf])[0].tolist() == [[0.0, 1.0]]
    flagged = Field("x", "float32", (2,), 0.0, 1.0, action="flag")
    ready, single, breach = flagged.examine(np.array([[0.5, 0.5], [0.5, 7.0]]))
    assert not single
    assert ready[1].tolist() == [0.5, 7.0]
    assert breach is not None
    assert (breach.counts, breach.flagged.tolist()) == ({"x.above": 1}, [False, True])


def test_a_right_batch_is_not_copied() -> None:
    batch = np.array([GOOD] * 3, np.float32)
    assert FIELD.check(batch)[0] is batch


class Frame:
    """A table as pandas and polars have them: asked for a list of names it gives those columns."""

    AXIS = "columns"

    def __init__(self, names: Any, rows: Any) -> None:
        self._names, self._rows = names, np.asarray(rows)
        setattr(self, self.AXIS, names)

    def __getitem__(self, names: list[str]) -> Frame:
        order = [list(self._names).index(name) for name in names]
        return type(self)(names, self._rows[..., order])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._rows


class Line(Frame):
    """A row of one, as pandas has it."""

    AXIS = "index"


NAMES = [column.name for column in FIELD.columns]


@pytest.mark.parametrize("kind", [Frame, Line])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 2, 4, 3]])
@pytest.mark.parametrize("rows", [GOOD, [GOOD, (31.0, *GOOD[1:])]])
def test_a_table_with_the_contracts_names_is_taken_by_them_in_whatever_order(
    order: list[int], rows: Any, kind: type[Frame]
) -> None:
    right = np.array(rows)
    table = kind(np.array(NAMES)[order], right[..., order])
    for values in (table, {FIELD.name: table}):
        np.testing.assert_array_equal(FIELD.check(values)[0], FIELD.check(right)[0])


@pytest.mark.parametrize("kind", [Frame, Line])
@pytest.mark.parametrize(
    "names",
    [
        range(5),
        [*NAMES[:0:-1], "other"],
        NAMES[:0:-1],
        [*NAMES[:0:-1], NAMES[1]],
        [[1], *NAMES[1:]],
        None,
        len,
    ],
)
def test_a_table_with_other_names_is_taken_by_place(names: Any, kind: type[Frame]) -> None:
    np.testing.assert_array_equal(FIELD.check(kind(names, GOOD))[0], FIELD.check(GOOD)[0])


def test_the_sentence_names_the_column_and_no_value() -> None:
    with pytest.raises(
        ContractError, match=r"column 'age'.* 1 above: give values in 0\.\.120 years"
    ) as caught:
        FIELD.check([131.25, *GOOD[1:]])
    assert "131" not in str(caught.value)
    with pytest.raises(ContractError, match=r"1 missing .1 other columns .*0..120"):
        FIELD.check([math.nan, *GOOD[1:4], 4.0])
    with pytest.raises(ContractError, match="give one of 0, 5, 9"):
        FIELD.check([*GOOD[:4], 4.0])


@pytest.mark.parametrize("values", [np.ones((3, 2)), "abc", [[1], [1, 2]]])
def test_what_has_another_form_is_counted_as_such(values: object) -> None:
    with pytest.raises(ContractError) as caught:
        Field("Input 1:0", "float32", (5,), 0.0, 1.0).check(values)
    assert caught.value.counts == {"input-1-0.form": 1}


def test_an_old_example_is_refused_or_flagged_and_so_is_one_of_the_future() -> None:
    strict = Field("x", "float32", (2,), 0.0, 1.0, max_age_s=5.0)
    assert strict.examine_age(100.0, 105.0, 3) is None
    assert strict.examine_age(105.0, 100.0, 3) is None
    for at_s, word in ((94.0, "6 s old"), (106.0, "ahead of this device's clock")):
        with pytest.raises(ContractError, match=word) as caught:
            strict.examine_age(at_s, 100.0, 3)
        assert caught.value.counts == {"x.stale": 3}
    for no_time in ("yesterday", [100.0], datetime.datetime.now(datetime.UTC)):
        with pytest.raises(ContractError, match="is no time: give Unix seconds"):
            strict.examine_age(no_time, 100.0, 3)  # type: ignore[arg-type]
    for nothing in (None, math.nan, math.inf):
        with pytest.raises(ContractError, match="say when it was measured"):
            strict.examine_age(nothing, 100.0, 3)
    breach = Field("x", "float32", (2,), 0.0, 1.0, max_age_s=5.0, stale="flag").examine_age(90.0, 100.0, 3)
    assert breach is not None
    assert (breach.counts, breach.flagged.tolist()) == ({"x.stale": 3}, [True] * 3)
    assert FIELD.examine_age(None, 100.0, 1) is None


@pytest.mark.parametrize(
    "column",
    [
        ("Age", 0.0, 1.0),
        ("a" * 41, 0.0, 1.0),
        ("a", 1.0, 0.0),
        ("a", 0.0, math.inf),
        ("a", 0.0, 1.0, (1.0, 0.0)),
        ("a", 0.0, 1.0, (0.0, 0.0, 1.0)),
        ("a", 0.0, 1.0, (0.0, 0.5)),
        ("a", 0.0, 1.0, (math.nan,)),
        ("a", 0.0, 2000.0, tuple(map(float, range(2001)))),
        ("a", 0.0, 1.0, (), False, "", "ignore"),
    ],
)
def test_a_column_that_makes_no_sense_is_refused(column: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match="Column"):
        Column(*column)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": (AGE,)},
        {"columns": (AGE, AGE)},
        {"columns": (AGE, CHANCE), "minimum": 1.0},
        {"columns": (AGE, CHANCE), "action": "clip"},
        {"columns": (AGE, CHANCE), "allow_missing": True},
        {"columns": (AGE, CHANCE), "shape": ()},
        {"action": "drop"},
        {"dtype": "uint8", "action": "clip", "maximum": 300.0},
        {"dtype": "int64", "action": "clip", "maximum": 0.5},
        {"action": "flag", "maximum": 1e39},
        {"max_age_s": -1.0},
        {"max_age_s": math.inf},
        {"stale": "clip"},
    ],
)
def test_a_field_whose_parts_do_not_fit_is_refused(change: dict[str, Any]) -> None:
    whole = {"name": "x", "dtype": "float32", "shape": (2,), "minimum": 0.0, "maximum": 120.0}
    Field(**whole, columns=(AGE, CHANCE))
    with pytest.raises(UsageError, match="Field 'x'"):
        Field(**(whole | change))
