"""``umbel monitor waive``: live with a gap between cohorts, by name, for a reason, and until a day."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel_server.fleet.layout import FleetDir
from umbel_server.terminal import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from umbel_server.store.waivers import Waiver

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]
ReasonOption = Annotated[str, typer.Option(help="Why; it is kept for good.", show_default=False)]


def waive(
    model: Annotated[str, typer.Argument(help="The model.")],
    directory: FleetOption,
    cohort: Annotated[str, typer.Option(help="The cohort whose gap it is.", show_default=False)],
    metric: Annotated[
        str, typer.Option(help="The figure, as umbel monitor fairness names it.", show_default=False)
    ],
    label: Annotated[
        str, typer.Option(help="The label that rates are of, by name or number.", show_default=False)
    ],
    days: Annotated[float, typer.Option(help="For how many days, 180 at most.", show_default=False)],
    reason: ReasonOption,
    version: Annotated[
        int | None, typer.Option(help="The version.", min=1, show_default="every version")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Live with a gap for some days. It is shown as waived, never hidden, and is open again afterwards."""
    from umbel_server.access.actor import local_actor
    from umbel_server.access.chain import keep_checkpoint
    from umbel_server.monitor.looks import label_of_model
    from umbel_server.store.waivers import Gap

    fleet = FleetDir.open(directory)
    with fleet.open_store() as store:
        number = label_of_model(fleet, store, model, version, label)
        gap = Gap(model, version, number, cohort, metric)
        made = store.waivers.waive(gap, days=days, reason=reason, actor=local_actor())
        keep_checkpoint(fleet, store)
        now_s = store.clock()
    if as_json:
        print_json(made.to_json(now_s))
        return
    typer.echo(f"{made.id}: the {gap.words} is waived until {_day(made.expires_s)}.")


def waivers(
    directory: FleetOption,
    model: Annotated[str | None, typer.Argument(help="Of this model only.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the gaps that somebody lives with."""
    with FleetDir.open(directory).open_store() as store:
        now_s = store.clock()
        found = [each for each in store.waivers.of(model) if every or each.holds(now_s)]
    if as_json:
        print_json([each.to_json(now_s) for each in found])
        return
    print_table(
        ("waiver", "model", "version", "label", "cohort", "figure", "until", "by", "why"),
        [
            (
                each.id,
                each.gap.model,
                "every" if each.gap.version is None else str(each.gap.version),
                str(each.gap.label),
                each.gap.cohort,
                each.gap.metric,
                _until(each, now_s),
                each.created_by,
                each.reason,
            )
            for each in found
        ],
    )


def unwaive(
    waiver: Annotated[str, typer.Argument(help="The waiver, as umbel monitor waivers shows it.")],
    directory: FleetOption,
    reason: ReasonOption,
    as_json: JsonOption = False,
) -> None:
    """End a waiver before its time: the gap is open again."""
    from umbel_server.access.actor import local_actor
    from umbel_server.access.chain import keep_checkpoint

    fleet = FleetDir.open(directory)
    with fleet.open_store() as store:
        ended = store.waivers.end(waiver, reason=reason, actor=local_actor())
        keep_checkpoint(fleet, store)
        now_s = store.clock()
    if as_json:
        print_json(ended.to_json(now_s))
        return
    typer.echo(f"{ended.id} is over: the {ended.gap.words} is open again.")


def _until(waiver: Waiver, now_s: float) -> str:
    if waiver.ended_s is not None:
        return f"ended {_day(waiver.ended_s)} by {waiver.ended_by}"
    return _day(waiver.expires_s) + ("" if waiver.holds(now_s) else ", over")


def _day(unix_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(unix_s, datetime.UTC):%Y-%m-%d %H:%MZ}"
