"""How psycopg sends what ``arrays`` wrote: as it is."""

from __future__ import annotations

from psycopg.adapt import Dumper
from psycopg.pq import Format

from umbel_server.store.arrays import Array


class ArrayDumper(Dumper):
    """Sends an array; the server takes its type from the statement."""

    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        """Return the array."""
        return obj
