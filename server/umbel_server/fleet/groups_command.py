"""``umbel fleet groups | group | ungroup``: filters of devices that are saved under a name."""

from __future__ import annotations

from typing import Annotated

import typer

from umbel_server.fleet.wanted import StatusOption, TagOption, VersionOption, wanted_of
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import fleet_at
from umbel_server.terminal import JsonOption, print_json, print_table

GroupName = Annotated[str, typer.Argument(help="The group's name.")]
BeginsOption = Annotated[str | None, typer.Option(help="Those whose name begins so.", show_default=False)]


def register(fleet: typer.Typer) -> None:
    """Add the commands."""
    fleet.command()(groups)
    fleet.command()(group)
    fleet.command()(ungroup)


def groups(directory: FleetOption = None, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """List the groups, each with how many devices are in it now."""
    with fleet_at(directory, server) as fleet:
        found = fleet.groups()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["name"],
            each["kind"],
            " ".join(f"{name}={value}" for name, value in each["filter"].items()),
            str(each["devices"]) + (" (fewer than a cohort)" if each["fewer_than_cohort"] else ""),
        )
        for each in found
    ]
    print_table(("group", "kind", "filter", "devices"), rows)


def group(
    name: GroupName,
    directory: FleetOption = None,
    server: ServerOption = None,
    status: StatusOption = None,
    version: VersionOption = None,
    tag: TagOption = None,
    begins: BeginsOption = None,
    reason: Annotated[str, typer.Option(help="Why; kept for good.", show_default=False)] = "",
    as_json: JsonOption = False,
) -> None:
    """Save a filter of devices as a group, or in the place of the one that it was."""
    from dataclasses import replace

    wanted = replace(wanted_of(status, version, tag), begins=begins)
    with fleet_at(directory, server) as fleet:
        made = fleet.save_group(name, wanted, reason)
    if as_json:
        print_json(made)
        return
    few = ", fewer than a cohort: its figures are hidden" if made["fewer_than_cohort"] else ""
    typer.echo(f"Group {name}: {made['devices']} devices now{few}.")


def ungroup(
    name: GroupName,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: Annotated[str, typer.Option(help="Why; kept for good.", show_default=False)] = "",
) -> None:
    """Forget a filter that was saved as a group; its devices stay as they are."""
    with fleet_at(directory, server) as fleet:
        fleet.remove_group(name, reason)
    typer.echo(f"There is no group {name} any more.")
