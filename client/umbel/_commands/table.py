"""Plain tables of text: columns that fit the terminal they are printed on, unbroken where there is none."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator

import click

GAP = "  "
NARROWEST = 8
"""No column is made narrower to fit, in characters: the terminal breaks the lines then."""


class Table:
    """Rows under a title; columns without names have no head.

    Examples:
        >>> table = Table("models", "model", "version")
        >>> table.add_row("digits", "3")
        >>> print(*table.lines(), sep="\\n")
        models
        model   version
        ------  -------
        digits  3
    """

    def __init__(self, title: str, *columns: str) -> None:
        self._title = title
        self._columns = columns
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """Add a row, one cell a column."""
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells for {len(self._columns)} columns")
        self._rows.append(tuple(map(_printable, cells)))

    def lines(self, width: int | None = None) -> Iterator[str]:
        """Yield the lines; cells are broken where a line would be longer than ``width`` characters."""
        head = [self._columns] if any(self._columns) else []
        widths = _fit(
            [max(map(len, column)) for column in zip(self._columns, *self._rows, strict=True)], width
        )
        if self._title:
            yield _printable(self._title)
        for row in head:
            yield from _row(row, widths)
            yield _line("-" * each for each in widths)
        for row in self._rows:
            yield from _row(row, widths)

    def print(self) -> None:
        """Print the table; that nobody reads it is no error."""
        with contextlib.suppress(BrokenPipeError):
            for line in self.lines(_width()):
                click.echo(line)


def _width() -> int | None:
    """Return the characters in a line of the terminal; None where a program reads, and lines must stay whole."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return None


def _fit(widths: list[int], width: int | None) -> list[int]:
    """Make the widest columns narrower until a line fits."""
    while width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        widest = widths.index(max(widths))
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    return widths


def _row(cells: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    broken = [_broken(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for number in range(max(map(len, broken))):
        parts = [lines[number] if number < len(lines) else "" for lines in broken]
        yield _line(part.ljust(width) for part, width in zip(parts, widths, strict=True))


def _broken(cell: str, width: int) -> list[str]:
    return [cell] if len(cell) <= width else textwrap.wrap(cell, width)


def _line(parts: Iterator[str]) -> str:
    return GAP.join(parts).rstrip()


def _printable(text: str) -> str:
    """Return a text that moves no cursor: what a package or a gateway says is printed, not obeyed."""
    return "".join(each if each.isprintable() else " " if each.isspace() else "?" for each in text)
