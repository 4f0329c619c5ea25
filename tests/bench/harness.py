"""The form of every benchmark: ours and a baseline, taken in turn in one run, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).resolve().parents[2] / "build" / "bench"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure.

    Args:
        name: What was measured.
        value: The median of ours, in ``unit``.
        unit: Its unit.
        baseline: The median of the baseline in the same run and unit, if there is one.
        ratio: ``value / baseline``.
        target: What the figure should be, in words: "<= 0.8x", "<= 150".
        met: Whether it is; None without a target.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


def seconds(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes, in seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def alternate(
    ours: Callable[[], float], baseline: Callable[[], float], *, runs: int = 7
) -> tuple[float, float]:
    """Measure two things in turn and return both medians.

    Taking turns makes what else the machine does hit both alike.
    """
    ours(), baseline()  # Caches and lazy imports are not what is measured.
    pairs = [(ours(), baseline()) for _ in range(runs)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


class Report:
    """Collects rows; prints and writes them.

    Args:
        name: The benchmark's name: build/bench/NAME.json.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[Row] = []

    def ratio(
        self, name: str, ours: float, baseline: float, *, unit: str, at_most: float | None = None
    ) -> None:
        """Add a figure that counts in comparison to a baseline."""
        ratio = ours / baseline
        target = "" if at_most is None else f"<= {at_most:g}x"
        self.rows.append(
            Row(name, ours, unit, baseline, ratio, target, None if at_most is None else ratio <= at_most)
        )

    def value(
        self,
        name: str,
        value: float,
        *,
        unit: str,
        at_most: float | None = None,
        at_least: float | None = None,
        baseline: float | None = None,
    ) -> None:
        """Add a figure that counts by itself; a baseline beside it is for the reader."""
        target, met = "", None
        if at_most is not None:
            target, met = f"<= {at_most:g}", value <= at_most
        elif at_least is not None:
            target, met = f">= {at_least:g}", value >= at_least
        ratio = None if baseline is None else value / baseline
        self.rows.append(Row(name, value, unit, baseline, ratio, target, met))

    def finish(self) -> None:
        """Print the table and write the JSON."""
        table = Table(title=self.name)
        for column in ("what", "ours", "baseline", "ratio", "target", ""):
            table.add_column(column, justify="left" if column in ("what", "") else "right")
        for row in self.rows:
            mark = {True: "[green]met[/]", False: "[red]MISSED[/]", None: ""}[row.met]
            table.add_row(
                row.name,
                f"{row.value:.4g} {row.unit}",
                "" if row.baseline is None else f"{row.baseline:.4g}",
                "" if row.ratio is None else f"{row.ratio:.2f}x",
                row.target,
                mark,
            )
        Console().print(table)
        self.write()

    def write(self) -> None:
        """Write the JSON: at the end, and before it where a run takes long and may be interrupted."""
        OUT.mkdir(parents=True, exist_ok=True)
        report = {"rows": [asdict(row) for row in self.rows], "machine": machine()}
        (OUT / f"{self.name}.json").write_text(json.dumps(report, indent=1) + "\n")


def machine() -> dict[str, str | int]:
    """Say what the figures were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    names = ("numpy", "onnxruntime", "cryptography", "flwr")
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "system": platform.platform(),
        "python": sys.version.split()[0],
        **{name: version(name) for name in names},
    }
