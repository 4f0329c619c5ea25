"""What commands share at a terminal: the option for JSON, and how JSON, tables and times are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated
from unicodedata import category

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

UNBROKEN_COLUMNS = 10_000
"""No table is wider: a reason on record is a few sentences."""


def print_json(value: object) -> None:
    """Print what a program reads."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table: closer together where the terminal is narrow, and unbroken where there is none.

    Cells are text, whoever wrote it: nothing in them is markup, and what is no character of a text is replaced.
    """
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(*header, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(_plain, row))
    console = Console(markup=False, emoji=False)
    wide = Measurement.get(console, console.options.update(width=UNBROKEN_COLUMNS), table).maximum
    if not console.is_terminal:
        console.width = wide
    elif wide > console.width:
        table.padding = 0
    console.print(table)


def _plain(cell: str) -> str:
    # Unicode's categories C: what a terminal obeys, and what turns the direction of writing.
    return "".join("\ufffd" if category(each)[0] == "C" and each != "\n" else each for each in cell)


def duration(seconds: float) -> str:
    """Return a time in one unit, for people."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
