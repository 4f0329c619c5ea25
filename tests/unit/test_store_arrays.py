"""PostgreSQL's arrays: what is written at once is what psycopg would write a value at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.numeric import Int4

from umbel_server.store.arrays import of_bytes, of_floats, of_integers, of_texts

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def written(values: Sequence[Any]) -> bytes:
    """What psycopg sends for a list."""
    (sent,) = Transformer().dump_sequence([list(values)], [PyFormat.BINARY])
    return bytes(sent)


@pytest.mark.parametrize(
    ("write", "values", "as_psycopg_knows_it"),
    [
        (of_bytes, st.binary(max_size=40), lambda value: value),
        (of_texts, TEXTS, lambda value: value),
        (of_integers, st.integers(-(2**31), 2**31 - 1), Int4),
        (of_floats, st.floats(allow_nan=False), lambda value: value),
    ],
    ids=["bytes", "texts", "integers", "floats"],
)
@given(data=st.data())
def test_an_array_is_written_as_the_driver_would(
    data: st.DataObject,
    write: Callable[[Any], bytes],
    values: st.SearchStrategy[Any],
    as_psycopg_knows_it: Callable[[Any], Any],
) -> None:
    some = data.draw(st.lists(values, min_size=1, max_size=20))
    assert write(some) == written([as_psycopg_knows_it(each) for each in some])
