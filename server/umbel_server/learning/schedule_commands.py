"""``umbel rounds schedule``: runs that begin by themselves."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import schedules_at
from umbel_server.terminal import JsonOption, print_json, print_table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Let runs begin by themselves: umbel serve runs begins them.",
)

NameArgument = Annotated[str, typer.Argument(help="The schedule's name.", show_default=False)]
ReasonOption = Annotated[str, typer.Option(help="Why, for the record.")]


@app.command()
def add(
    name: NameArgument,
    plan: Annotated[Path, typer.Argument(help="The runs' plan, a TOML file.", show_default=False)],
    every: Annotated[str, typer.Option(help="Least time between two runs: 90m, 12h, 7d, 2w.")],
    directory: FleetOption = None,
    server: ServerOption = None,
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
    from umbel_proto.errors import UsageError
    from umbel_server.learning.schedule import DAY_S, parse_duration, parse_time_of_day
    from umbel_server.learning.scheduling import When

    every_s = parse_duration(every)
    at_s = None if at is None else parse_time_of_day(at)
    if at_s is not None and every_s % DAY_S:
        raise UsageError(f"--every is {every} and --at names a time of day: choose whole days, such as 7d.")
    with schedules_at(directory, server) as schedules:
        made = schedules.add(name, plan, When(every_s, at_s, labels, now))
    if as_json:
        print_json({each: made[each] for each in ("schedule", "model", "next_s")})
    else:
        wait = f", once {labels} new labels are reported" if labels else ""
        typer.echo(f"The first run begins {_utc(made['next_s'])}{wait}, where umbel serve runs is running.")


@app.command("list")
def list_(directory: FleetOption = None, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """List the schedules, and what came of each the last time."""
    with schedules_at(directory, server) as schedules:
        found = schedules.all()
    if as_json:
        print_json(found)
        return
    print_table(
        ("schedule", "model", "state", "next", "labels", "last run", "last time"),
        [
            (
                each["schedule"],
                each["model"],
                each["state"],
                _utc(each["next_s"]),
                str(each["labels"] or "-"),
                each["last_run"] or "-",
                each["said"] or "-",
            )
            for each in found
        ],
    )


@app.command()
def begin(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let the next run begin now. One that waits for labels still does."""
    with schedules_at(directory, server) as schedules:
        schedules.hasten(name, reason)
    _said(name, "active", f"Schedule {name} begins its next run now.", as_json)


@app.command()
def pause(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let a schedule begin no more runs; one that runs goes on."""
    with schedules_at(directory, server) as schedules:
        schedules.set_state(name, "paused", reason)
    _said(name, "paused", f"Schedule {name} is paused.", as_json)


@app.command()
def resume(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let a paused schedule go on. A run that it missed meanwhile begins at once, and once."""
    with schedules_at(directory, server) as schedules:
        schedules.set_state(name, "active", reason)
    _said(name, "active", f"Schedule {name} is active.", as_json)


@app.command()
def remove(
    name: NameArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Remove a schedule. Its runs stay on record, and one that runs goes on."""
    with schedules_at(directory, server) as schedules:
        schedules.remove(name, reason)
    _said(name, "removed", f"Schedule {name} is removed.", as_json)


def _said(name: str, state: str, sentence: str, as_json: bool) -> None:
    if as_json:
        print_json({"schedule": name, "state": state})
    else:
        typer.echo(sentence)


def _utc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
