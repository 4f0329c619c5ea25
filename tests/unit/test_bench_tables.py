"""The performance page's tables are what the benchmarks wrote, and a part that fails costs no other its figures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "performance.md"


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return benchmark("harness", tmp_path, monkeypatch)


@pytest.fixture
def tables(harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return benchmark("tables", tmp_path, monkeypatch)


def benchmark(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a module of tests/bench that reads and writes its figures in a directory of the test's."""
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "OUT", out)
    return module


def measure(harness: Any) -> Any:
    """Report on two networks, one of which nobody else can train."""
    report = harness.Report("training")
    report.ratio("small, SGD, torch beside it", 1.0, 2.0, unit="ms", at_most=0.4)
    report.value("small, peak RSS, torch beside it", 90.0, unit="MB", at_most=100, baseline=300.0)
    report.value("recurrent, DP-SGD, Opacus beside it", 68.7, unit="ms")
    report.write(complete=True)
    return report


def test_a_part_that_fails_costs_no_other_its_figures_and_fails_the_run(harness: Any, tmp_path: Path) -> None:
    report = harness.Report("some")
    with report.part("first"):
        report.value("a", 1.0, unit="s")
    with report.part("second"):
        report.value("b", 2.0, unit="s")
        raise RuntimeError("no such luck")
    with report.part("third"):
        report.value("c", 3.0, unit="s")
    with pytest.raises(SystemExit, match="second was not measured"):
        report.finish()
    written = json.loads((tmp_path / "some.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["a", "b", "c"]
    assert written["failed"] == {"second": "RuntimeError: no such luck"}
    assert not written["complete"]


def test_what_was_measured_before_an_interrupt_is_written(harness: Any, tmp_path: Path) -> None:
    report = harness.Report("some")

    def interrupted() -> None:
        with report.part("first"):
            report.value("a", 1.0, unit="s")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    written = json.loads((tmp_path / "some.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["a"]
    assert not written["complete"]


def test_only_what_stands_between_the_marks_changes(harness: Any, tables: Any) -> None:
    measure(harness)
    table = "<!-- bench: training {} -->\nold\n<!-- end -->\n"
    before = f"# A page\n\n{table.format('steps')}\nIts text.\n\n{table.format('memory')}\nMore.\n"
    after, lacking = tables.filled(before)
    assert lacking == []
    assert [part.partition("<!-- end -->")[2] for part in after.split("<!-- bench")[1:]] == [
        "\n\nIts text.\n\n",
        "\n\nMore.\n",
    ]
    assert after.startswith("# A page\n\n<!-- bench: training steps -->\n")
    assert "old" not in after
    assert tables.filled(after)[0] == after


def test_a_line_holds_each_figure_with_its_baseline_and_target(harness: Any, tables: Any) -> None:
    measure(harness)
    steps, _ = tables.filled("<!-- bench: training steps -->\n<!-- end -->")
    assert "| small | 0.50x (1 : 2 ms), <= 0.4x **MISSED** |  |\n" in steps
    assert "| recurrent |  | 68.7 ms |\n" in steps
    assert "peak" not in steps
    memory, _ = tables.filled("<!-- bench: training memory -->\n<!-- end -->")
    assert "| small | 0.30x (90 : 300 MB), <= 100 MB met |\n" in memory


def test_a_table_with_the_baseline_in_a_line_shows_values_alone(harness: Any, tables: Any) -> None:
    report = harness.Report("compression")
    report.value("digits, whole: bytes, fp32", 57179, unit="")
    report.value("digits, head: bytes, fp32", 16978, unit="", baseline=57179)
    report.value("digits, head: bytes sent in a round", 1440, unit="")
    report.finish()
    text, _ = tables.filled("<!-- bench: compression -->\n<!-- end -->")
    assert "| model | bytes, fp32 |\n" in text
    assert "| digits, whole | 57,179 |\n| digits, head | 16,978 |\n" in text


def test_a_table_whose_benchmark_has_no_figures_stays_and_is_named(tables: Any) -> None:
    page = "<!-- bench: export -->\nold\n<!-- end -->\n"
    assert tables.filled(page) == (page, ["export"])


def test_figures_of_a_run_that_others_disturbed_or_that_stopped_say_so(tables: Any) -> None:
    machine = {"cpu": "Model @ 2.00GHz", "cores": 2}
    run = {"begun": "2026-11-21T10:00:00+00:00", "seconds": 9, "failed": {}, "machine": machine}
    said = tables.when({**run, "load": [0.3, 1], "complete": True})
    assert said == "2026-11-21, 2 cores of Model, 9 s, load 0.3 before it.\n"
    assert "other work" in tables.when({**run, "load": [4.0, 1], "complete": True})
    told = tables.when({**run, "load": [0.3, 1], "complete": True, "stolen": 0.0214})
    assert told == said.replace(".\n", ", 2.1 % of the processors taken by the host.\n")
    assert tables.when({**run, "load": [0.3, 1], "complete": True, "stolen": 0.001}) == said
    assert "Not complete: stopped." in tables.when({**run, "load": [0.3, 1], "complete": False})
    assert "Not complete: gru." in tables.when(
        {**run, "load": [0.3, 1], "complete": False, "failed": {"gru": ""}}
    )


def test_every_table_of_the_page_is_of_a_benchmark(tables: Any) -> None:
    names = [match[2] for match in tables.TABLE.finditer(PAGE.read_text())]
    assert names
    for name in names:
        layout = tables.LAYOUTS.get(name)
        assert (BENCH / f"{layout.benchmark if layout else name}.py").exists(), name


def test_the_picture_of_training_shows_figures_that_its_tables_have(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = benchmark("models_plot", tmp_path, monkeypatch)
    parts = {match[2]: match[0] for match in tables.TABLE.finditer(PAGE.read_text())}
    (head, *_), (memory, *_) = (
        [line for line in parts[name].splitlines() if line.startswith("| network |")]
        for name in ("training steps", "training memory")
    )
    assert all(f"| {series.row} beside it |" in head for series in (*plot.STEP, *plot.PRIVATE))
    assert all(f"| {series.row} beside it |" in memory for series in plot.MEMORY)
