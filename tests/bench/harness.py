"""The form of every benchmark: ours and a baseline, taken in turn in one run, as a table and as JSON.

With UMBEL_BENCH_QUICK=1 in the environment everything is measured once and briefly, into a directory of its
own: it shows that a benchmark runs, and its figures say nothing.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

QUICK = bool(os.environ.get("UMBEL_BENCH_QUICK"))
OUT = Path(__file__).resolve().parents[2] / "build" / ("bench-quick" if QUICK else "bench")


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure.

    Args:
        name: What was measured.
        value: The median of ours, in ``unit``.
        unit: Its unit.
        baseline: The median of the baseline in the same run and unit, if there is one.
        ratio: ``value / baseline``; of pairs, the median of theirs.
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


def often(count: int) -> int:
    """Return how often to repeat a measurement: ``count`` times, or once to see that it runs."""
    return 1 if QUICK else count


def seconds(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes, in seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turn(
    ours: Callable[[], float], baseline: Callable[[], float], *, runs: int
) -> list[tuple[float, float]]:
    """Measure two things in turn and return the pairs.

    Taking turns makes what else the machine does hit both alike; who begins changes too, as the first of two finds
    the processor's caches full of the other's.
    """
    ours(), baseline()  # Caches and lazy imports are not what is measured.
    pairs = []
    for number in range(often(runs)):
        if number % 2:
            second = baseline()
            pairs.append((ours(), second))
        else:
            pairs.append((ours(), baseline()))
    return pairs


def medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the median of each."""
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def alternate(
    ours: Callable[[], float], baseline: Callable[[], float], *, runs: int = 7
) -> tuple[float, float]:
    """Measure two things in turn and return both medians."""
    return medians(in_turn(ours, baseline, runs=runs))


class Report:
    """Collects rows; prints and writes them.

    Args:
        name: The benchmark's name: build/bench/NAME.json.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[Row] = []
        self.failed: dict[str, str] = {}
        self._begin, self._begun = time.perf_counter(), datetime.now(UTC)
        self._load, self._ticks = os.getloadavg()[0], ticks()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Take some of the figures, and write those so far; what fails costs no other part its figures."""
        try:
            yield
        except Exception as exc:
            traceback.print_exc()
            self.failed[name] = f"{type(exc).__name__}: {exc}"
        finally:
            self.write()

    def ratio(
        self, name: str, ours: float, baseline: float, *, unit: str, at_most: float | None = None
    ) -> None:
        """Add a figure that counts in comparison to a baseline."""
        self._ratio(name, ours, baseline, ours / baseline, unit, at_most)

    def pairs(
        self, name: str, pairs: Sequence[tuple[float, float]], *, unit: str, at_most: float | None = None
    ) -> None:
        """Add a figure that counts in comparison to the baseline right beside it: the median of the pairs' ratios.

        Where the machine is faster and slower by turns, medians of all of ours and of all of the baseline's may be
        from different times; those of a pair are not.
        """
        ratio = statistics.median(ours / baseline for ours, baseline in pairs)
        self._ratio(name, *medians(pairs), ratio, unit, at_most)

    def _ratio(
        self, name: str, ours: float, baseline: float, ratio: float, unit: str, at_most: float | None
    ) -> None:
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
        ratio = value / baseline if baseline else None
        self.rows.append(Row(name, value, unit, baseline, ratio, target, met))

    def finish(self) -> None:
        """Print the table and write the JSON.

        Raises:
            SystemExit: A part failed; all that did not is written.
        """
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
        self.write(complete=not self.failed)
        if self.failed:
            raise SystemExit(
                "".join(f"{name} was not measured. {why}\n" for name, why in self.failed.items())
            )

    def write(self, *, complete: bool = False) -> None:
        """Write the JSON: at the end, and before it where a run takes long and may be interrupted."""
        OUT.mkdir(parents=True, exist_ok=True)
        report = {
            "rows": [asdict(row) for row in self.rows],
            "complete": complete,
            "failed": self.failed,
            "begun": self._begun.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._begin),
            "load": [round(self._load, 1), round(os.getloadavg()[0], 1)],
            "stolen": stolen(self._ticks, ticks()),
            "machine": machine(),
        }
        file = OUT / f"{self.name}.json"
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(report, indent=1) + "\n")
        fresh.replace(file)


def ticks() -> tuple[int, int]:
    """Return what the host of a virtual machine took of its processors so far, and all their time, in ticks.

    Source: proc_stat(5): the eighth figure is stolen; the last two are part of the first two.
    """
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    spent = [int(each) for each in first.split()[1:9]]
    return spent[7], sum(spent)


def stolen(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Return the share of the processors' time between two looks that the host gave to others, in [0, 1]."""
    return round((after[0] - before[0]) / max(after[1] - before[1], 1), 4)


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
    names = ("numpy", "onnxruntime", "cryptography", "flwr", "torch", "opacus", "onnx", "ai-edge-litert")
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "system": platform.platform(),
        "python": sys.version.split()[0],
        **{name: installed for name in names if (installed := found(name))},
    }


def found(name: str) -> str:
    """Return the version of an installed distribution, or nothing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
