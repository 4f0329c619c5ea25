"""Tables of the device's commands: what they show, and that they fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from umbel._commands.table import GAP, NARROWEST, Table

WORDS = some.lists(some.text("abcde\u00e9\u6f22-.", min_size=1, max_size=30), max_size=8)
CELLS = WORDS.map(" ".join)
ROWS = some.integers(1, 5).flatmap(
    lambda columns: some.lists(some.tuples(*[CELLS] * columns), min_size=1, max_size=6)
)


def table(rows: list[tuple[str, ...]], *, title: str = "", head: tuple[str, ...] | None = None) -> Table:
    made = Table(title, *(head or ("",) * len(rows[0])))
    for row in rows:
        made.add_row(*row)
    return made


def test_columns_begin_below_each_other_and_a_head_is_underlined() -> None:
    made = table([("digits", "3", "active"), ("mnist", "12", "")], title="models", head=("model", "no", ""))
    assert list(made.lines()) == [
        "models",
        "model   no",
        "------  --  ------",
        "digits  3   active",
        "mnist   12",
    ]


def test_columns_without_names_have_no_head() -> None:
    assert list(table([("latency", "3 us")]).lines()) == ["latency  3 us"]


def test_a_table_without_rows_shows_its_head() -> None:
    assert list(Table("", "id", "when").lines()) == ["id  when", "--  ----"]


def test_a_row_of_another_length_is_a_bug_that_is_said() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("", "id", "when").add_row("1")


@given(rows=ROWS, spare=some.integers(0, 60))
def test_no_line_is_longer_than_the_terminal(rows: list[tuple[str, ...]], spare: int) -> None:
    columns = len(rows[0])
    width = columns * NARROWEST + (columns - 1) * len(GAP) + spare
    assert all(len(line) <= width for line in table(rows).lines(width))


@given(rows=ROWS, width=some.none() | some.integers(1, 200))
def test_nothing_is_left_out_however_narrow_it_is(rows: list[tuple[str, ...]], width: int | None) -> None:
    shown = sorted("".join("".join(table(rows).lines(width)).split()))
    assert shown == sorted("".join("".join(map("".join, rows)).split()))


@given(rows=ROWS)
def test_a_program_reads_a_row_a_line(rows: list[tuple[str, ...]]) -> None:
    lines = list(table(rows).lines())
    assert len(lines) == len(rows)
    assert all(cell in line for row, line in zip(rows, lines, strict=True) for cell in row)


@given(text=some.text())
def test_what_a_package_says_moves_no_cursor(text: str) -> None:
    assert all(line.isprintable() for line in table([(text, "x")], title=text).lines())
