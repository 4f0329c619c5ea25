"""Arrays for PostgreSQL, in the form in which it reads them: psycopg writes each value by itself, in Python.

Of a batch that a gateway stores that was more than all else it sends to the server.

Source: PostgreSQL 15, ``array_recv`` of src/backend/utils/adt/arrayfuncs.c; the numbers of types are those of
src/include/catalog/pg_type.dat.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

_length: Callable[[int], bytes] = struct.Struct(">i").pack
_number: Callable[[float], bytes] = struct.Struct(">d").pack
_head: Callable[[int, int, int, int, int], bytes] = struct.Struct(">iiIii").pack
_BYTEA, _INT4, _TEXT, _FLOAT8 = 17, 23, 25, 701


class Array(bytes):
    """An array of PostgreSQL's; the statement says of which type, as in ``%b::text[]``."""

    __slots__ = ()


def of_bytes(values: Sequence[bytes]) -> Array:
    """Return a ``bytea[]``."""
    return _array(_BYTEA, values)


def of_texts(values: Iterable[str]) -> Array:
    """Return a ``text[]``."""
    return _array(_TEXT, [value.encode() for value in values])


def of_integers(values: Iterable[int]) -> Array:
    """Return an ``int[]``, of 32 bits each."""
    return _array(_INT4, [_length(value) for value in values])


def of_floats(values: Iterable[float]) -> Array:
    """Return a ``float8[]``."""
    return _array(_FLOAT8, [_number(value) for value in values])


def _array(kind: int, values: Sequence[bytes]) -> Array:
    parts = [_head(1, 0, kind, len(values), 1)]  # One dimension, no nulls, counted from 1.
    for value in values:
        parts += (_length(len(value)), value)
    return Array(b"".join(parts))
