"""``umbel rounds schedule``: runs that begin by themselves."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name
from umbel_server.clock import system_clock
from umbel_server.fleet.layout import FleetDir

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Let runs begin by themselves: umbel serve runs begins them.",
)

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]
NameArgument = Annotated[str, typer.Argument(help="The schedule's name.", show_default=False)]
ReasonOption = Annotated[str, typer.Option(help="Why, for the record.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def add(
    name: NameArgument,
    plan: Annotated[Path, typer.Argument(help="The runs' plan, a TOML file.", show_default=False)],
    directory: FleetOption,
    every: Annotated[str, typer.Option(help="Least time between two runs: 90m, 12h, 7d, 2w.")],
    at: Annotated[
        str | None,
        typer.Option(help="Time of day, UTC, at which runs begin: 02:30.", show_default="any"),
    ] = None,
    labels: Annotated[
        int, typer.Option(min=0, help="New labels, by the devices' reports, that a run waits for.")
    ] = 0,
    now: Annotated[bool, typer.Option("--now", help="Let the first run begin at once.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a plan against policy and budget, and let runs of it begin by themselves."""
    from umbel_server.access.actor import local_actor
    from umbel_server.learning.begin import check, pin, read_mapping
    from umbel_server.learning.schedule import DAY_S, following, parse_duration, parse_time_of_day
    from umbel_server.store.schedules import Schedule

    every_s = parse_duration(every)
    at_s = None if at is None else parse_time_of_day(at)
    if at_s is not None and every_s % DAY_S:
        raise UsageError(f"--every is {every} and --at names a time of day: choose whole days, such as 7d.")
    fleet = FleetDir.open(directory)
    now_s = system_clock()
    with fleet.open_store() as store:
        raw = read_mapping(plan)
        checked = check(fleet, store, pin(raw, store))
        schedule = Schedule(
            name=check_name(name, "schedule"),
            model=checked.plan.model,
            plan=raw,
            every_s=every_s,
            at_s=at_s,
            labels=labels,
            state="active",
            next_s=now_s if now else following(now_s, every_s, at_s),
            since_s=now_s,
        )
        store.schedules.add(schedule, local_actor())
    if as_json:
        print(json.dumps({"schedule": name, "model": schedule.model, "next_s": schedule.next_s}, indent=2))
    else:
        wait = f", once {labels} new labels are reported" if labels else ""
        typer.echo(f"The first run begins {_utc(schedule.next_s)}{wait}, where umbel serve runs is running.")


@app.command("list")
def list_(directory: FleetOption, as_json: JsonOption = False) -> None:
    """List the schedules, and what came of each the last time."""
    from umbel_server.cli import print_table

    with FleetDir.open(directory).open_store() as store:
        found = store.schedules.all()
    if as_json:
        lines = [
            {
                "schedule": each.name,
                "model": each.model,
                "state": each.state,
                "every_s": each.every_s,
                "at_s": each.at_s,
                "labels": each.labels,
                "next_s": each.next_s,
                "last_run": each.last_run,
                "said": each.said,
            }
            for each in found
        ]
        print(json.dumps(lines, indent=2))
        return
    print_table(
        ("schedule", "model", "state", "next", "labels", "last run", "last time"),
        [
            (
                each.name,
                each.model,
                each.state,
                _utc(each.next_s),
                str(each.labels or "-"),
                each.last_run or "-",
                each.said or "-",
            )
            for each in found
        ],
    )


@app.command()
def pause(
    name: NameArgument, directory: FleetOption, reason: ReasonOption = "", as_json: JsonOption = False
) -> None:
    """Let a schedule begin no more runs; one that runs goes on."""
    _set(name, directory, "paused", reason, as_json=as_json)


@app.command()
def resume(
    name: NameArgument, directory: FleetOption, reason: ReasonOption = "", as_json: JsonOption = False
) -> None:
    """Let a paused schedule go on. A run that it missed meanwhile begins at once, and once."""
    _set(name, directory, "active", reason, as_json=as_json)


@app.command()
def remove(
    name: NameArgument, directory: FleetOption, reason: ReasonOption = "", as_json: JsonOption = False
) -> None:
    """Remove a schedule. Its runs stay on record, and one that runs goes on."""
    from umbel_server.access.actor import local_actor

    with FleetDir.open(directory).open_store() as store:
        store.schedules.remove(name, local_actor(), reason=reason)
    _said(name, "removed", as_json=as_json)


def _set(name: str, directory: Path, state: str, reason: str, *, as_json: bool) -> None:
    from umbel_server.access.actor import local_actor

    with FleetDir.open(directory).open_store() as store:
        store.schedules.set_state(
            name, "paused" if state == "paused" else "active", local_actor(), reason=reason
        )
    _said(name, state, as_json=as_json)


def _said(name: str, state: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"schedule": name, "state": state}, indent=2))
    else:
        typer.echo(f"Schedule {name} is {state}.")


def _utc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
