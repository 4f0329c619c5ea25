"""Put what the benchmarks measured last into the tables of a page.

A table stands between ``<!-- bench: NAME -->`` and ``<!-- end -->``, where NAME is a benchmark's or one of
``LAYOUTS``. One whose benchmark has no figures under build/bench stays as it is, and is named.

Usage: python tests/bench/tables.py [PAGE]...     docs/reference/performance.md by default
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import OUT

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "performance.md"
TABLE = re.compile(r"(<!-- bench: ([\w. -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
BUSY = 1.5
"""A load before a benchmark that one before it cannot explain."""
STOLEN = 0.005
"""What a host may take of a virtual machine's processors without a word."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How figures become a table with a line for each of what was measured, and a column for each figure of it.

    Args:
        benchmark: Whose figures.
        name: Matches the name of a row that belongs here: groups ``line`` and ``column``.
        first: Heads the column of lines.
        alone: Whether to leave out baselines, where a line of the table has them.
    """

    benchmark: str
    name: re.Pattern[str]
    first: str
    alone: bool = False


LAYOUTS = {
    "training steps": Layout(
        "training", re.compile(r"(?P<line>[^,]+), (?P<column>parameters|(?:DP-)?SGD, .*)"), "network"
    ),
    "training memory": Layout("training", re.compile(r"(?P<line>[^,]+), (?P<column>peak RSS.*)"), "network"),
    "quantized": Layout(
        "quantized",
        re.compile(r"(?P<line>[^:]+): (?P<column>quantize on the device|int8.*|chosen|accuracy lost)"),
        "network",
    ),
    "compression": Layout(
        "compression",
        re.compile(
            r"(?P<line>[^:]+): (?P<column>accuracy, (?:fp32|int8)|bytes, fp32|us a prediction, fp32|"
            r"parameters sent in a round|DP error of an update, clips)$"
        ),
        "model",
        alone=True,
    ),
    "console screens": Layout("console", re.compile(r"(?P<line>/[^:]*): (?P<column>.+)"), "screen"),
    "console fleet": Layout(
        "console", re.compile(r"(?P<line>[^/:][^:]*): (?P<column>SQLite|PostgreSQL)$"), "what"
    ),
}


def number(value: float) -> str:
    """Return a figure with four digits, and thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def amount(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def ratio(row: Row) -> str:
    return "" if row["ratio"] is None else f"{row['ratio']:.2f}x"


def judged(row: Row) -> str:
    return {True: "met", False: "**MISSED**", None: ""}[row["met"]]


def plain(row: Row | None) -> str:
    return "" if row is None else amount(row["value"], row["unit"])


def cell(row: Row | None) -> str:
    """Return all of a row in one cell: the ratio, ours : the baseline, the target."""
    if row is None:
        return ""
    ours = plain(row)
    if row["ratio"] is not None:
        ours = f"{ratio(row)} ({number(row['value'])} : {amount(row['baseline'], row['unit'])})"
    if not row["target"]:
        return ours
    unit = "" if row["target"].endswith("x") else f" {row['unit']}"
    return f"{ours}, {row['target']}{unit} {judged(row)}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown: figures in all columns but the first and one without a head."""
    marks = ["---:" if name and place else "---" for place, name in enumerate(head)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, marks, *lines))


def listed(rows: Sequence[Row]) -> str:
    """Return the rows under one another."""
    lines = [
        (
            row["name"].strip(),
            amount(row["value"], row["unit"]),
            "" if row["baseline"] is None else number(row["baseline"]),
            ratio(row),
            row["target"],
            judged(row),
        )
        for row in rows
    ]
    return table(("what", "ours", "baseline", "ratio", "target", ""), lines)


def laid_out(rows: Sequence[Row], layout: Layout) -> str:
    """Return a line for each of what was measured."""
    cells: dict[str, dict[str, Row]] = {}
    for row in rows:
        if match := layout.name.match(row["name"]):
            cells.setdefault(match["line"], {})[match["column"]] = row
    columns = list(dict.fromkeys(column for of in cells.values() for column in of))
    written = plain if layout.alone else cell
    lines = [(line, *(written(of.get(column)) for column in columns)) for line, of in cells.items()]
    return table((layout.first, *columns), lines)


def when(report: dict[str, Any]) -> str:
    """Say of which run figures are, and what speaks against them."""
    if "begun" not in report:
        return "An earlier run, whose day and load were not recorded.\n"
    before = report["load"][0]
    machine = f"{report['machine']['cores']} cores of {report['machine']['cpu'].partition('@')[0].strip()}"
    said = f"{report['begun'][:10]}, {machine}, {report['seconds']} s, load {before:g} before it"
    if report.get("stolen", 0.0) >= STOLEN:
        said += f", {100 * report['stolen']:.1f} % of the processors taken by the host"
    said += ": other work may have run beside it." if before > BUSY else "."
    if not report["complete"]:
        said += f" Not complete: {', '.join(report['failed']) or 'stopped'}."
    return said + "\n"


def filled(page: str) -> tuple[str, list[str]]:
    """Return a page with its tables as they are by now, and the names of those without figures."""
    lacking: list[str] = []

    def fill(match: re.Match[str]) -> str:
        layout = LAYOUTS.get(match[2])
        file = OUT / f"{layout.benchmark if layout else match[2]}.json"
        if not file.exists():
            lacking.append(match[2])
            return match[0]
        report = json.loads(file.read_text())
        body = laid_out(report["rows"], layout) if layout else listed(report["rows"])
        return f"{match[1]}\n{body}\n{when(report)}\n{match[3]}"

    return TABLE.sub(fill, page), lacking


def main(pages: Sequence[Path]) -> None:
    for page in pages:
        text, lacking = filled(page.read_text())
        page.write_text(text)
        for name in lacking:
            print(f"{page.name}: {name} stays as it is, for it has no figures yet.")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]] or [PAGE])
