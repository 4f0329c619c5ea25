"""Queries in tables and sentences, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from umbel_server.queries.shown import RATES, cell_words
from umbel_server.terminal import print_table


def print_cost(made: dict[str, Any]) -> None:
    """Print what a query costs and how exact it will be."""
    expected = made["expected"]
    typer.echo(f"{made['query']} asks {made['asks']}, of up to {made['devices']} devices.")
    typer.echo(
        f"An answer costs a device epsilon {_number(made['epsilon'])} at delta {made['delta']:g}; then none will have "
        f"spent more than {_number(made['epsilon_after'])} of {_number(made['budget_epsilon'])}."
    )
    typer.echo(
        f"If each device counts as much as it may, {expected['of']} will be exact to +- {expected['half_width']:.3g}: "
        f"noise {expected['noise']:.2g}, sampling {expected['sampling']:.2g}."
    )


def print_answer(found: dict[str, Any]) -> None:
    """Print what a query answered."""
    typer.echo(
        f"{found['query']}: {found['asked_by']} asked about {found['question']['cohort'] or found['field']} of "
        f"{found['model']}@{found['version']}, for: {found['why']}."
    )
    result = found["result"]
    if result is None:
        typer.echo(f"It is {found['state']}{': ' + found['reason'] if found['reason'] else ''}.")
        return
    refused = f"; {result['refused']} did not answer" if result["refused"] else ""
    typer.echo(
        f"{result['devices']} devices answered{refused}, at epsilon {_number(result['epsilon'])} and delta "
        f"{result['delta']:g} each. Intervals are of 95 %, with the noise; examples count as independent."
    )
    examples = result["examples"]
    typer.echo(f"examples that count: {_count(examples)}")
    {"histogram": _histogram, "mean": _mean, "quantile": _quantile, "fairness": _fairness}[found["kind"]](
        result
    )


def _histogram(result: dict[str, Any]) -> None:
    rows = [
        (cell.get("label", cell_words(cell)), _count(cell["count"]), *_figure(cell["share"]))
        for cell in result["cells"]
    ]
    rows.append(("(no value)", _count(result["missing"]), "", "", "", ""))
    _table(("", "count", "share", "interval", "noise", "sampling"), rows)


def _mean(result: dict[str, Any]) -> None:
    spread = result["deviation"]
    rows = [("mean", *_figure(result["mean"]))]
    rows.append(("standard deviation", "-" if spread is None else f"{spread:.4g}", "", "", ""))
    _table(("", "value", "interval", "noise", "sampling"), rows)


def _quantile(result: dict[str, Any]) -> None:
    rows = [(f"{line['quantile']:g}", *_figure(line["figure"])) for line in result["quantiles"]]
    _table(("quantile", "value", "interval", "noise", "sampling"), rows)


def _fairness(result: dict[str, Any]) -> None:
    rows = []
    for cohort in result["cohorts"]:
        if cohort["suppressed"]:
            rows.append((cell_words(cohort), "too few to show", "", "", "", "", ""))
            continue
        for name, line in cohort["rates"].items():
            gap = line["against_others"]
            apart = "-" if gap is None else f"{gap['value']:+.3f} ({gap['low']:+.3f}..{gap['high']:+.3f})"
            if gap is not None and gap["certain"]:
                apart += " *"
            rows.append((cell_words(cohort), RATES[name], *_figure(line["figure"]), apart))
    _table(("cohort", "rate", "value", "interval", "noise", "sampling", "against the others"), rows)
    told = [
        f"{RATES[name]} {value:.3f}" for name, value in result["differences"].items() if value is not None
    ]
    if told:
        typer.echo(f"Widest differences: {', '.join(told)}. * leaves out zero, for all comparisons together.")


def _figure(figure: dict[str, float] | None) -> tuple[str, str, str, str]:
    if figure is None:
        return "too few", "", "", ""
    interval = f"{figure['low']:.4g}..{figure['high']:.4g}"
    return f"{figure['value']:.4g}", interval, f"+- {figure['noise']:.2g}", f"+- {figure['sampling']:.2g}"


def _count(count: dict[str, float]) -> str:
    return f"{count['value']:,.1f} +- {count['high'] - count['value']:.2g}"


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    print_table(header, list(rows))
