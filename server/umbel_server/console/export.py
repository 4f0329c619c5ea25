"""A table as a file: every row of it, page by page, as CSV or JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

MAX_ROWS = 1_000_000
FORMATS = ("csv", "json")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_BATCH = 500


def export(
    request: Request, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> Response | None:
    """Return a table as a file where the URL asks for one with ``format=csv`` or ``json``; None: it asks for a page.

    Args:
        request: Who asks.
        name: What the file is called, without its ending.
        columns: What each value of a row is called.
        rows: The rows, fetched as they are sent: a generator over the store's pages.
    """
    wanted = request.query_params.get("format", "")
    if wanted not in FORMATS:
        return None
    some = itertools.islice(rows, MAX_ROWS)
    body = _csv(columns, some) if wanted == "csv" else _json(columns, some)
    return StreamingResponse(
        body,
        media_type="text/csv; charset=utf-8" if wanted == "csv" else "application/json",
        headers={"Content-Disposition": f'attachment; filename="{name}.{wanted}"'},
    )


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    page = io.StringIO()
    writer = csv.writer(page)
    writer.writerow(columns)
    for count, row in enumerate(rows, 1):
        writer.writerow([_cell(value) for value in row])
        if count % _BATCH == 0:
            yield page.getvalue()
            page.seek(0)
            page.truncate()
    yield page.getvalue()


def _json(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield "["
    for count, row in enumerate(rows):
        yield ("," if count else "") + "\n" + json.dumps(dict(zip(columns, row, strict=True)), default=str)
    yield "\n]\n"


def _cell(value: object) -> object:
    # A spreadsheet would run what a device calls itself.
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
