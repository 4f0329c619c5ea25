"""An experiment as people read it at a terminal."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from umbel_server.terminal import print_table

if TYPE_CHECKING:
    from umbel_server.experiments.plan import ExperimentPlan

BAR, SHOWN = 33, 12


def print_dry_run(found: Mapping[str, Any], plan: ExperimentPlan) -> None:
    """Print whom an experiment would draw, and about how many devices it needs."""
    needed = found["devices_at_one_deviation"]
    typer.echo(
        f"Experiment {found['experiment']} would compare {found['model']} {found['to_version']} with "
        f"{found['from_version']} by {plan.metric}."
    )
    typer.echo(f"  treatment  {found['treatment']['count']} devices, {plan.treatment:g} %")
    typer.echo(f"  control    {found['control']['count']} devices, {plan.control:g} %")
    typer.echo(f"  in no arm  {found['others']}, and {found['pinned']} pinned")
    typer.echo(f"  guards     {', '.join(gate.name for gate in plan.gates) or 'none'}")
    typer.echo(f"  then       {', '.join(step.name for step in plan.following)}")
    typer.echo(
        f"A difference of {plan.least_effect:g} is told apart by about {needed:,.0f} devices in both arms if that is "
        f"one standard deviation between devices, {4 * needed:,.0f} if half of one, {100 * needed:,.0f} if a tenth."
    )
    if found["doubt"]:
        typer.echo(f"It would not start: {found['doubt']}")


def print_list(found: Sequence[Mapping[str, Any]]) -> None:
    """Print experiments, a line each."""
    print_table(
        ("experiment", "model", "versions", "metric", "state", "decide by"),
        [
            (
                each["experiment"],
                each["model"],
                f"{each['from_version']} -> {each['to_version']}",
                each["plan"]["metric"],
                each["state"],
                date_of(each["ends_s"]),
            )
            for each in found
        ],
    )


def print_shown(shown: Mapping[str, Any]) -> None:
    """Print an experiment, what it says over time, and what was decided."""
    figures, plan = shown["figures"], shown["plan"]
    typer.echo(
        f"Experiment {shown['experiment']}: {shown['model']} {shown['from_version']} -> {shown['to_version']}, "
        f"{shown['state']}, decide by {date_of(shown['ends_s'])}"
    )
    if plan["question"]:
        typer.echo(f"  question  {plan['question']}")
    if shown["reason"]:
        typer.echo(f"  reason    {shown['reason']}")
    typer.echo(f"  says      {figures['outcome']}. {figures['why']}")
    if (found := figures["difference"]) is not None:
        typer.echo(
            f"  {plan['metric']}: {found['estimate']:+.4g} ({found['low']:+.4g} to {found['high']:+.4g}) from "
            f"{figures['control']['mean']:.4g}, {'higher' if plan['higher_is_better'] else 'lower'} is better"
        )
    print_table(
        ("arm", "drawn", "compared", "pinned", "revoked", "mean"),
        [
            (
                arm,
                *(str(figures[arm][count]) for count in ("drawn", "compared", "pinned", "gone")),
                "-" if figures[arm]["mean"] is None else f"{figures[arm]['mean']:.4g}",
            )
            for arm in ("treatment", "control")
        ],
    )
    ratio = figures["ratio"]
    typer.echo(
        f"Share of the treatment {ratio['share']:.3g} by the draw; chance of these counts or odder ones "
        f"{ratio['chance']:.2g} at this look, {ratio['chance_ever']:.2g} at any."
    )
    if figures["course"]:
        print_table(
            ("until", "devices", "difference", "interval", "| is no difference"), _course_rows(figures)
        )
    if figures["gates"]:
        print_table(
            ("guard", "verdict", "figures"),
            [(each["gate"], each["outcome"], each["why"]) for each in figures["gates"]],
        )
    if shown["decisions"]:
        print_table(
            ("when", "who", "decision", "why"),
            [
                (_time(each["at_s"]), each["actor"], each["decision"], each["comment"])
                for each in shown["decisions"]
            ],
        )


def _course_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the newest looks and some before them, each with its interval as a bar."""
    course = figures["course"]
    every = -(-len(course) // SHOWN)
    points = course[::-1][::every][::-1]
    reach = 2 * max(abs(course[-1]["low"]), abs(course[-1]["high"]))
    return [
        (
            _time(each["at_s"]),
            f"{each['treatment']} and {each['control']}",
            f"{each['estimate']:+.4g}",
            f"{each['low']:+.4g} to {each['high']:+.4g}",
            _bar(each, reach),
        )
        for each in points
    ]


def _bar(point: Mapping[str, Any], reach: float) -> str:
    middle = BAR // 2

    def cell(value: float) -> int:
        return round(min(max(value / reach, -1.0), 1.0) * middle) + middle

    bar = ["-" if cell(point["low"]) <= i <= cell(point["high"]) else " " for i in range(BAR)]
    bar[middle] = "|"
    bar[cell(point["estimate"])] = "o"
    return "".join(bar)


def date_of(at_s: float) -> str:
    """Return the day of a time, UTC."""
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d")


def _time(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d %H:%MZ")
